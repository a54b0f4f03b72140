"""Weights as people have them: a file, a folder in the hub's layout, or a hub id; opened, not read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from converters import torch_file
from hybridclip_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SAFETENSORS = "model.safetensors"
# The only names that are ever fetched from the hub.
HUB_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", INDEX]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
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

    def part(self, field: str) -> Mapping[str, Any]:
        """A part of the config, such as `text_config`; of a config of one tower, all of it."""
        return self.config.get(field, self.config)

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
    if _HUB_ID.fullmatch(src):
        return _folder(_download(src), src)
    raise UserError(f"{src}: no such file or folder, and not a hub id such as facebook/dinov3-vitb16-pretrain-lvd1689m")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # seconds to import, and only hub ids need it

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except Exception as error:  # the library has dozens of kinds, and says which in one sentence
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{hub_id}: could not be fetched from the hub ({reason}); check the name, accept its licence there, log in "
            "with `hf auth login`, or give a folder that holds its files"
        ) from error


def _folder(folder: Path, name: str) -> Source:
    if (folder / INDEX).is_file():
        shards = _json(folder / INDEX).get("weight_map", {})
        files = sorted({folder / shard for shard in shards.values() if "/" not in str(shard)})
    else:
        files = [folder / SAFETENSORS] if (folder / SAFETENSORS).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{name}: no {SAFETENSORS} in it; give the folder of the hub's files, or the .pt or .pth file itself"
        )
    tensors: dict[str, Tensor] = {}
    for path in files:
        if not path.is_file():
            raise UserError(f"{name}: {path.name} is missing, which {INDEX} names; download it")
        tensors |= _safetensors(path)
    return Source(
        name, tensors, tuple(files), _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    )


def _file(path: Path) -> Source:
    if path.suffix == ".safetensors":
        config, preprocessor = (_json(path.parent / name) for name in ("config.json", "preprocessor_config.json"))
        return Source(str(path), _safetensors(path), (path,), config, preprocessor)
    tree = torch_file.read(path)
    try:
        tensors = torch_file.state_dict(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Source(str(path), tensors, (path,), torchscript=isinstance(tree, torch_file.Module))


def _safetensors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                piece = file.get_slice(name)
                kind = piece.get_dtype()
                if kind not in _DTYPES:
                    raise UserError(f"{path}: {name} is stored as {kind}; convert it to float32, float16 or bfloat16")
                found[name] = _SafeTensor(path, name, np.dtype(_DTYPES[kind]), tuple(piece.get_shape()))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error}); download it again") from error
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(body, dict):
        raise UserError(f"{path}: holds no JSON object; download it again")
    return body
