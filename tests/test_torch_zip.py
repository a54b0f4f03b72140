"""Zip files that lie, are cut or damaged, and files that are none: one line each, and no memory on a file's word."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import ATTACK, STORED, Payload, attempt, outcome, packed, refusal, small_state, tensor, weights

from converters import torch_file, torch_zip
from hybridclip_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")

# --- zip files that lie


def with_entry(path: Path, entry: str, data: bytes) -> Path:
    with zipfile.ZipFile(packed(path, weights(tensor())), "a") as archive:
        archive.writestr(entry, data)
    return path


def patched(path: Path, at: int, value: bytes, entry: bytes = b"archive/data/0") -> Path:
    """Changes an entry's record, from its byte `at`, in the directory at the file's end; makes the file if need be."""
    if not path.exists():
        packed(path, weights(tensor()))
    data = bytearray(path.read_bytes())
    at += data.rindex(b"PK\x01\x02", 0, data.rindex(entry))
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def sizes(packed: int, unpacked: int) -> bytes:
    return struct.pack("<II", packed, unpacked)


SIZES, OFFSET, NAME = 20, 42, 46  # where they are in a record


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = {**STORED, "data/1": bytes(100 << 20)}
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + weights(tensor()) + b".")
        for member, data in bomb.items():
            archive.writestr(f"archive/{member}", data)
    tracemalloc.start()
    line = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "claim to unpack to 104," in line and line.endswith("as a zip bomb does")
    assert peak < 1 << 20


def test_a_bomb_that_states_a_small_size_is_unpacked_no_further(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + weights(tensor()) + b".")
        archive.writestr("archive/data/0", bytes(100 << 20))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 16 : at + 20] = struct.pack("<I", zlib.crc32(bytes(24)))
    data[at + 24 : at + 28] = struct.pack("<I", 24)
    path.write_bytes(data)
    tracemalloc.start()
    found = attempt(path)[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found[0], np.zeros((2, 3)))
    assert peak < 4 * torch_zip.CHUNK


LIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two entries of one name": (
        lambda path: with_entry(path, "archive/data/0", bytes(24)),
        "it holds two entries named archive/data/0",
    ),
    "two names that differ after a null": (
        lambda path: patched(with_entry(path, "archive/data/0?", b""), NAME + 14, b"\0", b"archive/data/0?"),
        "it holds two entries named archive/data/0",
    ),
    "two folders": (
        lambda path: with_entry(path, "other/data.pkl", b"\x80\x02}."),
        "it has no single FOLDER/data.pkl",
    ),
    "an encrypted entry": (lambda path: patched(path, 8, b"\x01"), "its entry archive/data/0 is encrypted"),
    "another compression": (lambda path: patched(path, 10, b"\x0c"), "archive/data/0 is neither stored nor deflated"),
    "two sizes": (lambda path: patched(path, SIZES, sizes(24, 48)), "does not lie where the zip directory says"),
    "past the end": (lambda path: patched(path, SIZES, sizes(9 << 20, 9 << 20)), "ends after the file does"),
    "4 GB": (lambda path: patched(path, SIZES, sizes(24, 2**32 - 2)), "as a zip bomb does"),
    "overlap": (
        lambda path: patched(path, SIZES, sizes(500, 500), b"archive/data.pkl"),
        "archive/version does not lie where the zip directory says",
    ),
    "inside another": (lambda path: patched(path, OFFSET, b"\x05\x00"), "is not in its place"),
    "starts past the end": (lambda path: patched(path, OFFSET, b"\xff\xff\xff\x00"), "is not in its place"),
    "another name in its header": (lambda path: patched(path, NAME + 13, b"1"), "is not in its place"),
    "a newer zip": (lambda path: patched(path, 6, b"\xff\xff"), "its zip directory cannot be read"),
    "big-endian": (lambda path: with_entry(path, "archive/byteorder", b"big"), "written on a big-endian machine"),
    "no byte order": (lambda path: with_entry(path, "archive/byteorder", b"middle"), "neither"),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_zip_file_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    make, words = LIES[kind]
    assert words in refusal(make(tmp_path / "lies.pt"))


@pytest.mark.parametrize("big", ["entries", "directory"])
def test_a_directory_without_end_is_refused(big: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "directory.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for at in range(200):
            archive.writestr(f"archive/data/{at}", b"")
    if big == "entries":
        monkeypatch.setattr(torch_zip, "MAX_MEMBERS", 199)
        assert "it has 200 entries, a weight file at most 199" in refusal(path)
    else:
        monkeypatch.setattr(torch_zip, "MAX_TABLE", 9_999)
        assert "its zip directory has 12,290 bytes, a weight file's at most 9,999" in refusal(path)


# --- what is no such file at all


def legacy(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def tar(path: Path) -> None:
    """As torch before 0.1.10 wrote."""
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(os.system, ATTACK)))


def numpys(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(2))


RESAVE = "torch.save(torch.load(OLD, weights_only=True), NEW)"
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "legacy": (legacy, RESAVE),
    "tar": (tar, RESAVE),
    "pickle": (bare_pickle, RESAVE),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is not a PyTorch file"),
    "html": (lambda path: path.write_text("<!doctype html>" * 99), "is not a PyTorch file"),
    "folder": (lambda path: path.mkdir(), "is not a file but a folder or a device"),
    "nothing": (lambda path: None, "no such file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a file but a folder or a device"),
    "NumPy's": (numpys, "but not one that torch.save wrote"),
    "zip of nothing": (lambda path: zipfile.ZipFile(path, "w").close(), "is not a PyTorch file"),
    "cut zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "its zip directory cannot be read"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_get_a_line_of_advice(kind: str, tmp_path: Path) -> None:
    make, words = OTHERS[kind]
    make(tmp_path / "other.pt")
    assert words in refusal(tmp_path / "other.pt")


def test_the_advice_for_an_old_file_works(tmp_path: Path) -> None:
    legacy(tmp_path / "old.pt")
    exec(RESAVE, {"torch": torch, "OLD": tmp_path / "old.pt", "NEW": tmp_path / "new.pt"})
    np.testing.assert_array_equal(attempt(tmp_path / "new.pt")[0]["a"].read(), np.ones(2))


# --- damage


def without_numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_numbers(value) for key, value in tree.items()}
    return tree[:2] if isinstance(tree, tuple) and isinstance(tree[-1], bytes) else tree


def test_damaged_bytes_give_one_line_or_at_most_other_numbers(tmp_path: Path) -> None:
    torch.save(small_state(), tmp_path / "sound.pt")
    data = (tmp_path / "sound.pt").read_bytes()
    sound = outcome(tmp_path / "sound.pt")
    members = torch_zip.open_archive(tmp_path / "sound.pt").members
    places = [place for name, place in members.items() if name.startswith("data/")]
    rng, seen = random.Random(7), {"right": 0, "line": 0, "other numbers": 0}
    for trial in range(800):
        at, changed = rng.randrange(len(data)), bytearray(data)
        changed[at] ^= 1 << rng.randrange(8) if trial % 2 else rng.randrange(1, 256)
        (tmp_path / "damaged.pt").write_bytes(changed)
        found = outcome(tmp_path / "damaged.pt")
        if found is None:
            seen["line"] += 1
        elif found == sound:
            seen["right"] += 1
        else:
            seen["other numbers"] += 1
            assert any(place.start <= at < place.start + place.size for place in places), f"byte {at}"
            assert without_numbers(found) == without_numbers(sound)
    assert min(seen["right"], seen["line"]) > 50, seen


def test_a_file_cut_anywhere_gives_one_line(tmp_path: Path) -> None:
    torch.save(small_state(), tmp_path / "sound.pt")
    data = (tmp_path / "sound.pt").read_bytes()
    for end in random.Random(8).sample(range(len(data)), 300):
        (tmp_path / "cut.pt").write_bytes(data[:end])
        assert outcome(tmp_path / "cut.pt") is None, end


def test_a_damaged_storage_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100), "b": torch.ones(100)}, tmp_path / "weights.pt")
    data = bytearray((tmp_path / "weights.pt").read_bytes())
    data[data.index(np.ones(100, np.float32).tobytes()) + 17] ^= 1
    (tmp_path / "weights.pt").write_bytes(data)
    found = torch_file.read(tmp_path / "weights.pt")
    np.testing.assert_array_equal(found["a"].read(), np.zeros(100))
    with pytest.raises(UserError, match=r"weights.pt: weights/data/1 is damaged \(its checksum differs\); download"):
        found["b"].read()
