"""Format `dicom`: a tree of DICOM files, and their texts in a table or in files beside them.

Files are told by content, links are not followed, and rows count the files in the order of their paths. Patient,
study and view come from the header. With --reports (and --labels), a column of the table names the image: by its
path in the tree, or by a header field the column is called after. Two such columns are an error, as nothing is
guessed. Without --reports, the text of a/b/c.dcm is a/b/c.txt or a/b/c.dcm.txt; or, of its folder, a/b/report.txt,
a/b/b.txt or a/b.txt; or the same of the folder above, where series lie inside a study. The nearest counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image

from hybridclip_jax.data import dicom, pixels
from hybridclip_jax.data.formats.dicom_tables import KEYS, PATH, Labels, Names, Text, add_arguments, labels_in, texts_in
from hybridclip_jax.data.formats.table import read_table
from hybridclip_jax.data.sectioning import split_report
from hybridclip_jax.data.study import Format, RecordError, Skip, Source, Study
from hybridclip_jax.errors import UserError

_FIELDS = (*KEYS[1:], "ViewPosition")
_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")  # any other dot belongs to the name, which often is a UID
_FOLDER_TEXT = "report.txt"
_MAX_TEXT = 1_000_000  # bytes of a text file


def read(args: argparse.Namespace) -> Source:
    """Lists the tree `args.source` and reads the tables `args.reports` and `args.labels`; headers, and texts beside
    the images, are read as the studies are taken.

    Raises:
        UserError: no such folder, no file in it, or tables that cannot be used.
    """
    root = Path(args.source)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give --source the folder that holds the DICOM files")
    for flag, needs in (("dicom_text", (args.reports,)), ("dicom_key", (args.reports, args.labels))):
        if getattr(args, flag) is not None and all(path is None for path in needs):
            raise UserError(f"--{flag.replace('_', '-')} names a column of a table: give --reports too")
    notes = {
        "rows": "files of the tree in the order of their paths",
        "patient": "PatientID of the header",
        "study": "StudyInstanceUID of the header",
        "view": "ViewPosition of the header",
        "text": "files beside the images",
        "labels": "none",
    }
    text_of = functools.partial(_text_beside, root)
    labels: tuple[str, ...] = ()
    labels_of: Callable[[Names], Labels] | None = None
    if args.reports is not None:
        find = texts_in(read_table(Path(args.reports)), args, notes)
        text_of = functools.partial(_text_in_table, find)
    if args.labels is not None:
        labels, labels_of = labels_in(read_table(Path(args.labels)), args, notes)
    tables = {os.path.abspath(path) for path in (args.reports, args.labels) if path is not None}
    files = [path for path in _files(root) if os.path.abspath(path) not in tables]
    if args.reports is None:
        files = [path for path in files if path.suffix.lower() != ".txt"]
    if not files:
        raise UserError(f"{root} holds no file: give --source the folder that holds the DICOM files")
    return Source(
        studies=_Studies(root, files, text_of, labels_of, notes),
        total=len(files),
        labels=labels,
        namespace=f"dicom:{root.resolve().name}",
        public_ids=False,
        synthetic=False,
        notes=notes,
    )


FORMAT = Format(
    "dicom",
    add_arguments,
    read,
    describe="a tree of DICOM files with a table of texts, or a text file beside each image or study",
    example="--source data/dicom --reports data/reports.csv",
    paths=frozenset({"source", "reports", "labels"}),
)


@dataclasses.dataclass(frozen=True)
class _Studies:
    root: Path
    files: list[Path]
    text_of: Callable[[Path, Names], Text]
    labels_of: Callable[[Names], Labels] | None
    notes: dict[str, str]  # the one on patients is known when all headers are read

    def __iter__(self) -> Iterator[Study | Skip]:
        named = alone = 0
        for row, path in enumerate(self.files, start=1):
            try:
                study = self._study(row, path)
            except RecordError as error:
                yield Skip(row, error.reason, error.unreadable)
                continue
            named, alone = named + study.patient_known, alone + (not study.patient_known)
            yield study
        if not named:
            self.notes["patient"] = "no PatientID in any header: each study counts as its own patient"
        elif alone:
            self.notes["patient"] += f" ({alone} blank: each such study counts as its own patient)"

    def _study(self, row: int, path: Path) -> Study:
        fields, load_image = _opened(path)
        names = {PATH: path.relative_to(self.root).as_posix(), **fields}
        text, sections = self.text_of(path, names)
        # A blank field says as little as a missing one: the study stands for its patient, the image for itself.
        uid = fields["SOPInstanceUID"] or f"file {names[PATH]}"
        study = fields["StudyInstanceUID"] or f"image {uid}"
        return Study(
            source_row=row,
            id=uid,
            study=study,
            patient=fields["PatientID"] or f"study {study}",
            patient_known=fields["PatientID"] != "",
            split="",
            view=fields["ViewPosition"],
            text=text,
            sections=sections,
            labels=self.labels_of(names) if self.labels_of is not None else {},
            load_image=load_image,
        )


def _files(root: Path) -> list[Path]:
    """Every entry of the tree that is no folder, links among them, in the order of their paths."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder):
        found += (Path(folder, name) for name in names)
        found += (Path(folder, name) for name in subfolders if os.path.islink(os.path.join(folder, name)))
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _refuse_folder(error: OSError) -> None:
    # The walk would go on without what it cannot list.
    raise UserError(f"--source holds a folder that cannot be listed ({error.strerror}): make it readable")


def _opened(path: Path) -> tuple[dict[str, str], functools.partial[PIL.Image.Image]]:
    """The header fields of a picture and what decodes it; RecordError for everything else."""
    if path.is_symlink():
        raise RecordError("link, not followed", unreadable=False)
    if not path.is_file():  # a pipe would make us wait
        raise RecordError("not a regular file", unreadable=False)
    try:
        with path.open("rb") as file:
            head = file.read(dicom.HEAD_BYTES)
            file.seek(0)
            bare = dicom.may_be_bare(head)
            if not bare and not dicom.has_preamble(head):
                raise RecordError("not a DICOM file", unreadable=False)
            fields = dicom.read_fields(file, _FIELDS, bare=bare)
    except OSError as error:
        raise RecordError("file cannot be read") from error
    load = functools.partial(dicom.open_bare, path, pixels.MAX_PIXELS) if bare else pixels.lazy(path)
    return fields, load


def _text_in_table(find: Callable[[Names], Text], path: Path, names: Names) -> Text:
    return find(names)


def _text_beside(root: Path, path: Path, names: Names) -> Text:
    stem = path.stem if path.suffix.lower() in _SUFFIXES else path.name
    candidates = [path.with_name(f"{stem}.txt"), path.with_name(f"{path.name}.txt")]
    for folder in path.parents[:2]:
        if folder == root:  # a text up there would speak of the whole tree, as a read-me does
            break
        candidates += [folder / _FOLDER_TEXT, folder / f"{folder.name}.txt", folder.with_name(f"{folder.name}.txt")]
    for candidate in candidates:
        if candidate.is_file() and not candidate.is_symlink():
            return _text_of_file(candidate)
    raise RecordError("no text file beside the image", unreadable=False)


def _text_of_file(path: Path) -> Text:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_TEXT + 1)
        if len(raw) > _MAX_TEXT:
            raise RecordError("text file larger than 1 MB", unreadable=False)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("text file that is not UTF-8", unreadable=False) from error
    except OSError as error:
        raise RecordError("text file that cannot be read", unreadable=False) from error
    return text, split_report(text)
