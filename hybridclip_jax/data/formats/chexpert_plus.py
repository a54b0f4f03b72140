"""Format `chexpert-plus`: CheXpert-Plus as Stanford ships it: one CSV of reports, PNG images, CheXbert labels.

Patients and studies have the same ids as in format `chexpert`, so that its test studies can be checked against
this training set.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats import chexpert, label_tables
from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.formats.paths import OUTSIDE, image_folder, inside, suffix_in_use
from hybridclip_jax.data.formats.table import Table, read_json_lines, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

LABEL_SOURCES = ("impression", "findings", "report")
_TABLE = "df_chexpert_plus*.csv"
_LABEL_FOLDER = "chexbert_labels"
_IMAGE_FOLDERS = ("PNG/PNG", "PNG", ".")
_SPLITS = ("train", "valid")
_SUFFIXES = (".png", ".jpg")  # the table says .jpg where the files shipped with it are .png
_COLUMNS = (
    "path_to_image",
    "deid_patient_id",
    "split",
    "frontal_lateral",
    "ap_pa",
    "report",
    "section_findings",
    "section_impression",
)
_OPTIONAL = "section_comparison"


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Which of the three files of labels."""
    parser.add_argument(
        "--label-source",
        choices=LABEL_SOURCES,
        help="the part of the report that the labels were read from: chexbert_labels/SOURCE_fixed.json"
        " (default: as the file given to --labels is named, else impression)",
    )


def read(args: argparse.Namespace) -> Source:
    """Reads df_chexpert_plus_*.csv, itself or in the folder `args.source`; images in `args.images` or else
    PNG/PNG there; labels in `args.labels` (a file or a folder) or else chexbert_labels there.

    Raises:
        UserError: no table or several, a column missing, no folder of images, or labels that were asked for and
            are missing, not 1, 0, -1 and null, or not known to be read from `args.label_source`.
    """
    table = read_table(_find_table(Path(args.source)))
    columns = dict(zip(_COLUMNS, table.positions(*_COLUMNS), strict=True))
    comparison = table.position(_OPTIONAL)
    if comparison is not None:
        columns[_OPTIONAL] = comparison
    folder = _image_folder(table.path.parent, args.images)
    label_source = _label_source(args.labels, args.label_source)
    labels = _find_labels(table.path.parent, args.labels, args.label_source, label_source)
    studies = _Studies(table, columns, folder, _Labels(labels, label_source) if labels is not None else None)
    notes = {
        "images": f"{studies.suffix} files; the table says .jpg",
        "labels": f"none: no {_LABEL_FOLDER}/{label_source}_fixed.json beside the table, nor --labels",
        "test set": "none of its own: use format chexpert with --labels groundtruth.csv, or --split-by-patient",
        "columns not used": label_tables.unused(table, *columns.values()),
    }
    if labels is not None:
        notes["labels"] = f"{labels.path.name}, by CheXbert from the {label_source}, for {studies.labelled()} rows;"
        notes["labels"] += " blank where the row has no such text"
    if strangers := studies.patients_named_otherwise():
        notes["patient"] = f"as in path_to_image; deid_patient_id names another in {strangers} rows"
    return Source(
        studies=studies,
        total=len(table.rows),
        labels=CHEXPERT_LABELS if labels is not None else (),
        namespace=chexpert.NAMESPACE,
        public_ids=False,
        synthetic=False,
        notes=notes,
    )


FORMAT = Format(
    "chexpert-plus",
    add_arguments,
    read,
    describe="CheXpert-Plus: df_chexpert_plus_240401.csv, PNG/PNG/{train,valid} and chexbert_labels",
    example="--source CheXpert-Plus --label-source impression",
    paths=frozenset({"source", "images", "labels"}),
    text="impression",
)


def _find_table(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = sorted(source.glob(_TABLE))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{source} holds {f'{len(found)} tables ({names})' if found else f'no table {_TABLE}'}:"
            " give --source the CSV itself"
        )
    return found[0]


def _image_folder(beside: Path, named: str | None) -> Path:
    if named is not None:
        return image_folder(named, beside)
    for name in _IMAGE_FOLDERS:
        if any((beside / name / split).is_dir() for split in _SPLITS):
            return beside / name
    raise UserError(f"{beside}: no folder PNG/PNG with {' or '.join(_SPLITS)} in it: name the images with --images")


def _label_source(named: str | None, asked: str | None) -> str:
    """The part of the report that the labels were read from; of a file that --labels names, its name says it."""
    if named is None or not Path(named).is_file():
        return asked or LABEL_SOURCES[0]
    said = [source for source in LABEL_SOURCES if f"{source}_fixed" in Path(named).name.lower()]
    if len(said) == 1 and asked in (None, said[0]):
        return said[0]
    if len(said) == 1:
        raise UserError(
            f"{named}: by its name the labels were read from the {said[0]}, and --label-source says {asked}:"
            " leave it out, or name the other file"
        )
    if asked is None:
        raise UserError(
            f"{named}: its name does not say what part of the report the labels were read from: say it with"
            f" --label-source {' | '.join(LABEL_SOURCES)}"
        )
    return asked


def _find_labels(beside: Path, named: str | None, asked: str | None, label_source: str) -> Table | None:
    place = Path(named) if named is not None else beside / _LABEL_FOLDER
    path = place if place.is_file() else place / f"{label_source}_fixed.json"
    if not path.is_file():
        if named is None and asked is None:
            return None
        raise UserError(f"{path}: no such file of labels; name the folder {_LABEL_FOLDER} or the file with --labels")
    return read_json_lines(path)


class _Labels:
    """CheXbert's labels by image."""

    def __init__(self, table: Table, label_source: str) -> None:
        self.table = table
        self.column = "report" if label_source == "report" else f"section_{label_source}"
        self.columns = label_tables.named(table)
        (key,) = table.positions("path_to_image")
        self.rows = label_tables.rows_by_key(table, (_key(cells[key]) for cells in table.rows), self.columns)

    def of(self, image: str) -> dict[str, float | None]:
        row = self.rows.get(_key(image))
        return label_tables.values(self.table, row, self.columns) if row is not None else _BLANK


_BLANK: dict[str, float | None] = dict.fromkeys(CHEXPERT_LABELS)


def _key(image: str) -> str:
    # The labels' paths end in .jpg or .png, as the tables of the day had them.
    return chexpert.below_root(image).rpartition(".")[0]


@dataclasses.dataclass(frozen=True)
class _Studies:
    table: Table
    columns: dict[str, int]
    folder: Path
    labels: _Labels | None

    @property
    def suffix(self) -> str:
        """What the image files end in."""
        column = self.columns["path_to_image"]
        files = (inside(self.folder, chexpert.below_root(cells[column])) for cells in self.table.rows)
        return suffix_in_use((file.with_suffix("") for file in files if file is not None), _SUFFIXES)

    def labelled(self) -> int:
        """Rows that the table of labels knows; UserError when there is none."""
        assert self.labels is not None
        column = self.columns["path_to_image"]
        known = sum(_key(cells[column]) in self.labels.rows for cells in self.table.rows)
        if not known:
            raise UserError(
                f"{self.labels.table.path}: no path_to_image is one of {self.table.path.name}: another file?"
            )
        return known

    def patients_named_otherwise(self) -> int:
        """Rows whose deid_patient_id is not the patient of the path."""
        path, patient = self.columns["path_to_image"], self.columns["deid_patient_id"]
        who = ((chexpert.identity(cells[path]), cells[patient].strip()) for cells in self.table.rows)
        return sum(image is not None and named not in ("", image.patient) for image, named in who)

    def __iter__(self) -> Iterator[Study | Skip]:
        suffix = self.suffix
        for row, cells in enumerate(self.table.rows, start=1):
            cell = {name: cells[column] for name, column in self.columns.items()}
            name = chexpert.below_root(cell["path_to_image"])
            who, file = chexpert.identity(name), inside(self.folder, name)
            if file is None or who is None:
                yield Skip(row, OUTSIDE if file is None else chexpert.NO_IDENTITY)
                continue
            parts = {part: cell.get(f"section_{part}", "").strip() for part in ("findings", "impression", "comparison")}
            labels: dict[str, float | None] = {}
            if self.labels is not None:
                # Given no text at all, CheXbert says "No Finding".
                labels = self.labels.of(cell["path_to_image"]) if cell[self.labels.column].strip() else _BLANK
            yield Study(
                source_row=row,
                id=who.id,
                study=who.study,
                patient=who.patient,
                split=cell["split"].strip(),
                view=chexpert.view(cell["frontal_lateral"], cell["ap_pa"]),
                text=cell["report"],
                sections={part: text for part, text in parts.items() if text},
                labels=labels,
                load_image=pixels.lazy(file.with_suffix(suffix)),
            )
