"""Format `tfds`: a dataset that tensorflow_datasets prepared as ArrayRecord, read without tensorflow.

`--source` is the folder of one version (it holds dataset_info.json and features.json). Every split is read under
its name. One Image feature is the picture; scalar and text features are columns of a table (`columns.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.columns import ROLES, ROLES_BESIDE_IMAGES, Columns, add_flags, find_columns
from hybridclip_jax.data.formats.table import Table, as_text
from hybridclip_jax.data.study import Format, RecordError, Skip, Source, Study
from hybridclip_jax.errors import UserError

PREFIX = "tfds-"
FILE_FORMAT = "array_record"
_FLAG = f"--{PREFIX}image-column"
_INFO, _FEATURES = "dataset_info.json", "features.json"
_OWN_CLASSES = "tensorflow_datasets."


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(_FLAG, metavar="NAME", help="feature of the image, where there are several")
    add_flags(parser, ROLES_BESIDE_IMAGES, PREFIX)


def _read(args: argparse.Namespace) -> Source:
    folder = Path(args.source)
    builder = _builder(folder)
    features = _features(folder, builder.info.features, args.tfds_image_column)
    splits = {str(name): int(info.num_examples) for name, info in builder.info.splits.items()}
    if not sum(splits.values()):
        raise UserError(f"{folder} has no examples: prepare the dataset again")
    files = {split: _files(builder, split) for split in splits}
    table, places = _table(folder, files, features)
    columns = find_columns(table, args, ROLES_BESIDE_IMAGES, PREFIX)
    return Source(
        studies=_Studies(table, columns, places, folder, features.image),
        total=len(table.rows),
        labels=tuple(columns.labels),
        text_optional=columns.text_optional,
        namespace=f"tfds:{builder.name}",
        public_ids=False,
        synthetic=False,
        notes={
            "rows": "the records of "
            + ", ".join(f"{name} ({count})" for name, count in splits.items())
            + ", counted through",
            "image": f"feature {features.image!r}",
            **columns.notes,
            **({} if "split" in features.plain else {"split": "as prepared"}),
            "features not used": ", ".join(features.unused) or "none",
        },
    )


FORMAT = Format(
    "tfds",
    _add_arguments,
    _read,
    describe="a dataset prepared by tensorflow_datasets as ArrayRecord (no tensorflow needed)",
    example="--source tensorflow_datasets/my_cxr/1.0.0",
    paths=frozenset({"source"}),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    split: str
    index: int
    file: Path  # of the split's files the one that holds it
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class _Studies:
    table: Table
    columns: Columns
    places: list[_Place]
    folder: Path
    image: str

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, (cells, place) in enumerate(zip(self.table.rows, self.places, strict=True), start=1):
            if place.fault:
                yield Skip(row, place.fault)
            else:
                load_image = functools.partial(
                    open_record, self.folder, place.split, place.index, self.image, place.file
                )
                yield self.columns.study(row, cells, f"{place.split} {place.index}", load_image)


def open_record(folder: Path, split: str, index: int, image: str, file: Path) -> PIL.Image.Image:
    """The image of one record, by our rules and not by those of tensorflow_datasets; raises RecordError.

    `file` holds the record, and is named only so that a change of it is noticed.
    """
    try:
        raw = _records(folder, split, image)[index][image]
    except Exception as error:  # its readers raise what they like
        raise RecordError("damaged record") from error
    return pixels.open_bytes(raw)


@functools.lru_cache(maxsize=1)
def _records(folder: Path, split: str, image: str) -> Any:
    import tensorflow_datasets

    skip = {image: tensorflow_datasets.decode.SkipDecoding()}
    return _builder(folder).as_data_source(split, decoders=skip)


def _builder(folder: Path) -> Any:
    described = {name: _described(folder, name) for name in (_INFO, _FEATURES)}
    info = described[_INFO]
    others = info.get("alternativeFileFormats")
    if info.get("fileFormat") != FILE_FORMAT and FILE_FORMAT not in (others if isinstance(others, list) else []):
        raise UserError(
            f"{folder} is not prepared as ArrayRecord, and other forms only tensorflow reads: prepare it again with"
            f" file_format={FILE_FORMAT!r}"
        )
    strange = sorted(name for name in _class_names(described[_FEATURES]) if not name.startswith(_OWN_CLASSES))
    if strange:  # tensorflow_datasets would import the module that the file names
        raise UserError(
            f"{folder / _FEATURES}: {strange[0]!r} is no feature of tensorflow_datasets and is not imported"
        )
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(f"--format tfds needs the package tensorflow-datasets ({error}): install it") from error
    try:
        return tensorflow_datasets.builder_from_directory(str(folder), file_format=FILE_FORMAT)
    except Exception as error:  # as varied as the ways in which the two files can be wrong
        raise UserError(
            f"{folder}: tensorflow_datasets cannot read its {_INFO} and {_FEATURES} ({type(error).__name__}):"
            " prepare the dataset again"
        ) from error


def _described(folder: Path, name: str) -> dict[str, Any]:
    try:
        said = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        inner = sorted(path.parent for path in folder.glob(f"*/*/{_INFO}")) or sorted(
            path.parent for path in folder.glob(f"*/{_INFO}")
        )
        hint = f"; perhaps {inner[-1]}" if inner else ""
        raise UserError(f"{folder} has no {name}: give --source the folder of a prepared version{hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / name} cannot be read: prepare the dataset again") from error
    if not isinstance(said, dict):
        raise UserError(f"{folder / name} is not an object: prepare the dataset again")
    return said


def _class_names(said: object) -> Iterator[str]:
    """Every pythonClassName in features.json, however deep."""
    waiting = [said]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "pythonClassName" in value:
                yield str(value["pythonClassName"])
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


@dataclasses.dataclass(frozen=True)
class _Features:
    """Names of the features by what they are read as."""

    image: str
    plain: tuple[str, ...]  # columns of the table
    classes: frozenset[str]  # those of `plain` that are class labels
    unused: tuple[str, ...]


def _features(folder: Path, features: Mapping[str, Any], named: str | None) -> _Features:
    from tensorflow_datasets import features as kinds

    names = sorted(features)  # tensorflow_datasets gives them in another order in each process
    images = [name for name in names if type(features[name]) is kinds.Image]
    listing = ", ".join(names)
    if not images:
        raise UserError(f"{folder} has no image feature. It has {listing}")
    if named is not None and named not in images:
        raise UserError(f"{folder} has no image feature {named!r} ({_FLAG}). It has {listing}")
    usual = [name for name in images if name.lower() in ROLES["image"]] if len(images) > 1 else images
    if named is None and len(usual) != 1:
        raise UserError(f"{folder}: features {', '.join(images)} could each be the image: name one with {_FLAG}")
    image = named or usual[0]
    plain = tuple(name for name in names if isinstance(features[name], kinds.Tensor) and features[name].shape == ())
    classes = frozenset(name for name in plain if isinstance(features[name], kinds.ClassLabel))
    return _Features(image, plain, classes, tuple(name for name in names if name not in (*plain, image)))


def _files(builder: Any, split: str) -> list[Path]:
    """For each record of a split the file that holds it."""
    parts = [(Path(part.filename), part.take) for part in builder.info.splits[split].file_instructions]
    return [file for file, count in parts for _ in range(count)]


def _table(folder: Path, files: dict[str, list[Path]], features: _Features) -> tuple[Table, list[_Place]]:
    add_split = "split" not in features.plain
    rows: list[list[str]] = []
    places: list[_Place] = []
    for split, held_by in files.items():
        for index, file in enumerate(held_by):
            try:
                record = _records(folder, split, features.image)[index]
            except Exception as error:  # its readers raise what they like
                raise UserError(
                    f"{folder}: split {split} is damaged at record {index + 1}: copy it or prepare it again"
                ) from error
            cells, fault = _cells(record, features)
            rows.append(cells + [split] * add_split)
            places.append(_Place(split, index, file, fault))
    return Table(folder, (*features.plain, *["split"] * add_split), rows), places


def _cells(record: Mapping[str, Any], features: _Features) -> tuple[list[str], str]:
    """The cells of one record, and why it cannot be used ("" if it can)."""
    cells: list[str] = []
    fault = ""
    for name in features.plain:
        value = record[name]
        if name in features.classes and value == -1:
            value = None  # the class is not known, which is not the same as uncertain
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                value, fault = None, "text that is not UTF-8"
        cells.append(as_text(value))
    return cells, fault
