"""Format `chexzero`: an HDF5 file of images and a CSV of impressions in the same order, as CheXzero makes them.

Row i of one belongs to row i of the other: the counts must be equal, and wherever two files name the studies,
the names must agree row by row.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from hybridclip_jax.data.formats import chexpert, hdf5, label_tables, mimic_cxr
from hybridclip_jax.data.formats.columns import plain_id
from hybridclip_jax.data.formats.table import Table, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

_PATHS = "cxr_paths.csv"  # CheXzero's list of the image files, column "Path"
_TEXT = "impression"
_NAMES = ("filename", "image_path", "path", "study", "study_id")
_PATIENTS = ("patient_id", "deid_patient_id", "subject_id")
_OTHERS = ("findings", "report", "split")
# Only these: what follows the last dot of a DICOM UID tells one image from the next.
_SUFFIX = re.compile(r"(?<=[^/])\.(?:jpe?g|png|dcm|tiff?|txt)$", re.IGNORECASE)


def read(args: argparse.Namespace) -> Source:
    """Reads the HDF5 file `args.source`; the texts from `args.reports` or the one CSV beside it with a column
    impression; ids from cxr_paths.csv beside it when there; labels from `args.labels`. With labels and no CSV of
    impressions it is an evaluation set without texts.

    Raises:
        UserError: the HDF5 file (`hdf5.find_images`), no CSV of impressions or several, counts that differ, or
            rows whose names do not agree.
    """
    images = hdf5.find_images(Path(args.source))
    reports = _find_reports(images, args.reports, args.labels is not None)
    labels = read_table(Path(args.labels)) if args.labels is not None else None
    beside = images.path.parent / _PATHS
    paths = read_table(beside) if beside.is_file() else None
    for table in (reports, labels, paths):
        _check_count(images, table)
    names = {table.path: _names(table) for table in (paths, reports, labels) if table is not None}
    order = _check_order({path: found for path, found in names.items() if found is not None})
    who = _identify(images, next((found for found in names.values() if found is not None), None), reports)
    label_columns = _label_columns(labels) if labels is not None else {}
    notes = {
        "images": f"{images.dataset!r} {list(images.shape)} {images.dtype}",
        "texts": reports.path.name if reports is not None else "none: an evaluation set",
        "labels": f"{labels.path.name}: {', '.join(label_columns)}" if labels is not None else "none",
        "pairing": f"by position; {order}",
        "patient": who.note,
        "columns not used": _unused(reports),
    }
    if images.cost_note:
        notes["cost"] = images.cost_note
    return Source(
        studies=_Studies(images, who, reports, labels, label_columns),
        total=images.shape[0],
        labels=tuple(label_columns),
        namespace=who.namespace,
        public_ids=False,
        synthetic=False,
        notes=notes,
        text_optional=reports is None,
    )


FORMAT = Format(
    "chexzero",
    lambda parser: None,
    read,
    describe="CheXzero's HDF5 file of images with a CSV of impressions in the same order",
    example="--source data/cxr.h5 --reports data/mimic_impressions.csv",
    paths=frozenset({"source", "reports", "labels"}),
    text="impression",
)


def _find_reports(images: hdf5.Images, named: str | None, has_labels: bool) -> Table | None:
    if named is not None:
        table = read_table(Path(named))
        if _column(table, _TEXT) is None:
            table.positions(_TEXT)
        return table
    found = [path for path in sorted(images.path.parent.glob("*.csv")) if _TEXT in _header(path)]
    if not found and has_labels:
        return None
    if len(found) != 1:
        listed = f"{len(found)} CSV files ({', '.join(path.name for path in found)}) have" if found else "no CSV has"
        raise UserError(f"{images.path.parent}: {listed} a column {_TEXT!r}: name the one of this file with --reports")
    return read_table(found[0])


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first = next(csv.reader([file.readline(100_000)]), [])
    except (OSError, csv.Error):
        return []
    return [name.strip().lower() for name in first]


def _check_count(images: hdf5.Images, table: Table | None) -> None:
    if table is not None and len(table.rows) != images.shape[0]:
        raise UserError(
            f"{images.path} has {images.shape[0]} images and {table.path} has {len(table.rows)} rows: they are paired"
            " by position, so the counts must be equal; if the table is another file's, name the right one or move it"
        )


def _label_columns(table: Table) -> dict[str, int]:
    key = _column(table, *_NAMES)
    return label_tables.all_labels(table, *([] if key is None else [key]))


def _column(table: Table, *names: str) -> int | None:
    """The first of `names` that is a column, in any case."""
    folded = {name.lower(): i for i, name in reversed(list(enumerate(table.columns)))}
    return next((folded[name] for name in names if name in folded), None)


def _names(table: Table) -> list[str] | None:
    """What the table calls the image or study of each row, without root folder and suffix; None when nothing."""
    column = _column(table, *_NAMES)
    if column is None:
        return None
    paths = (PurePosixPath(chexpert.below_root(plain_id(cells[column]))) for cells in table.rows)
    return [_SUFFIX.sub("", str(path)) for path in paths]


def _check_order(names: dict[Path, list[str]]) -> str:
    """Says what was compared; UserError where two tables name different studies in one row."""
    if len(names) < 2:
        return "no second table names the studies, so the order could not be checked"
    (first, ours), *others = names.items()
    agreeing = [first]
    for other, theirs in others:
        apart = [row for row, pair in enumerate(zip(ours, theirs, strict=True), start=1) if not _one_study(*pair)]
        if not apart:
            agreeing.append(other)
            continue
        known = {part for name in ours for part in PurePosixPath(name).parts}
        if len(apart) == len(ours) and known.isdisjoint(PurePosixPath(name).name for name in theirs):
            continue  # they name studies in different ways
        raise UserError(
            f"{other} row {apart[0]} names another study than {first.name} row {apart[0]} ({len(apart)} such rows):"
            " they are paired by position, so both must be in the order of the images"
        )
    said = ", ".join(path.name for path in agreeing)
    unlike = ", ".join(path.name for path in names if path not in agreeing)
    checked = f"the names in {said} agree row by row" if len(agreeing) > 1 else ""
    unchecked = (
        f"{unlike} names studies in another way than {first.name}, so its order could not be checked" if unlike else ""
    )
    return "; ".join(filter(None, (checked, unchecked)))


def _one_study(a: str, b: str) -> bool:
    return f"/{a}/" in f"/{b}/" or f"/{b}/" in f"/{a}/"


@dataclasses.dataclass(frozen=True)
class _Identities:
    ids: Sequence[str]
    studies: Sequence[str]
    patients: Sequence[str]
    patient_known: Sequence[bool]
    splits: Sequence[str]
    namespace: str
    note: str


def _identify(images: hdf5.Images, names: list[str] | None, reports: Table | None) -> _Identities:
    count = images.shape[0]
    namespace = f"chexzero:{images.path.parent.resolve().name}"
    splits = _cells(reports, "split") or [""] * count
    # A suffix again, or what follows the last dot of a name would be taken for one.
    mimic = [mimic_cxr.identity(f"{name}.jpg") for name in names or []]
    # groundtruth.csv names the study and no image.
    stanford = [
        chexpert.identity(f"{name}.jpg") or chexpert.identity(f"{name}/row {row}")
        for row, name in enumerate(names or [], start=1)
    ]
    for whose, known in ((mimic_cxr.NAMESPACE, mimic), (chexpert.NAMESPACE, stanford)):
        found = [who for who in known if who is not None]
        if found and len(found) == count:
            return _Identities(
                [who.id for who in found],
                [who.study for who in found],
                [who.patient for who in found],
                [True] * count,
                splits,
                whose,
                f"as {whose} names them",
            )
    ids = [f"{images.path.name} {row}" for row in range(1, count + 1)]  # a study's name repeats for each view
    studies = names or ids
    patients = next((cells for name in _PATIENTS if (cells := _cells(reports, name))), None)
    if patients is not None:
        patients = [plain_id(cell) for cell in patients]
        named = [patient != "" for patient in patients]
        patients = _filled(patients, studies)
        return _Identities(ids, studies, patients, named, splits, namespace, "from the table of texts")
    note = "unknown: each study counts as its own patient, so what is checked by patient is checked by study only"
    return _Identities(ids, studies, studies, [False] * count, splits, namespace, note)


def _cells(table: Table | None, name: str) -> list[str] | None:
    column = _column(table, name) if table is not None else None
    return [cells[column].strip() for cells in table.rows] if table is not None and column is not None else None


def _filled(values: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    return [value or other for value, other in zip(values, otherwise, strict=True)]


def _unused(reports: Table | None) -> str:
    if reports is None:
        return "none"
    return label_tables.unused(reports, *(_column(reports, name) for name in (_TEXT, *_NAMES, *_PATIENTS, *_OTHERS)))


@dataclasses.dataclass(frozen=True)
class _Studies:
    images: hdf5.Images
    who: _Identities
    reports: Table | None
    labels: Table | None
    label_columns: dict[str, int]

    def __iter__(self) -> Iterator[Study | Skip]:
        texts = {name: _cells(self.reports, name) for name in (_TEXT, "findings", "report")}
        for row in range(1, self.images.shape[0] + 1):
            said = {name: cells[row - 1] for name, cells in texts.items() if cells is not None and cells[row - 1]}
            yield Study(
                source_row=row,
                id=self.who.ids[row - 1],
                study=self.who.studies[row - 1],
                patient=self.who.patients[row - 1],
                patient_known=self.who.patient_known[row - 1],
                split=self.who.splits[row - 1],
                view="",
                text=said.pop("report", said.get(_TEXT, "")),
                sections=said,
                labels=label_tables.values(self.labels, row, self.label_columns) if self.labels is not None else {},
                load_image=self.images.load(row - 1),
            )
