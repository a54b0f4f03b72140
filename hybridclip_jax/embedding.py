"""Embeddings of many images or texts in one .npz file, made in batches so that a killed run goes on where it was.

OUT.npz           uncompressed; np.load(OUT, allow_pickle=False) reads it: `embedding` float32 [M, E], L2-normalised,
                  `id` [M], `source_row` int64 [M], and `card`, a JSON string: model, preprocessing, input, what was
                  left out, versions
OUT.npz.partial   while it is made: the embeddings so far, memory-mapped, and progress.json, which names no id
"""

# N items, M of them embedded, B batch, E embedding

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridclip_jax.data.locks import only_one
from hybridclip_jax.data.prepare import CAP_FROM_ROWS
from hybridclip_jax.embedding_items import Items, Part
from hybridclip_jax.errors import RunStopped, StorageError, UserError
from hybridclip_jax.inference import LoadedModel
from hybridclip_jax.rundir import read_json, write_json

FORMAT = 1
SUFFIX = ".npz"
SAVE_EVERY_S = 1.0  # what a kill may cost
_LIBRARIES = ("hybridclip-jax", "jax", "flax", "numpy", "pillow", "pydicom")
_SHOWN_ROWS = 8
_UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(zipfile.BadZipFile, struct.error),
)
_EMBEDDING, _PROGRESS, _WHOLE = "embedding.npy", "progress.json", "whole.npz"
_OWN = (_EMBEDDING, _PROGRESS, f"{_PROGRESS}.partial", _WHOLE)

Progress = Callable[[str, int, int], None]  # label, done, total


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What a file holds. `embedding` float32 [M, E] stays on the disk, memory-mapped and read-only."""

    embedding: np.ndarray
    id: np.ndarray
    source_row: np.ndarray
    card: dict[str, Any]


def read(path: str | Path) -> Embeddings:
    """A file that `embed` wrote. Raises UserError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, rows, card = file["id"], file["source_row"], json.loads(str(file["card"]))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']}, and this program reads {FORMAT}")
        return Embeddings(_mapped(Path(path)), ids, rows, card)
    except _UNREADABLE as error:
        raise UserError(f"{path}: not embeddings that this program can read: {error}") from error


def _mapped(path: Path) -> np.ndarray:
    """The array `embedding` where it lies in the file; np.load maps no member of an archive."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(_EMBEDDING).header_offset
    with path.open("rb") as file:
        # 26 bytes into the member's header: the lengths of its name and of its extra field (PKWARE APPNOTE 4.3.7).
        file.seek(start + 26)
        file.seek(start + 30 + sum(struct.unpack("<HH", file.read(4))))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of `read` items: `skipped` has the source row and the reason of each that was left out."""

    read: int
    skipped: list[tuple[int, str]]


def check_out(out: Path) -> None:
    """Raises UserError for what cannot become a file of embeddings."""
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: must end in {SUFFIX}")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file")


def embed(
    model: LoadedModel,
    items: Items,
    out: Path,
    *,
    max_skipped: float = 0.01,
    progress: Progress = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Writes the embeddings of `items` to `out`, which appears whole or not at all.

    The same call again goes on from what a killed one left, also with another batch size or on other devices. What
    is complete already is left as it is.

    Raises:
        UserError: `out` cannot be written or is something else, another embed is writing it, no image can be read,
            or from CAP_FROM_ROWS images on more than the share `max_skipped` cannot.
        RunStopped: an embedding is not finite.
        StorageError: the disk refuses.
    """
    check_out(out)
    card = _card(model, items)
    busy = f"another embed is writing {out}: wait for it, or name another --out"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with only_one(out.with_name(out.name + ".lock"), busy):
            if out.exists():
                skipped = _earlier(out, card)
                _remove(_partial_folder(out))  # of an attempt killed at its very end
                say(f"{out} is complete already: nothing was done")
                return Outcome(len(items), skipped)
            with _Partial(out, card, (len(items), int(model.card.architecture["embed_dim"]))) as partial:
                if partial.done:
                    say(f"going on behind {partial.done} of {len(items)} {items.unit}s that an earlier attempt left")
                elif partial.found:
                    say("starting over: what an earlier attempt left is of another model, input or version")
                _check_skipped(items, partial, max_skipped)
                for part, embedding_BxE in _encoded(model, items, partial.done):
                    _refuse_nonfinite(items, part, embedding_BxE)
                    partial.put(part, embedding_BxE)
                    _check_skipped(items, partial, max_skipped)
                    progress("embed", partial.done, len(items))
                partial.finish(items)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
    return Outcome(len(items), _by_source_row(items, partial.skipped))


def _card(model: LoadedModel, items: Items) -> dict[str, Any]:
    """All that the embeddings depend on. Kept beside them, it tells one piece of work from another."""
    made_of = {
        "format": FORMAT,
        "model": {
            "fingerprint": model.fingerprint,
            "kind": model.card.kind,
            "architecture": model.card.architecture,
            "licence": model.card.licence,
        },
        "preprocessing": model.card.preprocessing,
        "tokenizer": model.card.tokenizer,
        "context": model.context,
        "input": {"kind": items.kind, "fingerprint": items.fingerprint, "count": len(items)},
        "synthetic": model.synthetic or items.synthetic,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    return json.loads(json.dumps(made_of))  # as it is read back: comparable


def _earlier(out: Path, card: dict[str, Any]) -> list[tuple[int, str]]:
    """What the complete file `out` left out. Raises UserError where it was made of anything else."""
    remedy = "remove it, or name another --out"
    try:
        found = read(out).card
        skipped = [(int(one["source_row"]), str(one["reason"])) for one in found["skipped"]]
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{out} is there already, and holds no embeddings this program can read: {remedy}") from error
    if differs := [_differs(key, found.get(key), card[key]) for key in card if found.get(key) != card[key]]:
        raise UserError(f"{out} is there already, made with {', '.join(differs)}: {remedy}")
    return skipped


def _differs(key: str, earlier: Any, now: Any) -> str:
    if key != "versions" or not isinstance(earlier, dict):
        return f"another {key}"
    changed = [name for name in now if earlier.get(name) != now[name]]
    return ", ".join(f"{name} {earlier.get(name, 'unknown')} (now {now[name]})" for name in changed) or "other versions"


def _partial_folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _remove(folder: Path) -> None:
    """Only what is embed's own: another may have kept files of his under that name."""
    with contextlib.suppress(OSError):
        for name in _OWN:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _encoded(model: LoadedModel, items: Items, start: int) -> Generator[tuple[Part, np.ndarray], None, None]:
    """Each part and its embeddings [B, E]. The host makes the next part ready while the devices work at this one."""
    encode = model.encoders.texts if items.kind == "texts" else model.encoders.images
    waiting: list[tuple[Part, Any]] = []
    with contextlib.closing(items.parts(model, start)) as parts:
        for part in parts:
            waiting.append((part, encode(model.params, part.value_BxX)))
            if len(waiting) == 2:
                earlier, embedding = waiting.pop(0)
                yield earlier, np.asarray(embedding)
    for part, embedding in waiting:
        yield part, np.asarray(embedding)


def _refuse_nonfinite(items: Items, part: Part, embedding_BxE: np.ndarray) -> None:
    finite_M = np.isfinite(embedding_BxE[: len(part.place_M)]).all(axis=1)
    if not finite_M.all():
        row = items.source_row_N[part.place_M[np.argmin(finite_M)]]
        raise RunStopped(f"row {row}: the model gives an embedding that is not finite: its weights are no use")


def _check_skipped(items: Items, partial: _Partial, most: float) -> None:
    left_out, total = len(partial.skipped), len(items)
    too_many = total >= CAP_FROM_ROWS and left_out > most * total
    if left_out < total and not too_many:
        return
    why = reasons(_by_source_row(items, partial.skipped))
    if left_out == total:
        raise UserError(f"none of the {total} {items.unit}s can be read ({why})")
    raise UserError(
        f"{left_out} of the first {partial.done} of {total} {items.unit}s cannot be read, above --max-skipped {most:g} "
        f"({why}): allow more with --max-skipped, which goes on from here, or mend the files and start anew"
    )


def reasons(skipped: Sequence[tuple[int, str]]) -> str:
    """Row numbers by reason, in words."""
    by_reason: dict[str, list[int]] = {}
    for row, reason in skipped:
        by_reason.setdefault(reason, []).append(row)
    return "; ".join(
        f"{reason}: row {', '.join(map(str, rows[:_SHOWN_ROWS]))}" + (", ..." if len(rows) > _SHOWN_ROWS else "")
        for reason, rows in by_reason.items()
    )


def _by_source_row(items: Items, skipped: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(int(items.source_row_N[n]), reason) for n, reason in skipped]


class _Partial:
    """The folder of the work so far. found: whether an earlier attempt left one.

    done: how many items are, in the order of work. skipped: places of those of them left out, and why.
    """

    def __init__(self, out: Path, card: dict[str, Any], shape: tuple[int, int]) -> None:
        self.folder, self._out, self._card = _partial_folder(out), out, card
        self.done, self.skipped, self._saved_s = 0, list[tuple[int, str]](), time.monotonic()
        self.folder.mkdir(exist_ok=True)
        if {path.name for path in self.folder.iterdir()} - set(_OWN):
            raise UserError(f"{self.folder} holds files that embed did not write: move them, or name another --out")
        self.found = (self.folder / _PROGRESS).exists()
        earlier = self._earlier(shape)
        self._embedding_NxE = self._fresh(shape) if earlier is None else earlier

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None and self.done:
            with contextlib.suppress(OSError, StorageError):  # the disk may be what stopped the work
                self._save()

    def _earlier(self, shape: tuple[int, int]) -> np.memmap | None:
        try:
            left = read_json(self.folder / _PROGRESS)
            # Refuses a file cut short, which numpy would lengthen where it is opened to be written.
            made = np.load(self.folder / _EMBEDDING, mmap_mode="r")
            if left["card"] != self._card or (made.shape, made.dtype) != (shape, np.float32):
                return None
            done, skipped = left["done"], [(n, str(reason)) for n, reason in left["skipped"]]
            places = [n for n, _ in skipped]
            whole = all(type(n) is int for n in (done, *places))
            if not (
                whole and len(set(places)) == len(places) <= done <= shape[0] and set(places) <= set(range(shape[0]))
            ):
                return None
            self.done, self.skipped = done, skipped
        except (OSError, EOFError, ValueError, LookupError, TypeError):
            return None
        return np.lib.format.open_memmap(self.folder / _EMBEDDING, "r+")

    def _fresh(self, shape: tuple[int, int]) -> np.memmap:
        (self.folder / _PROGRESS).unlink(missing_ok=True)  # first, as it speaks of the file that is now made anew
        mapped = np.lib.format.open_memmap(self.folder / _EMBEDDING, "w+", np.float32, shape)
        with (self.folder / _EMBEDDING).open("r+b") as file:
            # Taken now: where the disk fills up later, a mapped page ends the process without a word.
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return mapped

    def put(self, part: Part, embedding_BxE: np.ndarray) -> None:
        self._embedding_NxE[part.place_M] = embedding_BxE[: len(part.place_M)]
        self.skipped += part.skipped
        self.done += len(part.place_M) + len(part.skipped)
        if time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        self._embedding_NxE.flush()
        write_json(self.folder / _PROGRESS, {"card": self._card, "done": self.done, "skipped": self.skipped})
        self._saved_s = time.monotonic()

    def finish(self, items: Items) -> None:
        """Makes the file and removes the folder."""
        self._save()
        kept = np.ones(len(items), bool)
        kept[[n for n, _ in self.skipped]] = False
        skipped = [
            {"source_row": int(items.source_row_N[n]), "id": str(items.id_N[n]), "reason": reason}
            for n, reason in self.skipped
        ]
        with (self.folder / _WHOLE).open("wb") as file:
            np.savez(
                file,
                # The mapping itself, which is written in pieces, where nothing has to be left out.
                embedding=self._embedding_NxE if kept.all() else self._embedding_NxE[kept],
                id=items.id_N[kept],
                source_row=items.source_row_N[kept],
                card=np.array(json.dumps({**self._card, "skipped": skipped}, sort_keys=True)),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.folder / _WHOLE, self._out)
        _remove(self.folder)
