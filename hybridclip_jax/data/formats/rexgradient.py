"""Format `rexgradient`: ReXGradient-160K: `metadata/SPLIT_metadata_view_position.json` and the PNGs of `deid_png`.

Each JSON file is a dict of studies; a study has a list of image paths, a list of their views, and its report in
sections. There are no labels: for training and retrieval, unless `--labels` brings a table of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats import label_tables
from hybridclip_jax.data.formats.columns import listing
from hybridclip_jax.data.formats.paths import OUTSIDE, inside
from hybridclip_jax.data.formats.table import Table, read_table
from hybridclip_jax.data.sectioning import is_placeholder
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

_SUFFIX = "_metadata_view_position.json"
_IMAGE_FOLDER = "deid_png"
_REPORT = ("indication", "comparison", "findings", "impression")  # in the order of a report
_SECTIONS = ("comparison", "findings", "impression")
# Names are compared without case and underscores: code that reads the dataset has both ImagePath and image_path.
_IMAGES, _VIEWS, _PATIENT, _UID = "imagepath", "imageviewposition", "patientid", "studyinstanceuid"
_USED = (_IMAGES, _VIEWS, _PATIENT, _UID, *_REPORT)
_VIEW_NAMES = {"POSTERO_ANTERIOR": "PA", "ANTERO_POSTERIOR": "AP", "N/A": "", "NONE": "", "UNKNOWN": ""}
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # or one of two halves, as in the escape of an emoji
_STUDY_KEY = re.compile(r"p([^_]+)_a[^_]*_s")
_IMAGE_KEYS = ("imagepath", "path", "image")
_STUDY_KEYS = ("id", "studyid", _UID, "study")


def read(args: argparse.Namespace) -> Source:
    """Reads the JSON files in `args.source`, in its folder `metadata`, or `args.source` itself as one; images
    below `args.images` or else the folder deid_png beside them.

    Raises:
        UserError: no JSON file, one that is not a dict of studies, no study with images, no folder of images, or a
            table of labels that names no study or image of these.
    """
    source = Path(args.source)
    files = _find_files(source)
    folder = _image_folder(source, args.images)
    names: dict[str, str] = {}  # of the fields, by their folded form
    studies = [study for file in files for study in _read_studies(file, names)]
    if _IMAGES not in names:
        raise UserError(f"{files[0]}: no study has 'ImagePath'. They have {_listing(names.values())}")
    labels = _Labels(read_table(Path(args.labels))) if args.labels is not None else None
    if labels is not None and not any(labels.knows(study) for study in studies):
        raise UserError(f"{labels.table.path}: column {labels.key!r} names no study or image of {files[0].name}")
    unused = [names[name] for name in names if name not in _USED]
    unknown = sum(not study.patient for study in studies)
    guessed = sum(not study.text(_PATIENT) for study in studies) - unknown
    notes = {
        "files": ", ".join(file.name for file in files),
        "report": "its sections under their titles: indication, comparison, findings, impression",
        "labels": f"{', '.join(labels.columns)}, by {labels.key}"
        if labels is not None
        else "none: ReXGradient has none",
        "columns not used": _listing(unused),
    }
    if guessed:
        notes["patient"] = f"from the study's name in {guessed} studies without PatientID"
    if unknown:
        notes["patient not known"] = f"in {unknown} studies: each counts as its own patient"
    return Source(
        studies=_Studies(studies, folder, labels),
        total=len(studies),
        labels=tuple(labels.columns) if labels is not None else (),
        namespace="rexgradient",
        public_ids=False,
        synthetic=False,
        notes=notes,
    )


FORMAT = Format(
    "rexgradient",
    lambda parser: None,
    read,
    describe="ReXGradient-160K: metadata/*_metadata_view_position.json and deid_png; it has no labels",
    example="--source ReXGradient-160K",
    paths=frozenset({"source", "images", "labels"}),
    text="impression",
)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """One study as its JSON file has it; names of fields folded."""

    key: str
    split: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        return value.strip() if isinstance(value, str) else ""

    def images(self) -> list[tuple[str, str]]:
        """Path and view of each image."""
        paths, views = (_as_list(self.fields.get(name)) for name in (_IMAGES, _VIEWS))
        pairs = itertools.zip_longest(paths, views[: len(paths)])
        return [(path, view if isinstance(view, str) else "") for path, view in pairs if isinstance(path, str)]

    @property
    def patient(self) -> str:
        """By PatientID, or by the study's name; "" where neither tells."""
        match = _STUDY_KEY.match(self.key)
        return self.text(_PATIENT) or (match[1] if match else "")


def _find_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    for place in (source, source / "metadata"):
        found = sorted(place.glob(f"*{_SUFFIX}"))
        if found:
            return found
    raise UserError(f"{source} holds no *{_SUFFIX}, nor does its folder metadata: give --source the folder or file")


def _image_folder(source: Path, named: str | None) -> Path:
    if named is not None and not Path(named).is_dir():
        raise UserError(f"{named}: no such folder for --images")
    places = [Path(named)] if named is not None else [source, source.parent, source.parent.parent]
    for place in places:
        if (place / _IMAGE_FOLDER).is_dir():
            return place / _IMAGE_FOLDER
    if named is None:
        raise UserError(f"{source}: no folder {_IMAGE_FOLDER} there: name the images with --images")
    return Path(named)


def _read_studies(path: Path, names: dict[str, str]) -> list[_Raw]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte at offset {error.start}): download it again") from error
    try:
        studies = json.loads(text, object_pairs_hook=_no_name_twice)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON (line {error.lineno}): download it again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: a study or field is named twice, nested too deep, or a number too long: download it again"
        ) from error
    if _HALF_CHARACTER.search(text):
        try:
            json.dumps(studies, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path} holds half a character (a lone surrogate escape): mend that text") from error
    if not isinstance(studies, dict) or not studies:
        raise UserError(f"{path} is not a dict of studies by name")
    split = path.name.removesuffix(_SUFFIX) if path.name.endswith(_SUFFIX) else ""
    found = []
    for position, (key, fields) in enumerate(studies.items(), start=1):
        if not isinstance(fields, dict):
            raise UserError(f"{path}: study {position} is not an object with its images and report")
        names |= {_fold(name): name for name in fields}
        found.append(_Raw(key, split, {_fold(name): value for name, value in fields.items()}))
    return found


def _listing(names: Iterable[str]) -> str:
    """The names for a message; in a file of another form they may be the ids of patients, which have digits."""
    listed = sorted(names)
    shown = [name for name in listed if name.replace("_", "").isalpha()]
    more = [f"{len(listed) - len(shown)} more"] if len(shown) < len(listed) else []
    return ", ".join(shown + more) or "none"


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


@functools.cache
def _fold(name: str) -> str:
    return name.replace("_", "").lower()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] if isinstance(value, str) else []


def _below_images(path: str) -> str:
    """The path below deid_png: the files say ../deid_png/..., as seen from metadata."""
    return path.rpartition(f"{_IMAGE_FOLDER}/")[2]


class _Labels:
    """A table of labels by study or by image."""

    def __init__(self, table: Table) -> None:
        folded = {_fold(name): i for i, name in reversed(list(enumerate(table.columns)))}
        by_image = next((folded[name] for name in _IMAGE_KEYS if name in folded), None)
        by_study = next((folded[name] for name in _STUDY_KEYS if name in folded), None)
        key = by_image if by_image is not None else by_study
        if key is None:
            raise UserError(
                f"{table.path}: no column 'id', 'study_id', 'StudyInstanceUid' or 'image_path' to find the studies by."
                f" It has {listing(table)}"
            )
        self.table = table
        self.key = table.columns[key]
        self.columns = label_tables.all_labels(table, key)
        keys = (_below_images(cells[key].strip()) for cells in table.rows)
        self.rows = label_tables.rows_by_key(table, keys, self.columns)

    def knows(self, study: _Raw) -> bool:
        return any(key in self.rows for key in self._keys(study, [path for path, _ in study.images()]))

    def of(self, study: _Raw, path: str) -> dict[str, float | None]:
        row = next((self.rows[key] for key in self._keys(study, [path]) if key in self.rows), None)
        return label_tables.values(self.table, row, self.columns) if row is not None else dict.fromkeys(self.columns)

    def _keys(self, study: _Raw, paths: list[str]) -> list[str]:
        return [*(_below_images(path) for path in paths), study.key, study.text(_UID)]


@dataclasses.dataclass(frozen=True)
class _Studies:
    studies: list[_Raw]
    folder: Path
    labels: _Labels | None

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, study in enumerate(self.studies, start=1):
            images = study.images()
            if not images:
                yield Skip(row, "no image listed")
            said = {part: study.text(part) for part in _REPORT}
            said = {part: text for part, text in said.items() if text}
            report = "\n\n".join(f"{part.upper()}: {text}" for part, text in said.items() if not is_placeholder(text))
            for path, view in images:
                below = _below_images(path)
                file = inside(self.folder, below)
                if file is None:
                    yield Skip(row, OUTSIDE)
                    continue
                yield Study(
                    source_row=row,
                    id=below,
                    study=study.key,
                    patient=study.patient or f"study {study.key}",
                    patient_known=study.patient != "",
                    split=study.split,
                    view=_VIEW_NAMES.get(view.strip().upper(), view.strip()),
                    text=report,
                    sections={part: said[part] for part in _SECTIONS if part in said},
                    labels=self.labels.of(study, path) if self.labels is not None else {},
                    load_image=pixels.lazy(file),
                )
