"""Model folders: `model.safetensors` (flat names) and `model.json` (everything that must match at load)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hybridclip_jax import modelcard
from hybridclip_jax.errors import StorageError, UserError

FORMAT_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "model.json"
TOWERS = {
    "dual": ("image/", "text/", "image_projection/", "text_projection/", "logit_scale"),
    "image": ("image/",),
    "text": ("text/", "text_projection/"),
}

PATCH_BIAS = "image/patch_embed/bias"
POSITIONS = "text/pos_embedding"
STRETCH = ", or convert it again with `python -m converters to-jax SRC --out DIR --context {context}`"
SET_STATISTICS = "; set data.mean and data.std to the folder's"
FOLD = "; convert it with `python -m converters to-jax SRC --out DIR --input-norm clip`, or set data.mean and data.std"


@dataclasses.dataclass(frozen=True)
class Card:
    """What travels with the weights.

    kind: dual, image or text. architecture: {"image": name, "text": name, "context", "embed_dim"} as far as held.
    preprocessing: size, mean, std, resize. tokenizer: the tokenizer's own card. source: where the weights came from.
    """

    kind: str
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    tokenizer: dict[str, Any]
    source: dict[str, Any]
    licence: str
    synthetic: bool = False


def fingerprint(params: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(params):
        array = np.ascontiguousarray(params[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(folder: Path, params: Mapping[str, Any], card: Card) -> str:
    """Writes what `card.kind` holds of `params`; the folder appears whole or not at all. Returns the fingerprint.

    `params`: parameters and statistics in one flat dict.

    Raises StorageError when the disk refuses; a folder that is there already stays as it is.
    """
    # In C order: safetensors writes the memory of a transposed view as it lies.
    held = {name: np.asarray(value, order="C") for name, value in params.items() if name.startswith(TOWERS[card.kind])}
    mark = fingerprint(held)
    body = {"format_version": FORMAT_VERSION, **dataclasses.asdict(card), "fingerprint": mark}
    with _whole(folder) as partial:
        partial.mkdir(parents=True)
        save_file(held, partial / WEIGHTS)
        (partial / CARD).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    return mark


def link(source: Path, folder: Path) -> None:
    """Makes `folder` the model of `source` without its bytes being written again, where the disk has hard links.

    `folder` appears whole or not at all, as with `save`. Raises StorageError when the disk refuses.
    """
    with _whole(folder) as partial:
        shutil.copytree(source, partial, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems of clusters and clouds have none
        shutil.copyfile(source, target)


def temporary(folder: Path) -> tuple[Path, Path]:
    """What a kill may leave beside `folder`: the new one in the making, the old one on its way out.

    A leading dot keeps both out of a shell's `kept/*`.
    """
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A path to make a model folder at, which then takes the place of `folder`; StorageError where it cannot."""
    partial, old = temporary(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        for path in (partial / WEIGHTS, partial / CARD, partial):
            _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"{folder}: the model could not be written: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Returns when the file or folder is on the disk: checkpoints outlive a crash of the machine, so must models."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Held(NamedTuple):
    """What a folder held when it was read; a run that goes on may put another model in its place."""

    params: dict[str, np.ndarray]
    card: Card
    fingerprint: str


def load(folder: str | Path) -> tuple[dict[str, np.ndarray], Card]:
    """(parameters and statistics, card). Raises UserError for a missing, damaged, altered or newer folder."""
    held = read(folder)
    return held.params, held.card


def read(folder: str | Path) -> Held:
    """`load`, with the fingerprint of what was loaded."""
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: not a model folder (no {CARD}); name one, such as the best/ of a run")
    try:
        body = json.loads((folder / CARD).read_text())
        version = body.pop("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder}/{CARD}: format version {version}, this program reads {FORMAT_VERSION}; "
                "use the version of hybridclip_jax that wrote it, or a newer one"
            )
        expected = body.pop("fingerprint")
        if wrong := modelcard.problem(body):
            raise UserError(f"{folder}/{CARD}: {wrong}")
        card = Card(**body)
        if card.kind not in TOWERS:
            raise ValueError(f"kind is {card.kind!r}, not one of {', '.join(TOWERS)}")
        params = load_file(folder / WEIGHTS)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, SafetensorError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{folder}: damaged model folder: {reason}") from error
    if fingerprint(params) != expected:
        raise UserError(f"{folder}/{WEIGHTS}: the weights are not those of the card (fingerprint differs)")
    return Held(params, card, expected)


class Tower(NamedTuple):
    """The parameters and statistics of one tower, and what its folder says of them."""

    params: dict[str, np.ndarray]
    fingerprint: str
    licence: str


def tower(
    folder: str | Path,
    which: str,
    targets: Mapping[str, Any],
    *,
    arch: str,
    preprocessing: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> Tower:
    """One tower (`image` or `text`) of a folder, checked to fill exactly those of `targets`.

    Raises UserError naming both sides when the architecture, the preprocessing, the tokenizer or a shape differs.
    """
    params, card, mark = read(folder)
    if card.kind not in ("dual", which):
        raise UserError(f"{folder}: holds a {card.kind} tower, model.{which}.weights needs {which}")
    found = card.architecture.get(which)
    if found != arch:
        raise UserError(f"{folder}: architecture {found}, but model.{which}.arch = {arch}")
    if which == "image":
        # Only a patch embedding with a bias can take the difference up.
        foldable = PATCH_BIAS in params
        remedy = FOLD if foldable else SET_STATISTICS
        _same(folder, "data", card.preprocessing, preprocessing, ("mean", "std"), remedy)
    else:
        _same(folder, "tokenizer", card.tokenizer, tokenizer, tuple(tokenizer))
    prefixes = TOWERS[which]
    held = {name: value for name, value in params.items() if name.startswith(prefixes)}
    wanted = {name: value.shape for name, value in targets.items() if name.startswith(prefixes)}
    for name in sorted(held.keys() | wanted.keys()):
        have = held[name].shape if name in held else "nothing"
        need = wanted.get(name, "nothing")
        if have != need:
            remedy = _context_remedy(have, need) if name == POSITIONS else ""
            raise UserError(f"{folder}: {name} is {have} in the folder and {need} in this model{remedy}")
    return Tower(held, mark, card.licence)


def _context_remedy(have: Any, need: Any) -> str:
    """What to do about two tables of positions that differ in nothing but their number."""
    if not (isinstance(have, tuple) and isinstance(need, tuple) and have[1:] == need[1:]):
        return ""
    said = f"; set model.text.context={have[0]}"
    return said + STRETCH.format(context=need[0]) if have[0] < need[0] else said


def stated_fingerprint(folder: str | Path) -> str:
    """The fingerprint that a folder's card states; `load` checks that the weights have it."""
    return json.loads((Path(folder) / CARD).read_text())["fingerprint"]


def extract(folder: str | Path, which: str, out: Path, licence: str | None = None) -> str:
    """Writes one tower (`image` or `text`) of a dual folder as a folder of its own. Returns its fingerprint.

    `licence` is for towers that were trained from nothing; others keep theirs.
    """
    params, card = load(folder)
    kept = ("image",) if which == "image" else ("text", "context", "embed_dim")
    architecture = {key: card.architecture[key] for key in kept}
    card = dataclasses.replace(card, kind=which, architecture=architecture, licence=licence or card.licence)
    return save(out, params, card)


def _same(
    folder: str | Path,
    where: str,
    card: Mapping[str, Any],
    run: Mapping[str, Any],
    keys: tuple[str, ...],
    remedy: str = "",
) -> None:
    for key in keys:
        ours = list(run[key]) if isinstance(run[key], tuple) else run[key]
        if card.get(key) != ours:
            raise UserError(
                f"{folder}: was made with {key} = {card.get(key)}, this run has {where}.{key} = {ours}{remedy}"
            )
