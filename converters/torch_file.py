"""Reads `.pt` and `.pth` files and TorchScript archives without torch and without running anything that they hold.

A file is a zip archive: `data.pkl` describes nested dicts whose tensors name the archive's entries (`data/0`, ...),
each one storage of plain numbers. Several tensors may view one storage, each with its own offset, sizes and strides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters.torch_pickle import Function, Inert, InertClass, Machine
from converters.torch_zip import Archive, Member, Refusal, open_archive, shown
from hybridclip_jax.errors import UserError

MAX_DIMS = 8
MAX_DEPTH = 64
MAX_VALUES = 1_000_000
MAX_NAME = 256
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class Module(dict[str, Any]):
    """The attributes of a TorchScript module."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that is still in its file. `dtype` and `shape` are those that `read` returns.

    `_start` and `_strides` count elements of the storage; read() trusts them, since the file's were checked.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    _archive: Archive = dataclasses.field(repr=False)
    _member: Member = dataclasses.field(repr=False)
    _start: int = dataclasses.field(repr=False)
    _strides: tuple[int, ...] = dataclasses.field(repr=False)

    def read(self) -> np.ndarray:
        """A C-contiguous array of its own, [*shape]. Raises UserError when the file is damaged or was changed."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        size = self.dtype.itemsize
        try:
            raw = self._archive.bytes_of(self._member, self._start * size, _span(self.shape, self._strides) * size)
        except Refusal as reason:
            raise UserError(f"{self._archive.path}: {reason}") from reason
        # A bool that is neither 0 nor 1 is undefined in NumPy; torch reads every other byte as true.
        flat = raw.astype(np.bool_) if self.dtype == np.bool_ else raw.view(self.dtype)
        strides = tuple(stride * size for stride in self._strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides)
        return flat.reshape(self.shape) if view.flags.c_contiguous else view.copy(order="C")


def read(path: Path) -> Any:
    """The object in a file that torch.save or torch.jit.save wrote, its tensors as StoredTensor.

    Dicts (a state dict too), lists, tuples, strings, numbers, bools and None come as Python's own, a TorchScript module
    as the Module of its attributes. Raises UserError, one line, for every file that is not whole, plain and in bounds.
    """
    try:
        return _Contents(open_archive(path)).tree()
    except Refusal as reason:
        raise UserError(f"{path}: {reason}") from reason


def state_dict(obj: Any) -> dict[str, StoredTensor]:
    """The weights in what `read` returned: {dotted name: tensor}.

    Unwraps one of WRAPPERS, joins the names of nested dicts with dots and drops a `module.` that all names share.
    Raises UserError when there is no tensor, two would have one name, or it cannot be told which mapping is meant.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in _named(_unwrapped(obj) if isinstance(obj, Mapping) else {}, ()):
        if name in found:
            raise UserError(f"two weights are named {name}; save the state dict alone with torch.save")
        found[name] = tensor
    if not found:
        raise UserError("holds no weights by name; save them with torch.save(model.state_dict(), FILE)")
    while all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _StorageType:
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    dtype: np.dtype
    member: Member
    length: int


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """A tensor as the file describes it, not yet checked."""

    storage: Any
    start: Any
    shape: Any
    strides: Any


class _Contents:
    """One archive's data.pkl on its way to a tree of plain values and checked tensors."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.values = self.claimed = 0

    def tree(self) -> Any:
        return self._plain(Machine(self.archive.whole("data.pkl"), self._find, self._storage).run(), ())

    def _find(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in FUNCTIONS:
            return FUNCTIONS[full]
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if self.archive.torchscript:
            if full in SCRIPT_FUNCTIONS:
                return SCRIPT_FUNCTIONS[full]
            if module == "__torch__" or module.startswith("__torch__."):
                return InertClass(full)
        raise Refusal(
            f"was refused: it names {shown(full)}, which no weight file needs; "
            "whoever wrote it should save the state dict alone"
        )

    def _storage(self, described: Any) -> _Storage:
        """Of ("storage", type, key, device, length), which is the only persistent id that torch writes."""
        if type(described) is not tuple or len(described) != 5 or described[0] != "storage":
            raise Refusal("was refused: its data.pkl points to something that is not a storage")
        _, kind, key, _, length = described
        if type(kind) is not _StorageType or type(key) is not str or not _count(length):
            raise Refusal("was refused: its data.pkl describes a storage in a way that torch does not")
        member = self.archive.members.get(f"data/{key}")
        if member is None:
            raise Refusal(f"is damaged: it has no entry data/{shown(key)}, which a tensor needs")
        if member.size != length * kind.dtype.itemsize:
            raise Refusal(
                f"was refused: data/{shown(key)} has {member.size:,} bytes, "
                f"not those of {length:,} numbers of {kind.dtype}"
            )
        return _Storage(kind.dtype, member, length)

    def _plain(self, value: Any, path: tuple[str, ...]) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise Refusal(f"was refused: it holds more than {MAX_VALUES:,} values")
        if len(path) > MAX_DEPTH:
            raise Refusal(f"was refused: it nests deeper than {MAX_DEPTH} levels")
        kind = type(value)
        if kind in (str, int, float, bool, type(None)):
            return value
        if kind is _View:
            try:
                return self._tensor(value)
            except Refusal as reason:
                raise Refusal(f"was refused: {_where(path)} {reason}") from reason
        if kind is Inert:
            return Module(self._plain(value.attributes or {}, path))
        if kind is dict:
            return {key: self._plain(item, (*path, str(key))) for key, item in value.items()}
        if kind in (list, tuple):
            return kind(self._plain(item, (*path, str(at))) for at, item in enumerate(value))
        raise Refusal(f"was refused: {_where(path)} is neither a tensor nor a plain value")

    def _tensor(self, view: _View) -> StoredTensor:
        """Checks that every element lies in the storage. Sizes are exact: Python's integers do not overflow."""
        storage, start, shape, strides = view.storage, view.start, view.shape, view.strides
        if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
            raise Refusal("is not described as torch describes tensors")
        if len(shape) != len(strides) or len(shape) > MAX_DIMS:
            raise Refusal(f"has {len(shape)} sizes and {len(strides)} strides; at most {MAX_DIMS} of each")
        if not all(map(_count, (start, *shape, *strides))):
            raise Refusal("has an offset, a size or a stride that is not a number from 0")
        # Strides along sizes of 0 and 1 reach nothing, and are as the writer left them.
        strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and start + _span(shape, strides) > storage.length:
            raise Refusal(f"reaches past the end of its storage of {storage.length:,} numbers")
        # A size of 0 leaves the tensor empty, but NumPy still multiplies the others.
        n_copied = math.prod(max(size, 1) for size in shape)
        self.claimed += max(n_copied, 0 if 0 in shape else _span(shape, strides)) * storage.dtype.itemsize
        if self.claimed > self.archive.allowance:
            raise Refusal(f"brings what its tensors claim to {self.claimed:,} bytes")
        return StoredTensor(storage.dtype, shape, self.archive, storage.member, start, strides)


def _where(path: tuple[str, ...]) -> str:
    return shown(".".join(path)) or "its only value"


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements of the storage from the first to the last of a tensor that is not empty."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _unwrapped(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = [name for name in WRAPPERS if isinstance(obj.get(name), Mapping) and any(_named(obj[name], ()))]
    if len(inner) > 1:
        raise UserError(f"holds weights under {' and '.join(inner)}; save the ones you want alone with torch.save")
    # A module may itself have a part called `model`, next to weights of its own.
    beside = any(isinstance(value, StoredTensor) for value in obj.values())
    return obj if not inner or (inner == ["model"] and beside) else _unwrapped(obj[inner[0]])


def _named(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(value, StoredTensor):
        name = ".".join(path)
        if not name.isprintable() or len(name) > MAX_NAME:
            raise UserError(f"a weight has a name that is no name: {shown(name)}")
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _named(item, (*path, str(at)))


def _called(name: str, arguments: tuple[Any, ...], least: int, most: int) -> None:
    if not least <= len(arguments) <= most:
        raise Refusal(f"was refused: it calls {name} with {len(arguments)} arguments, as torch does not")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    _called("collections.OrderedDict", arguments, 0, 0)
    return {}


def _rebuild_tensor(arguments: tuple[Any, ...]) -> _View:
    """Of (storage, offset, sizes, strides, requires_grad, hooks[, metadata])."""
    _called("_rebuild_tensor_v2", arguments, 6, 7)
    if arguments[6:] and arguments[6]:
        raise Refusal("was refused: a tensor is stored negated or conjugated; save tensor.resolve_neg() instead")
    return _View(*arguments[:4])


def _first_of(name: str, count: int) -> Callable[[tuple[Any, ...]], Any]:
    def call(arguments: tuple[Any, ...]) -> Any:
        _called(name, arguments, count, count)
        return arguments[0]

    return call


# How many arguments each takes; the first is the value, the others say what torch needs to make its own objects.
VALUES = {"torch._utils._rebuild_parameter": 3, "torch.Size": 1}
SCRIPT_VALUES = {
    "torch.device": 1,
    "torch.jit._pickle.restore_type_tag": 2,
    "torch.jit._pickle.build_intlist": 1,
    "torch.jit._pickle.build_doublelist": 1,
    "torch.jit._pickle.build_boollist": 1,
    "torch.jit._pickle.build_tensorlist": 1,
}
FUNCTIONS = {
    "collections.OrderedDict": Function(_ordered_dict),
    "torch._utils._rebuild_tensor_v2": Function(_rebuild_tensor),
    **{name: Function(_first_of(name, count)) for name, count in VALUES.items()},
}
SCRIPT_FUNCTIONS = {name: Function(_first_of(name, count)) for name, count in SCRIPT_VALUES.items()}
