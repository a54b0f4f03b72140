"""Format `padchest`: the labels table PADCHEST_chest_x_ray_images_labels_160K_*.csv(.gz) and 16-bit PNG files.

Images lie in the folder that the column ImageDir names, as the owners' zip files unpack, or all in one folder.
The reports are Spanish, in word stems, as published. `Labels` is a Python list written as text.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.columns import plain_id
from hybridclip_jax.data.formats.paths import OUTSIDE, image_folder, inside
from hybridclip_jax.data.formats.table import Table, find_table, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

# CheXzero scores PadChest on the labels of at least 50 images read by a physician; rarer ones have no AUC to speak of.
LABEL_FROM_ROWS = 50
# A report that is excluded, too poor or "as before" tells nothing of what it does not name.
SAYS_LITTLE = frozenset({"exclude", "suboptimal study", "unchanged"})
_METHODS = ("Physician", "RNN_model")
_LONGEST_LABELS = 20_000  # characters of one cell
_USED = (
    "ImageID",
    "ImageDir",
    "StudyID",
    "PatientID",
    "Projection",
    "PhotometricInterpretation_DICOM",
    "Report",
    "MethodLabel",
    "Labels",
)


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--padchest-labels",
        metavar="A,B,C",
        help=f"labels to store (default: those that at least {LABEL_FROM_ROWS} rows labelled by a physician carry;"
        " '' takes none)",
    )
    parser.add_argument(
        "--padchest-physician",
        action="store_true",
        help="leave out the rows whose labels a network wrote (MethodLabel RNN_model)",
    )


def _read(args: argparse.Namespace) -> Source:
    table = read_table(_find(Path(args.source)))
    folder = image_folder(args.images, table.path.parent)
    rows = _rows(table)
    names = _label_names(rows, args.padchest_labels)
    folders = _image_folders(rows, folder)
    return Source(
        studies=_Studies(rows, names, folders, args.padchest_physician),
        total=len(rows),
        labels=names,
        namespace="padchest",
        public_ids=False,
        synthetic=False,
        notes=_notes(table.columns, rows, names, folders, named=args.padchest_labels is not None),
    )


FORMAT = Format(
    "padchest",
    _add_arguments,
    _read,
    describe="PadChest (BIMCV): the labels CSV, 16-bit PNG files, Spanish reports",
    example="--source PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz --images padchest/images",
    paths=frozenset({"source", "images"}),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    image: str
    folder: str
    study: str
    patient: str
    view: str
    report: str
    method: str
    photometric: str
    labels: frozenset[str] | None  # None: the cell is no list of texts

    def by_physician(self) -> bool:
        """True also where the table does not say."""
        return self.method in (_METHODS[0], "")


def _rows(table: Table) -> list[_Row]:
    needed = table.positions("ImageID", "StudyID", "PatientID", "Report", "Labels")
    image, study, patient, report, labels = needed
    folder, view, method, photometric = (
        table.position(name) for name in ("ImageDir", "Projection", "MethodLabel", "PhotometricInterpretation_DICOM")
    )

    def few(cells: list[str], column: int | None) -> str:
        """A cell of a column with few different values, each kept once."""
        return sys.intern(cells[column].strip()) if column is not None else ""

    return [
        _Row(
            image=cells[image].strip(),
            folder=sys.intern(plain_id(few(cells, folder))),
            study=plain_id(cells[study]),
            patient=plain_id(cells[patient]),
            view=few(cells, view),
            report=cells[report].strip(),
            method=few(cells, method),
            photometric=few(cells, photometric),
            labels=_labels(cells[labels].strip()),
        )
        for cells in table.rows
    ]


def _labels(cell: str) -> frozenset[str] | None:
    if cell.lower() in ("", "nan"):
        return frozenset()
    if len(cell) > _LONGEST_LABELS:
        return None
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return frozenset(sys.intern(name) for name in (" ".join(text.split()) for text in value) if name)


@dataclasses.dataclass(frozen=True)
class _Studies:
    rows: list[_Row]
    names: tuple[str, ...]
    folders: dict[str, Path]  # by the cell of ImageDir
    physician: bool

    def __iter__(self) -> Iterator[Study | Skip]:
        for number, row in enumerate(self.rows, start=1):
            yield self._study(number, row)

    def _study(self, number: int, row: _Row) -> Study | Skip:
        path = inside(self.folders[row.folder], row.image)
        if not row.image or not row.patient:
            return Skip(number, "no image or no patient named")
        if path is None:
            return Skip(number, OUTSIDE)
        if self.physician and not row.by_physician():
            return Skip(number, "not labelled by a physician")
        if row.labels is None:
            return Skip(number, "labels that are not a list")
        return Study(
            source_row=number,
            id=row.image,
            study=f"{row.patient}\0{row.study or row.image}",
            patient=row.patient,
            split="",
            view=row.view,
            text=row.report,
            sections={},
            labels=_values(row.labels, self.names),
            load_image=pixels.lazy(path),
        )


@functools.cache  # one object for equal rows: of 160,000 rows most share theirs
def _values(labels: frozenset[str], names: tuple[str, ...]) -> dict[str, float | None]:
    absent = 0.0 if labels and not labels & SAYS_LITTLE else None
    return {name: 1.0 if name in labels else absent for name in names}


def _find(source: Path) -> Path:
    named = sorted(source.glob("PADCHEST_*.csv*")) if source.is_dir() else []
    return named[0] if len(named) == 1 else find_table(source)


def _image_folders(rows: list[_Row], folder: Path) -> dict[str, Path]:
    inner = {row.folder: inside(folder, row.folder) for row in rows}
    return {name: path if path is not None and path.is_dir() else folder for name, path in inner.items()}


def _known(rows: list[_Row]) -> set[str]:
    return {name for row in rows if row.labels for name in row.labels}


def _label_names(rows: list[_Row], asked: str | None) -> tuple[str, ...]:
    if asked is None:
        counts = collections.Counter(
            name for row in rows if row.labels and row.by_physician() for name in row.labels - SAYS_LITTLE
        )
        return tuple(sorted(name for name in counts if counts[name] >= LABEL_FROM_ROWS))
    known = _known(rows)
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--padchest-labels: no row carries {', '.join(map(repr, unknown))}: mind the spelling")
    return names


def _notes(
    columns: tuple[str, ...], rows: list[_Row], names: tuple[str, ...], folders: dict[str, Path], *, named: bool
) -> dict[str, str]:
    deep = sum(name != "" and path.name == name for name, path in folders.items())
    why = "named" if named else f"those that at least {LABEL_FROM_ROWS} rows labelled by a physician carry"
    methods = collections.Counter(row.method if row.method in _METHODS else "not said" for row in rows)
    inverse = sum(row.photometric == "MONOCHROME1" for row in rows)
    unused = [name or "(no name)" for name in columns if name not in _USED]
    return {
        "images": f"in {deep} folders of column 'ImageDir'" if deep else "in one folder",
        "text": "column 'Report': Spanish, in word stems, as published",
        "view": "column 'Projection'" if "Projection" in columns else "no column",
        "labels": f"{len(names)} of the {len(_known(rows))} names that occur ({why}): {', '.join(names) or 'none'}",
        "label values": "1 in the list, else 0; blank where the list is empty or has " + ", ".join(sorted(SAYS_LITTLE)),
        "labelled by": ", ".join(f"{name} {count}" for name, count in sorted(methods.items())),
        "polarity": f"as in the PNG files; {inverse} rows were MONOCHROME1 before their owners wrote them as PNG",
        "columns not used": ", ".join(unused) or "none",
    }
