"""Weights as people have them: a file, a folder in the hub's layout, or a hub id; opened, not read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from converters import torch_file
from converters.torch_zip import shown
from hybridclip_jax import modelfolder
from hybridclip_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SAFETENSORS = "model.safetensors"
OLDER = "pytorch_model.bin"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# The only names that are ever fetched from the hub, OLDER where a repository has no safetensors.
HUB_FILES = [CONFIG, PREPROCESSOR, "*.safetensors", INDEX]
# An index of 7B's arrays has 0.1 MB.
MAX_JSON = 16 << 20
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
FLOATS_ONLY = "weights are read in float32, float16, bfloat16 or float64, quantised ones are not"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
FLOATS = frozenset(map(np.dtype, _FLOATS.values()))
_DTYPES = {
    **_FLOATS,
    "I64": np.int64,
    "I32": np.int32,
    "BOOL": np.bool_,
}


class Tensor(Protocol):
    """A stored array that is read when asked."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class _SafeTensor:
    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        with safe_open(self.path, framework="numpy") as file:
            return np.asarray(file.get_tensor(self.name))


@dataclasses.dataclass(frozen=True)
class Source:
    """What was found. `config` and `preprocessor` are the hub's JSON files, empty where there are none."""

    name: str
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    torchscript: bool = False

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of an array that must have `dims` sizes, none of them 0. Raises KeyError where it is missing."""
        found = self.tensors[name].shape
        if len(found) != dims or 0 in found:
            raise UserError(f"{self.name}: {name} has shape {found}; this layout needs {dims} sizes above 0")
        return found

    def part(self, field: str) -> Mapping[str, Any]:
        """A part of the config, such as `text_config`; of a config of one tower, all of it."""
        found = self.config.get(field, self.config)
        if not isinstance(found, dict):
            raise UserError(f"{self.name}: config.json: {field} is no JSON object; download it again")
        return found

    def agrees(self, field: str, wanted: Any, part: str = "") -> None:
        """Raises UserError where the config states another value; a config that says nothing agrees."""
        found = self.part(part).get(field, wanted)
        if found != wanted:
            raise UserError(f"{self.name}: config.json says {field} = {found!r}; this layout needs {wanted!r}")


def open_source(src: str) -> Source:
    """Opens SRC: a .safetensors, .pt, .pth or .bin file, a folder of the hub's, or a hub id (`owner/name`).

    Raises UserError for what is none of these, damaged, or cannot be fetched.
    """
    path = Path(src)
    if path.is_dir():
        return _folder(path, str(src))
    if path.is_file():
        return _file(path)
    if _HUB_ID.fullmatch(src) and path.suffix not in _ENDINGS:
        return _folder(_download(src), src)
    raise UserError(f"{src}: no such file or folder, and not a hub id such as facebook/dinov3-vitb16-pretrain-lvd1689m")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # seconds to import, and only hub ids need it

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*HUB_FILES, OLDER]))
        return folder
    except Exception as error:  # the library has dozens of kinds, and says which in one sentence
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{hub_id}: no such folder here, and not fetched from the hub ({reason}); check the name, accept its "
            "licence there, log in with `hf auth login`, or give a folder that holds its files"
        ) from error


def _folder(folder: Path, name: str) -> Source:
    config, preprocessor = (_json(folder / file) for file in (CONFIG, PREPROCESSOR))
    if os.path.lexists(folder / INDEX):
        files = _shards(folder / INDEX)
    elif os.path.lexists(folder / SAFETENSORS):
        files = [folder / SAFETENSORS]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files and (folder / OLDER).is_file():
        tensors, _ = _torch(folder / OLDER)
        return Source(name, tensors, (folder / OLDER,), config, preprocessor)
    if (folder / modelfolder.CARD).is_file():
        raise UserError(f"{name}: is a model folder already; to-hf takes it back to transformers")
    if not files:
        raise UserError(
            f"{name}: no {SAFETENSORS} in it, nor {OLDER}; give the folder of the hub's files, or the .pt or .pth "
            "file itself"
        )
    return Source(name, _together(files), tuple(files), config, preprocessor)


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them there and beside it."""
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise UserError(f"{index}: has no weight_map of names to files; download it again")
    for shard in named.values():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise UserError(f"{index}: names {shown(str(shard))}, which is no file beside it; download it again")
    files = [index.with_name(shard) for shard in sorted(set(named.values()))]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: is missing, which {INDEX} names; download it")
    return files


def _together(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        found = _safetensors(path)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise UserError(
                f"{path}: holds {shown(twice[0])}, which another file beside it holds too; remove one of them"
            )
        tensors |= found
    return tensors


def _file(path: Path) -> Source:
    """A file by itself; one of the hub's with the settings that lie beside it."""
    if path.suffix in (".safetensors", ".bin"):
        config, preprocessor = (_json(path.with_name(name)) for name in (CONFIG, PREPROCESSOR))
    else:
        config, preprocessor = {}, {}
    if path.suffix == ".safetensors":
        return Source(str(path), _safetensors(path), (path,), config, preprocessor)
    tensors, torchscript = _torch(path)
    return Source(str(path), tensors, (path,), config, preprocessor, torchscript)


def _torch(path: Path) -> tuple[Mapping[str, Tensor], bool]:
    """(arrays, whether the file is a TorchScript archive)."""
    tree = torch_file.read(path)
    torchscript = isinstance(tree, torch_file.Module)
    try:
        return torch_file.state_dict(tree), torchscript
    except UserError as error:
        if torchscript:
            raise UserError(
                f"{path}: a TorchScript archive without named weights, as torch.jit.freeze leaves it; convert the "
                "archive that was frozen"
            ) from error
        raise UserError(f"{path}: {error}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                piece = file.get_slice(name)
                kind = piece.get_dtype()
                if kind not in _DTYPES:
                    raise UserError(
                        f"{path}: {shown(name)} is stored as {kind}; convert it to float32, float16 or bfloat16"
                    )
                found[name] = _SafeTensor(path, name, np.dtype(_DTYPES[kind]), tuple(piece.get_shape()))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error}); download it again") from error
    return found


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none of that name."""
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise UserError(f"{path}: is a folder, or a link to nothing; download it again")
    if path.stat().st_size > MAX_JSON:
        raise UserError(
            f"{path}: has {path.stat().st_size:,} bytes, such a file at most {MAX_JSON:,}; download it again"
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(body, dict):
        raise UserError(f"{path}: holds no JSON object; download it again")
    return body
