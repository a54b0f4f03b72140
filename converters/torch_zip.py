"""The zip file around a PyTorch archive: its directory is checked at opening, its bytes are read when asked for."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

MAX_MEMBERS = 65_536
# Of the directory and of data.pkl, which are held in memory whole; the latter has 38 kB for CLIP's 302 tensors.
MAX_TABLE = 16 << 20
# A file may unpack to, and its tensors may claim, BLOAT times its own size, and SLACK for tiny files.
BLOAT, SLACK = 8, 64 << 20
CHUNK = 1 << 18

ENCRYPTED, UTF8 = 0x1, 0x800
LOCAL = struct.Struct("<4s22xHH")
ZIP_MAGIC, TAR_MAGIC = b"PK\x03\x04", b"ustar"
PICKLE_MAGIC = b"\x80"
AGAIN = "download or copy it again"


class Refusal(Exception):
    """Why a file is not read; torch_file.read puts the file's name before it."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One entry: `start` and `packed` are its place in the file, in bytes; `size` is its length unpacked."""

    name: str
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Archive:
    """A checked directory. `members` are keyed by name without the root folder."""

    path: Path
    members: dict[str, Member]
    checksums: bool
    stamp: tuple[int, int]

    @property
    def torchscript(self) -> bool:
        return "constants.pkl" in self.members

    @property
    def allowance(self) -> int:
        """The bytes that the file may make of itself."""
        return BLOAT * self.stamp[0] + SLACK

    def bytes_of(self, member: Member, start: int, count: int) -> np.ndarray:
        """uint8 [count], from `start` of the unpacked member. Raises Refusal when they are not there or are damaged."""
        out = np.empty(count, np.uint8)
        with open(self.path, "rb") as file:
            if _stamp(file) != self.stamp:
                raise Refusal("was changed while it was being read; run the command again")
            if member.deflated:
                _inflate(file, member, start, out)
            else:
                file.seek(member.start + start)
                if file.readinto(out.data) != count:
                    raise Refusal(f"{member.name} is cut short; {AGAIN}")
        if self.checksums and count == member.size and zlib.crc32(out.data) != member.crc:
            raise Refusal(f"{member.name} is damaged (its checksum differs); {AGAIN}")
        return out

    def whole(self, name: str) -> bytes:
        """A small member. Raises Refusal when it is missing, or longer than MAX_TABLE."""
        member = self.members[name]
        if member.size > MAX_TABLE:
            raise Refusal(f"was refused: its {name} has {member.size:,} bytes, a weight file's at most {MAX_TABLE:,}")
        return self.bytes_of(member, 0, member.size).tobytes()


def open_archive(path: Path) -> Archive:
    """Raises Refusal for anything but a whole, little-endian zip archive of torch.save or torch.jit.save."""
    if not path.exists():
        raise Refusal("no such file")
    if not path.is_file():
        raise Refusal("is not a file but a folder or a device; name the .pt or .pth file")
    with _Bounded(io.FileIO(path)) as file:
        _check_magic(file)
        stamp = _stamp(file)
        members = _without_root(_members(file, _directory(file, stamp[0])))
    # With torch.serialization.set_crc32_options(False) every checksum is written as 0.
    archive = Archive(path, members, any(member.crc for member in members.values()), stamp)
    order = archive.whole("byteorder") if "byteorder" in members else b"little"
    if order == b"big":
        raise Refusal("was written on a big-endian machine, which is not read; save it anew with torch on a little one")
    if order != b"little":
        raise Refusal(f"is damaged: its byte order is neither little nor big; {AGAIN}")
    return archive


class _Bounded(io.BufferedReader):
    """zipfile reads a directory of any length in one call; this file refuses such a call before memory is taken."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_TABLE:
            raise Refusal(f"was refused: its zip directory has {size:,} bytes, a weight file's at most {MAX_TABLE:,}")
        return super().read(size)


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _check_magic(file: IO[bytes]) -> None:
    head = file.read(512)
    if head.startswith(ZIP_MAGIC):
        return
    if head.startswith(PICKLE_MAGIC) or head[257:262] == TAR_MAGIC:
        raise Refusal(
            "is in PyTorch's old format, which is not read; re-save it where torch is installed: "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    if not head:
        raise Refusal(f"is empty; {AGAIN}")
    raise Refusal("is not a PyTorch file: it does not begin as a zip archive does; name a .pt or .pth file")


def _directory(file: IO[bytes], size: int) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as directory:
            infos = directory.infolist()
    # What a damaged directory makes zipfile raise; seeking before the start of a file is an OSError or a ValueError.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError) as error:
        raise Refusal(f"is cut short or damaged: its zip directory cannot be read; {AGAIN}") from error
    if len(infos) > MAX_MEMBERS:
        raise Refusal(f"was refused: it has {len(infos):,} entries, a weight file at most {MAX_MEMBERS:,}")
    unpacked = sum(info.file_size for info in infos)
    if unpacked > BLOAT * size + SLACK:
        raise Refusal(f"was refused: its {size:,} bytes claim to unpack to {unpacked:,}, as a zip bomb does")
    return infos


def _members(file: IO[bytes], infos: list[zipfile.ZipInfo]) -> list[Member]:
    found: list[Member] = []
    names: set[str] = set()
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = shown(info.filename)
        if info.filename in names:
            raise Refusal(f"was refused: it holds two entries named {name}")
        if info.flag_bits & ENCRYPTED:
            raise Refusal(f"was refused: its entry {name} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refusal(f"was refused: its entry {name} is neither stored nor deflated")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        start = _start_of_data(file, info)
        if info.header_offset < end or (not deflated and info.compress_size != info.file_size):
            raise Refusal(f"is damaged: its entry {name} does not lie where the zip directory says; {AGAIN}")
        end = start + info.compress_size
        names.add(info.filename)
        found.append(Member(info.filename, start, info.compress_size, info.file_size, info.CRC, deflated))
    if end > os.fstat(file.fileno()).st_size:
        raise Refusal(f"is cut short: {shown(found[-1].name)} ends after the file does; {AGAIN}")
    return found


def _start_of_data(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """An entry's header repeats its name, and says how long it is itself."""
    damaged = Refusal(f"is damaged: the header of its entry {shown(info.filename)} is not in its place; {AGAIN}")
    if info.header_offset < 0:
        raise damaged
    file.seek(info.header_offset)
    head = file.read(LOCAL.size)
    if len(head) != LOCAL.size:
        raise damaged
    magic, n_name, n_extra = LOCAL.unpack(head)
    name = file.read(n_name).decode("utf-8" if info.flag_bits & UTF8 else "cp437", "replace")
    if magic != ZIP_MAGIC or name != info.orig_filename:
        raise damaged
    return info.header_offset + LOCAL.size + n_name + n_extra


def _without_root(members: list[Member]) -> dict[str, Member]:
    roots = [root for root, _, rest in (member.name.partition("/") for member in members) if rest == "data.pkl"]
    if len(roots) != 1:
        raise Refusal("is a zip file, but not one that torch.save wrote (it has no single FOLDER/data.pkl)")
    start = roots[0] + "/"
    return {member.name.removeprefix(start): member for member in members if member.name.startswith(start)}


def _inflate(file: IO[bytes], member: Member, start: int, out: np.ndarray) -> None:
    """Fills `out` from `start` of a deflated member, unpacking a chunk at a time."""
    inflater, left, position = zlib.decompressobj(-zlib.MAX_WBITS), member.packed, 0
    file.seek(member.start)
    while position < start + len(out):
        packed = inflater.unconsumed_tail or file.read(min(CHUNK, left))
        if not inflater.unconsumed_tail:
            left -= len(packed)
        try:
            piece = np.frombuffer(inflater.decompress(packed, CHUNK), np.uint8)
        except zlib.error as error:
            raise Refusal(f"{member.name} is damaged (it cannot be unpacked); {AGAIN}") from error
        if not len(piece) and (not packed or inflater.eof):
            raise Refusal(f"{member.name} is cut short; {AGAIN}")
        wanted = piece[max(0, start - position) : start + len(out) - position]
        at = max(0, position - start)
        out[at : at + len(wanted)] = wanted
        position += len(piece)


def shown(text: str) -> str:
    """Text of a file as it may stand in an error: one short line without control characters."""
    start = text[:80] if text[:80].isprintable() else ascii(text[:80])
    return start if len(start) <= 80 and len(text) <= 80 else start[:77] + "..."
