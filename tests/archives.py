"""PyTorch archives by hand, instruction by instruction, and a trap around the reading of them."""

from __future__ import annotations

import contextlib
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import torch_file
from converters.torch_file import StoredTensor
from hybridclip_jax.errors import UserError

# --- the instructions


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def num(value: int) -> bytes:
    packed = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


def tup(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def nums(*values: int) -> bytes:
    return tup(*map(num, values))


def dic(*items: bytes) -> bytes:
    return b"}(" + b"".join(items) + b"u"


def lst(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def glob(full: str) -> bytes:
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tup(*arguments) + b"R"


def module(full: str, *state: bytes) -> bytes:
    return glob(full) + b")\x81" + dic(*state) + b"b"


NONE, TRUE, FALSE, EMPTY, PERSISTENT = b"N", b"\x88", b"\x89", b")", b"Q"
HOOKS = call(glob("collections.OrderedDict"))


def storage(
    kind: bytes = glob("torch.FloatStorage"),
    key: bytes = text("0"),
    length: bytes = num(6),
    tag: bytes = text("storage"),
) -> bytes:
    """As a graphics card's owner saves it: older archives name the device, and it means nothing here."""
    return tup(tag, kind, key, text("cuda:0"), length) + PERSISTENT


def tensor(
    size: bytes = nums(2, 3), stride: bytes = nums(3, 1), start: bytes = num(0), where: bytes = b"", more: bytes = b""
) -> bytes:
    arguments = (where or storage(), start, size, stride, FALSE, HOOKS, more)
    return call(glob("torch._utils._rebuild_tensor_v2"), *arguments)


def weights(value: bytes) -> bytes:
    return dic(text("a.weight"), value)


NUMBERS = np.arange(6, dtype=np.float32)
STORED = {"version": b"3\n", "data/0": NUMBERS.tobytes()}
SCRIPT = {**STORED, "constants.pkl": b"\x80\x02)."}


def packed(path: Path, pickled: bytes, members: dict[str, bytes] | None = None) -> Path:
    """An archive as torch lays it out; `pickled` is framed by the protocol and the stop."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        for member, data in (STORED if members is None else members).items():
            archive.writestr(f"archive/{member}", data)
    return path


# --- the trap


class Payload:
    """Pickles as a call of anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


ATTACK = "touch marker"


class Trap:
    """Notes what a file made Python do. An audit hook cannot be taken away again, so it is armed for a while."""

    EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")

    def __init__(self) -> None:
        self.armed = False
        self.sprung: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in self.EVENTS:
            self.sprung.append(event)

    @contextlib.contextmanager
    def around(self, folder: Path) -> Iterator[None]:
        """Asserts that no command ran, Python's unpickler resolved no name, and ATTACK left no mark in `folder`."""
        with contextlib.chdir(folder):
            self.armed = True
            try:
                yield
            finally:
                self.armed = False
                sprung, self.sprung = self.sprung, []
                assert not sprung, f"{', '.join(sprung)} while the file was read"
                assert not Path("marker").exists()


TRAP = Trap()


def attempt(path: Path) -> tuple[Any, list[np.ndarray]]:
    """What a converter does with a file: reads the tree, then every tensor in it."""
    with TRAP.around(path.parent):
        tree = torch_file.read(path)
        return tree, [found.read() for found in _tensors(tree)]


def _tensors(tree: Any) -> Iterator[StoredTensor]:
    if isinstance(tree, StoredTensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(item)


def refusal(path: Path) -> str:
    """The one line, without the path that it begins with."""
    with pytest.raises(UserError) as caught:
        attempt(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable(), "more than one line, or control characters"
    assert len(message) < 400 + len(str(path))
    return message.removeprefix(f"{path}: ")


def outcome(path: Path) -> Any:
    """What came of a damaged file: the object, or None for one line. Any other exception fails the test.

    Tensors are (dtype, shape, bytes), so that objects compare.
    """
    try:
        with TRAP.around(path.parent):
            return _resolved(torch_file.read(path))
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert str(error).isprintable()
        return None


def _resolved(tree: Any) -> Any:
    if isinstance(tree, StoredTensor):
        return str(tree.dtype), tree.shape, tree.read().tobytes()
    if isinstance(tree, dict):
        return {key: _resolved(value) for key, value in tree.items()}
    return type(tree)(_resolved(value) for value in tree) if isinstance(tree, list | tuple) else tree


def small_state() -> dict[str, Any]:
    """A training checkpoint of five tensors, three of them views of one storage."""
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    views = {"a.weight": base, "a.rows": base[1:3], "a.t": base.t()}
    return {
        "epoch": 3,
        "best_loss": 0.25,
        "state_dict": {**views, "b": torch.arange(5), "c": torch.ones(3).half()},
        "tags": ["x", ("y", None, True)],
    }
