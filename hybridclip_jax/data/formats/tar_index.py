"""Where the files in a tar archive lie, from one pass over its headers; nothing is ever extracted.

Reads the POSIX (ustar, pax) and GNU forms. Written for archives from strangers: every length is checked against
the file before it is believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hybridclip_jax.errors import UserError

BLOCK = 512
_LONGEST_NAME = 64_000  # bytes of a GNU long name or a pax header
_PADDING = 20 * BLOCK  # that writers put behind the end
_FILE = (b"0", b"\0", b"7")
_FOLDER = b"5"
_NO_DATA = (b"1", b"2", b"3", b"4", _FOLDER, b"6")  # links, devices, folders, pipes: whatever size they state
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_GZIP = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Member:
    """One member: its name as written, and for a file where its bytes are."""

    name: str
    offset: int
    size: int
    is_file: bool  # else a link, a device or the like


def members(path: Path) -> Iterator[Member]:
    """The members in order, without folders.

    Raises:
        UserError: no tar file, compressed, damaged, or cut off.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            yield from _Reader(path, file, total).members()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, total: int) -> None:
        self.path, self.file, self.total = path, file, total
        self.at = 0

    def members(self) -> Iterator[Member]:
        name = ""  # of the next member, where a longer one than its header holds was announced
        size: int | None = None
        while (header := self._header()) is not None:
            kind = header[156:157]
            length = self._number(header[124:136])
            if kind in (_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL):
                data = self._extra(length)
                if kind == _GNU_NAME:
                    name = _text(data)
                elif kind == _PAX:
                    said = self._pax(data)
                    name = _text(said.get(b"path", b"")) or name
                    size = self._pax_number(said[b"size"]) if b"size" in said else size
                continue
            length = 0 if kind in _NO_DATA else length if size is None else size
            self._check(length)
            if kind != _FOLDER:
                yield Member(name or _header_name(header), self.at, length, kind in _FILE)
            self._skip(length)
            name, size = "", None

    def _header(self) -> bytes | None:
        """The next header, None at the end mark."""
        header = self.file.read(BLOCK)
        if self.at == 0 and header.startswith(_GZIP):
            raise UserError(f"{self.path} is compressed: images are read from its middle, so run gunzip on it first")
        if len(header) < BLOCK:
            raise self._cut()
        if not any(header):
            if any(self.file.read(_PADDING)):
                raise UserError(f"{self.path} goes on behind its end: join archives with tar --concatenate, not cat")
            return None
        self.at += BLOCK
        # The sum counts its own field as blanks.
        expected = sum(header) - sum(header[148:156]) + 8 * 0x20
        try:
            stated = int(header[148:156].strip(b" \0") or b"0", 8)
        except ValueError:
            stated = -1
        if stated != expected and self.at == BLOCK:
            raise UserError(f"{self.path} is not a tar archive: copy or download it again")
        if stated != expected:
            raise self._damaged()
        return header

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:  # GNU: base 256 for what octal digits cannot hold
            return int.from_bytes(field, "big") & ((1 << 95) - 1)
        try:
            return int(field.strip(b" \0") or b"0", 8)
        except ValueError as error:
            raise self._damaged() from error

    def _pax_number(self, digits: bytes) -> int:
        if not digits.isdigit() or len(digits) > 20:
            raise self._damaged()
        return int(digits)

    def _extra(self, length: int) -> bytes:
        if length > _LONGEST_NAME:
            raise UserError(f"{self.path} has a name of {length} bytes at byte {self.at}: no tar of images has")
        self._check(length)
        data = self.file.read(length)
        self._skip(length)
        return data

    def _pax(self, data: bytes) -> dict[bytes, bytes]:
        """Lines "LENGTH KEY=VALUE\\n", where LENGTH counts the whole line."""
        said: dict[bytes, bytes] = {}
        while data:
            digits, blank, _ = data.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
            line, rest = data[:length], data[length:]
            key, equals, value = line[len(digits) + 1 :].partition(b"=")
            if not blank or not equals or not value.endswith(b"\n"):
                raise self._damaged()
            said[key] = value[:-1]
            data = rest
        return said

    def _check(self, length: int) -> None:
        if self.at + length > self.total:
            raise self._cut()

    def _skip(self, length: int) -> None:
        self.at += -(-length // BLOCK) * BLOCK
        self.file.seek(self.at)

    def _damaged(self) -> UserError:
        return UserError(f"{self.path} is damaged at byte {self.at - BLOCK}: copy or download it again")

    def _cut(self) -> UserError:
        return UserError(f"{self.path} is cut off after {self.total} bytes: copy or download it again")


def _header_name(header: bytes) -> str:
    name = _until_zero(header[:100])
    prefix = _until_zero(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _until_zero(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _text(name: bytes) -> str:
    return _until_zero(name).decode("utf-8", "surrogateescape")
