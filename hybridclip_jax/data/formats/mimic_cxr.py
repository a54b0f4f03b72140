"""Format `mimic-cxr`: MIMIC-CXR-JPG 2.x with the reports of MIMIC-CXR, which are shipped apart.

files/p10/p10000032/s50414267/DICOM_ID.jpg     images (or .dcm, as in MIMIC-CXR)
mimic-cxr-2.0.0-{split,metadata,chexpert,negbio}.csv[.gz]
files/p10/p10000032/s50414267.txt              reports, there or below --reports
mimic_cxr_sectioned.csv                        their sections, used when it is there
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats import label_tables
from hybridclip_jax.data.formats.paths import OUTSIDE, inside, suffix_in_use
from hybridclip_jax.data.formats.table import Table, read_table
from hybridclip_jax.data.sectioning import split_report
from hybridclip_jax.data.study import Format, RecordError, Skip, Source, Study
from hybridclip_jax.errors import UserError

NAMESPACE = "mimic-cxr"
LABELLERS = ("chexpert", "negbio")
_TABLE = re.compile(r"(mimic-cxr-2\.\d+\.\d+-(split|metadata|chexpert|negbio)\.csv)(?:\.gz)?")
_SECTIONED = "mimic_cxr_sectioned.csv"
_SECTIONS = ("findings", "impression", "last_paragraph", "comparison")
_SUFFIXES = (".jpg", ".dcm")
_IMAGE = re.compile(r"(?:^|/)(p\d{8})/(s\d{8})/([^/]+)$")
_LARGEST_REPORT = 1_000_000  # bytes; the longest real one has some thousands


class Identity(NamedTuple):
    """Who an image is, in the same words whichever layout it comes in."""

    patient: str  # "p10000032"
    study: str  # "s50414267"
    id: str  # the dicom_id


def identity(path: str) -> Identity | None:
    """Who the image at .../p10/p10000032/s50414267/DICOM_ID.jpg is; None for another path."""
    match = _IMAGE.search(path)
    return Identity(match[1], match[2], match[3].rpartition(".")[0] or match[3]) if match else None


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Which of the two tables of labels."""
    parser.add_argument(
        "--mimic-labels", choices=LABELLERS, default=LABELLERS[0], help="the labeller whose table is read (chexpert)"
    )


def read(args: argparse.Namespace) -> Source:
    """Reads the tables in `args.source`, the images below `args.images` or there, the reports below
    `args.reports` or there, and in place of the labeller's table the one that `args.labels` names.

    Raises:
        UserError: no split table, two versions of one, a column missing, no folder, or a label that is none.
    """
    source = Path(args.source)
    folders = {"source": source, "images": Path(args.images or source), "reports": Path(args.reports or source)}
    for flag, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder for --{flag}")
    tables = _find_tables(source)
    if "split" not in tables:
        raise UserError(f"{source} has no mimic-cxr-2.*-split.csv[.gz]: give --source the root of MIMIC-CXR-JPG")
    split = read_table(tables["split"])
    label_path = Path(args.labels) if args.labels is not None else tables.get(args.mimic_labels)
    labels = _Labels(label_path, named=args.labels is not None) if label_path is not None else None
    sectioned = _sectioned(folders["reports"])
    reports = _Reports(_files(folders["reports"]), sectioned)
    studies = _Studies(split, _views(tables.get("metadata")), _files(folders["images"]), reports, labels)
    used = {tables[kind] for kind in ("split", "metadata") if kind in tables} | {label_path}
    return Source(
        studies=studies,
        total=len(split.rows),
        labels=tuple(labels.columns) if labels is not None else (),
        namespace=NAMESPACE,
        public_ids=False,
        synthetic=False,
        notes={
            "split": split.path.name,
            "images": f"{studies.suffix} files",
            "views": tables["metadata"].name if "metadata" in tables else "none: no metadata table",
            "labels": label_path.name if label_path is not None else f"none: no {args.mimic_labels} table",
            "reports": f"sections as in {_SECTIONED}" if sectioned else "sections by the headers in the report files",
            "tables not used": ", ".join(sorted(path.name for path in set(tables.values()) - used)) or "none",
        },
    )


FORMAT = Format(
    "mimic-cxr",
    add_arguments,
    read,
    describe="MIMIC-CXR-JPG 2.x (files/pNN/pNNNNNNNN/sNNNNNNNN/*.jpg and its CSVs) with the reports of MIMIC-CXR",
    example="--source mimic-cxr-jpg-2.1.0 --reports mimic-cxr-reports",
    paths=frozenset({"source", "images", "reports", "labels"}),
    text="impression",
)


def _find_tables(source: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        match = _TABLE.fullmatch(path.name)
        if match is None:
            continue
        first = found.setdefault(match[2], path)
        if first.name not in (path.name, match[1]):  # a table and its gzipped self are one
            raise UserError(f"{source} has {first.name} and {path.name}: keep one version of the {match[2]} table")
    return found


def _files(root: Path) -> Path:
    return root / "files" if (root / "files").is_dir() else root


def _views(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    table = read_table(path)
    dicom_id, view = table.positions("dicom_id", "ViewPosition")
    return {cells[dicom_id]: cells[view].strip() for cells in table.rows}


def _sectioned(root: Path) -> dict[str, dict[str, str]]:
    """The sections by study ("s50414267"), those with text; {} without the table."""
    path = root / _SECTIONED
    if not path.is_file():
        return {}
    table = read_table(path)
    study, *columns = table.positions("study", *_SECTIONS)
    return {
        cells[study]: {name: text for name, i in zip(_SECTIONS, columns, strict=True) if (text := cells[i].strip())}
        for cells in table.rows
    }


class _Labels:
    """The labels by study: the fourteen of a labeller's table, or all those of a table that the user named."""

    def __init__(self, path: Path, named: bool) -> None:
        self.table = read_table(path)
        (study,) = self.table.positions("study_id")
        keys = [i for name in ("study_id", "subject_id", "dicom_id") if (i := self.table.position(name)) is not None]
        self.columns = label_tables.all_labels(self.table, *keys) if named else label_tables.named(self.table)
        self.rows = label_tables.rows_by_key(self.table, (cells[study] for cells in self.table.rows), self.columns)

    def of(self, study: str) -> dict[str, float | None]:
        row = self.rows.get(study)
        return label_tables.values(self.table, row, self.columns) if row is not None else dict.fromkeys(self.columns)


@dataclasses.dataclass(frozen=True)
class _Reports:
    folder: Path
    sectioned: dict[str, dict[str, str]]

    def of(self, place: Path, study: str) -> tuple[str, dict[str, str]]:
        """Text and sections of the report beside the folder `place` of the study's images.

        Raises:
            RecordError: there is none, or it cannot be read.
        """
        sections = self.sectioned.get(study)
        try:
            with (self.folder / place.with_suffix(".txt")).open("rb") as file:
                raw = file.read(_LARGEST_REPORT + 1)
        except FileNotFoundError as error:
            if sections is not None:
                return "", sections  # the whole report is not known
            raise RecordError("no report file", unreadable=False) from error
        except OSError as error:
            raise RecordError("report file cannot be read", unreadable=False) from error
        if len(raw) > _LARGEST_REPORT:
            raise RecordError("report file of more than 1 MB", unreadable=False)
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordError("report file is not UTF-8", unreadable=False) from error
        return text, split_report(text) if sections is None else sections


@dataclasses.dataclass(frozen=True)
class _Studies:
    split: Table
    views: dict[str, str]
    folder: Path
    reports: _Reports
    labels: _Labels | None

    def _rows(self) -> Iterator[tuple[int, str, str, str, str]]:
        """Row, dicom_id, study_id, subject_id and split."""
        columns = self.split.positions("dicom_id", "study_id", "subject_id", "split")
        for row, cells in enumerate(self.split.rows, start=1):
            dicom_id, study, subject, split = (cells[column].strip() for column in columns)
            yield row, dicom_id, study, subject, split

    @functools.cached_property
    def suffix(self) -> str:
        """What the image files end in."""
        stems = (_place(study, subject) + f"/{dicom_id}" for _, dicom_id, study, subject, _ in self._rows())
        files = (inside(self.folder, stem) for stem in stems)
        return suffix_in_use((file for file in files if file is not None), _SUFFIXES)

    def __iter__(self) -> Iterator[Study | Skip]:
        report_of = functools.lru_cache(maxsize=64)(self.reports.of)  # a study's images follow each other
        for row, dicom_id, study, subject, split in self._rows():
            place = _place(study, subject)
            file = inside(self.folder, f"{place}/{dicom_id}{self.suffix}")
            if file is None or inside(self.folder, place) is None:
                yield Skip(row, OUTSIDE)
                continue
            try:
                text, sections = report_of(Path(place), f"s{study}")
            except RecordError as error:
                yield Skip(row, error.reason)
                continue
            yield Study(
                source_row=row,
                id=dicom_id,
                study=f"s{study}",
                patient=f"p{subject}",
                split=split,
                view=self.views.get(dicom_id, ""),
                text=text,
                sections=sections,
                labels=self.labels.of(study) if self.labels is not None else {},
                load_image=pixels.lazy(file),
            )


def _place(study: str, subject: str) -> str:
    return f"p{subject[:2]}/p{subject}/s{study}"
