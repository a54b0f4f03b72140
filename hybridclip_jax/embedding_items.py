"""What is to be embedded: the images of a store, image files, or texts. Each comes in parts that fill one batch."""

# N items, M of them in one part, B batch, S image side, C channels, T tokens, X whatever an encoder reads

from __future__ import annotations

import abc
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from hybridclip_jax.data import pixels, transforms
from hybridclip_jax.data.encoding import SIDE
from hybridclip_jax.data.formats.table import SUFFIXES, read_table
from hybridclip_jax.data.loader import eval_images, width_for
from hybridclip_jax.data.workers import Pixels, decode_all, file_state
from hybridclip_jax.errors import UserError
from hybridclip_jax.inference import LoadedModel

LINES = ".txt"
COLUMN = "text"


@dataclasses.dataclass(frozen=True)
class Part:
    """The next items in the order of work.

    place_M: of those that can be embedded, their places among the N. value_BxX: what the encoder reads, filled up
    behind them. skipped: place and reason of the others.
    """

    place_M: np.ndarray
    value_BxX: np.ndarray
    skipped: list[tuple[int, str]] = dataclasses.field(default_factory=list)


class Items(abc.ABC):
    """N items. id_N: their names in the output. source_row_N: int64, where each stands in its source.

    fingerprint: equal for equal inputs, in the same order.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]  # in the singular
    synthetic = False
    id_N: np.ndarray
    source_row_N: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.id_N)

    @abc.abstractmethod
    def parts(self, model: LoadedModel, start: int) -> Generator[Part, None, None]:
        """Everything behind the first `start` items of an order of work that does not depend on the batch size."""


class StoreImages(Items):
    """The images of one split of a store, under its keyed ids."""

    kind, unit = "store", "image"

    def __init__(self, model: LoadedModel, spec: str) -> None:
        """Raises UserError as Store.open does, and where the model was trained on pixels prepared otherwise."""
        self._store = model.preparation().open_store(spec)
        self.id_N = np.array(self._store.ids)
        self.source_row_N = self._store.source_rows
        self.fingerprint = f"{self._store.fingerprint}:{self._store.split}"
        self.synthetic = self._store.synthetic

    def parts(self, model: LoadedModel, start: int) -> Generator[Part, None, None]:
        rows = np.arange(start, len(self))
        for image_BxSxSxC, valid in eval_images(self._store, model.preprocessing.size, model.batch_size, rows):
            yield Part(np.arange(start, start + valid), image_BxSxSxC)
            start += valid


class ImageFiles(Items):
    """Image files, DICOM among them, in the order of their paths; source rows count from 1 in that order.

    Ids are the paths below `folder`, the deepest folder that no pattern leaves open. They may name patients: they go
    into the file that the user asked for, and nowhere else.
    """

    kind, unit = "images", "image"

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises UserError where a pattern matches no file."""
        chosen = {path for place in range(len(patterns)) for path in _matches(patterns, place)}
        self._paths = sorted(chosen)
        folder = os.path.commonpath([_folder(pattern) for pattern in patterns])
        names = [path.relative_to(folder).as_posix() for path in self._paths]
        self.id_N = np.array(names)
        self.source_row_N = np.arange(1, len(names) + 1)
        digest = hashlib.sha256()
        for name, path in zip(names, self._paths, strict=True):
            digest.update(os.fsencode(f"{name}\0{file_state(path)}\n"))
        self.fingerprint = digest.hexdigest()

    def parts(self, model: LoadedModel, start: int) -> Generator[Part, None, None]:
        card, size = model.preprocessing, model.preprocessing.size
        tasks = ((pixels.lazy(path), "") for path in self._paths[start:])
        how = Pixels(card.channels, card.resize, "raw")
        with contextlib.closing(decode_all(tasks, len(self) - start, how)) as results:
            while chunk := list(itertools.islice(results, model.batch_size)):
                image_BxSxSxC = np.zeros((model.batch_size, size, size, card.channels), np.uint8)
                places, skipped = list[int](), list[tuple[int, str]]()
                for n, (done, raw) in enumerate(chunk, start):
                    if done.reason:
                        skipped.append((n, done.reason))
                        continue
                    stored = np.frombuffer(raw, np.uint8).reshape(SIDE, SIDE, card.channels)
                    transforms.resize(stored, image_BxSxSxC[len(places)])
                    places.append(n)
                yield Part(np.array(places, int), image_BxSxSxC, skipped)
                start += len(chunk)


class Texts(Items):
    """Texts of a file: its lines (.txt), or the column `text` of a table. Ids are the source rows, from 1.

    truncated: how many are cut at the model's context. blank: how many hold nothing; they keep their rows, so that
    row and line stay together, with the embedding of an empty text.
    """

    kind, unit = "texts", "text"

    def __init__(self, model: LoadedModel, path: Path, progress: Callable[[str, int, int], None]) -> None:
        """Raises UserError for a file that cannot be read, holds nothing, or is of another kind than these."""
        texts = _texts(path)
        self.blank = sum(not text.strip() for text in texts)
        self.source_row_N = np.arange(1, len(texts) + 1)
        self.id_N = self.source_row_N.astype(str)
        digest, self._encoded = hashlib.sha256(), list[np.ndarray]()
        for n, text in enumerate(texts, start=1):
            digest.update(f"{len(text)} {text}\n".encode())
            self._encoded.append(np.array(model.tokenizer.encode(text), np.uint16))
            progress("tokens", n, len(texts))
        self.fingerprint = digest.hexdigest()
        length_N = np.array([len(ids) + 2 for ids in self._encoded])  # with start and end token
        self.truncated = int((length_N > model.context).sum())
        self._width_N = np.array([width_for(length, model.context) for length in length_N])

    def parts(self, model: LoadedModel, start: int) -> Generator[Part, None, None]:
        # By width: what a text is encoded with must leave its last digits alone, and padding costs time.
        order = np.argsort(self._width_N, kind="stable")[start:]
        for width in np.unique(self._width_N[order]):
            same = order[self._width_N[order] == width]
            for first in range(0, len(same), model.batch_size):
                place_M = same[first : first + model.batch_size]
                filled_B = np.resize(place_M, model.batch_size)
                yield Part(place_M, model.tokenizer.frame([self._encoded[n] for n in filled_B], int(width)).ids)


def _texts(path: Path) -> list[str]:
    if path.suffix.lower() != LINES:
        inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
        if inner.suffix.lower() not in SUFFIXES:
            raise UserError(f"--texts {path}: must be {LINES}, one text a line, or a table: {', '.join(SUFFIXES)}")
        table = read_table(path)
        (column,) = table.positions(COLUMN)
        return [row[column] for row in table.rows]
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # a line may hold what splitlines() splits at
    except OSError as error:
        raise UserError(f"--texts {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--texts {path}: not UTF-8 (byte {error.start}): save it again as UTF-8") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"--texts {path}: holds no text")
    return [line.removesuffix("\r") for line in lines]


def _matches(patterns: Sequence[str], place: int) -> list[Path]:
    pattern = patterns[place]
    # A shell that expanded the pattern names files here, and with them perhaps patients.
    said = f"--images {pattern}" if len(patterns) == 1 else f"--images: place {place + 1} of {len(patterns)}"
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isdir(path):
        raise UserError(f"{said}: is a folder; give a pattern of files in quotes, such as 'FOLDER/**/*.png'")
    if os.path.lexists(path):
        return [Path(path)]
    if "**" in path:
        _refuse_closed_folders(said, _folder(pattern))
    # Each file once, by its shortest name: through a link that leads upwards a pattern finds the same ones again.
    names = sorted(glob.glob(path, recursive=True), key=lambda one: (one.count(os.sep), one), reverse=True)
    found = {os.path.realpath(one): Path(one) for one in names}
    files = [one for one in found.values() if not one.is_dir()]
    if not files:
        raise UserError(
            f"{said}: matches no file; give a pattern in quotes, such as 'FOLDER/**/*.png' ([ and ] choose characters: "
            "write [[] for the bracket itself)"
        )
    return files


def _refuse_closed_folders(said: str, folder: str) -> None:
    """UserError where folders below cannot be looked into: a pattern would pass over them without a word."""
    closed: list[OSError] = []
    for _ in os.walk(folder, onerror=closed.append):
        pass
    if closed:
        raise UserError(f"{said}: {len(closed)} folders below it cannot be read: mend their rights, or name the others")


def _folder(pattern: str) -> str:
    """The deepest folder that the pattern leaves no choice of."""
    path = os.path.abspath(os.path.expanduser(pattern))
    while glob.has_magic(path) and not os.path.lexists(path):
        path = os.path.dirname(path)
    return path if os.path.isdir(path) else os.path.dirname(path)
