"""Format `chexpert`: CheXpert's `train.csv` and `valid.csv`, or its 500 test studies with `groundtruth.csv`.

The dataset has no reports, so a store of it is for evaluation: its texts are "". CheXpert-Plus (`chexpert_plus.py`)
has the reports of the same patients, under the same ids.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats import label_tables
from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.formats.paths import OUTSIDE, inside
from hybridclip_jax.data.formats.table import Table, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

NAMESPACE = "chexpert"
TABLES = ("train.csv", "valid.csv")
_COLUMNS = ("Path", "Frontal/Lateral", "AP/PA")
NO_IDENTITY = "path without patientN/studyN"
_ROOT = re.compile(r"^CheXpert-v1\.0[^/]*/")
_IMAGE = re.compile(r"(?:^|/)(?:(train|valid|test)/)?(patient\d+)/(study\d+)/([^/]+)$")
_OTHER_SPLIT = re.compile(r"(?:^|/)(train|valid)/patient\d+/")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")


class Identity(NamedTuple):
    """Who an image is, in the same words in CheXpert and CheXpert-Plus."""

    split: str
    patient: str  # "patient64741"
    study: str  # "patient64741/study1"
    id: str  # "test/patient64741/study1/view1_frontal"


def identity(path: str) -> Identity | None:
    """Who the image at .../train/patient00001/study1/view1_frontal.jpg is; None for another path."""
    match = _IMAGE.search(path)
    if match is None:
        return None
    split, patient, study, name = match.groups(default="")
    stem = name.rpartition(".")[0] or name
    return Identity(split, patient, f"{patient}/{study}", "/".join(filter(None, (split, patient, study, stem))))


def below_root(path: str) -> str:
    """A path of the tables without the root folder that its owners write, such as CheXpert-v1.0-small/."""
    return _ROOT.sub("", path.strip())


def view(frontal_lateral: str, ap_pa: str) -> str:
    """AP, PA, LL, RL where the tables say so, else FRONTAL or LATERAL."""
    return (ap_pa.strip() or frontal_lateral.strip()).upper()


def read(args: argparse.Namespace) -> Source:
    """Reads the tables in the folder `args.source`, or with `args.labels` that table's test studies alone.

    Raises:
        UserError: no table, a column missing, a label other than 1, 0, -1 and blank, or `args.labels` names images
            of train or valid.
    """
    source = Path(args.source)
    folder = Path(args.images) if args.images is not None else source if source.is_dir() else source.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    if args.labels is not None:
        return _read_test_set(folder, read_table(Path(args.labels)))
    tables = [read_table(path) for path in _find_tables(source)]
    last, ranges = 0, []
    for table in tables:
        ranges.append(f"{table.path.name} {last + 1} to {last + len(table.rows)}")
        last += len(table.rows)
    unused = [label_tables.unused(table, *table.positions(*_COLUMNS, *CHEXPERT_LABELS)) for table in tables]
    return _source(
        _Tables(tables, folder), last, {"rows": ", ".join(ranges), "columns not used": "; ".join(dict.fromkeys(unused))}
    )


FORMAT = Format(
    "chexpert",
    lambda parser: None,
    read,
    describe="CheXpert-v1.0[-small] with train.csv and valid.csv; its test studies with --labels groundtruth.csv."
    " It has no reports: for evaluation only",
    example="--source CheXpert-v1.0 --labels groundtruth.csv",
    paths=frozenset({"source", "images", "labels"}),
)


def _source(studies: _Tables | _TestSet, total: int, notes: dict[str, str]) -> Source:
    return Source(
        studies=studies,
        total=total,
        labels=CHEXPERT_LABELS,
        namespace=NAMESPACE,
        public_ids=False,
        synthetic=False,
        notes={"text": "none: CheXpert has no reports, so this store is for evaluation", **notes},
        text_optional=True,
    )


def _find_tables(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    found = [source / name for name in TABLES if (source / name).is_file()]
    if not found:
        raise UserError(
            f"{source} holds neither {' nor '.join(TABLES)}: give --source the folder CheXpert-v1.0 or"
            " CheXpert-v1.0-small, or for the test studies --labels groundtruth.csv"
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Tables:
    tables: list[Table]
    folder: Path

    def __iter__(self) -> Iterator[Study | Skip]:
        before = 0
        for table in self.tables:
            path, frontal, ap_pa = table.positions(*_COLUMNS)
            columns = label_tables.named(table)
            for row, cells in enumerate(table.rows, start=1):
                name = below_root(cells[path])
                who, file = identity(name), inside(self.folder, name)
                if file is None or who is None:
                    yield Skip(before + row, OUTSIDE if file is None else NO_IDENTITY)
                    continue
                labels = label_tables.values(table, row, columns)
                yield _study(before + row, who, view(cells[frontal], cells[ap_pa]), labels, file)
            before += len(table.rows)


def _read_test_set(folder: Path, table: Table) -> Source:
    key = table.position("Study")
    if key is None:
        key = table.position("Path")
    if key is None:
        raise UserError(f"{table.path}: no column 'Study' (groundtruth.csv) nor 'Path' to find the images by")
    for row, cells in enumerate(table.rows, start=1):
        if other := _OTHER_SPLIT.search(str(folder / below_root(cells[key]))):
            raise UserError(
                f"{table.path} row {row} is of the split {other[1]!r}, and --labels is for the test studies: leave it"
                " out to read train.csv and valid.csv from --source"
            )
    labels = label_tables.named(table)
    return _source(
        _TestSet(table, key, labels, folder),
        len(table.rows),
        {
            "test set": f"each {table.columns[key]} of {table.path.name}, with every image in its folder",
            "columns not used": label_tables.unused(table, key, *labels.values()),
        },
    )


@dataclasses.dataclass(frozen=True)
class _TestSet:
    table: Table
    key: int
    labels: dict[str, int]
    folder: Path

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, cells in enumerate(self.table.rows, start=1):
            name = below_root(cells[self.key])
            place = inside(self.folder, name)
            if place is None:
                yield Skip(row, OUTSIDE)
                continue
            files = _images(place) if not name.lower().endswith(_IMAGE_SUFFIXES) else [place]
            if not files:
                yield Skip(row, "no image of the study")
            labels = label_tables.values(self.table, row, self.labels)
            for file in files:
                who = identity(str(file))
                if who is None:
                    yield Skip(row, NO_IDENTITY)
                    continue
                side = next((side for side in ("frontal", "lateral") if side in file.stem.lower()), "")
                yield _study(row, who._replace(split="test"), side.upper(), labels, file)


def _images(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    except OSError:
        return []


def _study(row: int, who: Identity, seen_from: str, labels: dict[str, float | None], file: Path) -> Study:
    return Study(
        source_row=row,
        id=who.id,
        study=who.study,
        patient=who.patient,
        split=who.split,
        view=seen_from,
        text="",
        sections={},
        labels=labels,
        load_image=pixels.lazy(file),
    )
