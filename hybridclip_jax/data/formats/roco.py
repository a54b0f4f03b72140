"""Format `roco`: figures of open-access articles with their captions (ROCO and ROCOv2).

Read as they are shipped, found in this order where `--source` is a folder: ROCO's own text files
(data/{train,validation,test}/{radiology,non-radiology}/captions.txt), ROCOv2's {split}_captions.csv, and the CSV
mirror (a table with the columns id, name, caption); or `--source` names one table, a JSON-lines file
with image_path and caption among them. Missing and empty image files are usual there.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.paths import OUTSIDE, inside
from hybridclip_jax.data.formats.roco_licences import V1_FILE, V2_FILE, licence_kind, v1_licences, v2_licences
from hybridclip_jax.data.formats.shards import split_of
from hybridclip_jax.data.formats.table import Table, read_table
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

PARTS = ("radiology", "non-radiology")
SPLITS = ("train", "validation", "test")
V2_SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class _Figure:
    name: str  # without suffix: one figure has one name in every form
    file: Path | None  # None: outside the folder of images
    caption: str
    split: str
    article: str = ""
    licence: str = ""


_Row = _Figure | str  # or why it cannot be used


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--roco-part",
        choices=(*PARTS, "both"),
        default="radiology",
        help="which figures of ROCO's own folders (default: radiology; ROCOv2 has no others)",
    )
    parser.add_argument(
        "--roco-licences",
        metavar="A,B",
        help='take only figures with these licences, such as "CC BY,CC0", whatever the version (default: all)',
    )


def _read(args: argparse.Namespace) -> Source:
    source = Path(args.source)
    images = Path(args.images) if args.images is not None else None
    rows, notes = _rows(source, images, PARTS if args.roco_part == "both" else (args.roco_part,))
    if args.roco_licences is not None:
        rows, notes["licences taken"] = _of_licences(rows, args.roco_licences), args.roco_licences
    return Source(
        studies=_Studies(rows),
        total=len(rows),
        labels=(),
        namespace="roco",
        public_ids=False,
        synthetic=False,
        notes={**notes, "articles": _articles(rows), "patient": "not known: each figure counts as its own patient"},
        colour=True,
    )


FORMAT = Format(
    "roco",
    _add_arguments,
    _read,
    describe="ROCO (captions.txt and images/, or its CSV mirror) and ROCOv2 ({split}_captions.csv)",
    example="--source roco-dataset",
    paths=frozenset({"source", "images"}),
)


@dataclasses.dataclass(frozen=True)
class _Studies:
    rows: list[_Row]

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, figure in enumerate(self.rows, start=1):
            if isinstance(figure, str):
                yield Skip(row, figure)
            elif figure.file is None:
                yield Skip(row, OUTSIDE)
            else:
                yield Study(
                    source_row=row,
                    id=figure.name,
                    study=figure.name,
                    patient=figure.name,
                    patient_known=False,
                    split=figure.split,
                    view="",
                    text=figure.caption,
                    sections={},
                    labels={},
                    load_image=pixels.lazy(figure.file),
                    licence=figure.licence,
                )


def _rows(source: Path, images: Path | None, parts: tuple[str, ...]) -> tuple[list[_Row], dict[str, str]]:
    if not source.exists():
        raise UserError(f"{source}: no such file or folder for --source")
    if source.is_file() and source.name != "captions.txt":
        return _of_tables([source], images)
    texts = [source] if source.is_file() else _text_files(source, parts)
    if texts:
        return _of_texts(texts, images)
    captions = [path for split in V2_SPLITS if (path := source / f"{split}_captions.csv").is_file()]
    if captions:
        return _of_v2(captions, images)
    tables = _mirror_tables(source, parts)
    if not tables:
        raise UserError(
            f"{source} holds none of ROCO's files (captions.txt, *_captions.csv, a table with id, name, caption):"
            " name a folder or file that does"
        )
    return _of_tables(tables, images)


def _roots(source: Path) -> tuple[Path, ...]:
    return (source, source / "data", source / "all_data")  # the last is what the mirror calls it


def _text_files(source: Path, parts: tuple[str, ...]) -> list[Path]:
    for root in _roots(source):
        named = (root / split / part / "captions.txt" for split in SPLITS for part in parts)
        found = [path for path in (*named, *(root / part / "captions.txt" for part in parts)) if path.is_file()]
        if found:
            return found
    return [path for path in [source / "captions.txt"] if path.is_file()]


def _mirror_tables(source: Path, parts: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for root in _roots(source):
        for split in SPLITS:
            folders = (root / split, *(root / split / part for part in parts))
            found += [path for folder in folders for path in sorted(folder.glob("*data.csv")) if _wanted(path, parts)]
        if found:
            return found
    return [path for path in sorted(source.glob("*data.csv")) if _wanted(path, parts)]


def _wanted(path: Path, parts: tuple[str, ...]) -> bool:
    part = "non-radiology" if path.name.startswith(("non", "Non")) or path.parent.name == PARTS[1] else "radiology"
    return part in parts


def _of_texts(texts: list[Path], images: Path | None) -> tuple[list[_Row], dict[str, str]]:
    rows: list[_Row] = []
    known = 0
    for path in texts:
        licences = v1_licences(path.with_name(V1_FILE))
        known += len(licences)
        folder = _images_of(path.parent / "images", images)
        split = path.parent.parent.name if path.parent.parent.name in SPLITS else ""
        for line in _lines(path):
            # The caption begins behind the first tab and a blank; there is no header.
            name, tab, caption = line.partition("\t")
            if not name.strip() or not tab:
                rows.append("line without an id and a caption")
                continue
            article, licence = licences.get(name.strip(), ("", ""))
            file = inside(folder, f"{name.strip()}.jpg")
            rows.append(_Figure(name.strip(), file, caption.strip(), split, article, licence))
    return rows, {
        "form": "text files of ROCO",
        "rows": "the lines of " + ", ".join(_short(path) for path in texts) + ", counted through",
        "licences": f"licences.txt ({known} figures)" if known else "no licences.txt",
        "not used": "cuis, dlinks, keywords, semtypes",
    }


def _of_tables(tables: list[Path], images: Path | None) -> tuple[list[_Row], dict[str, str]]:
    rows: list[_Row] = []
    for path in tables:
        table = read_table(path)
        name_column, caption_column = _mirror_columns(table)
        folder = _images_of(_mirror_images(path, table.columns[name_column]), images)
        split = path.parent.name if path.parent.name in SPLITS else _mirror_split(path)
        for cells in table.rows:
            name = cells[name_column].strip()
            rows.append(
                _Figure(Path(name).stem, inside(folder, name), cells[caption_column].strip(), split)
                if name
                else "no image named"
            )
    return rows, {
        "form": "tables with a row for each figure",
        "rows": "the rows of " + ", ".join(_short(path) for path in tables) + ", counted through",
        "licences": "not in these tables",
    }


def _mirror_columns(table: Table) -> tuple[int, ...]:
    image = next((name for name in ("name", "image_path", "image") if name in table.columns), "name")
    return table.positions(image, "caption")


def _mirror_images(path: Path, column: str) -> Path:
    # Names are of files in images/, beside the table or in the part's folder; paths start at the table.
    part = "non-radiology" if path.name.startswith(("non", "Non")) else "radiology"
    inner = (path.parent / "images", path.parent / part / "images")
    return next((folder for folder in inner if column == "name" and folder.is_dir()), path.parent)


def _mirror_split(path: Path) -> str:
    grand = path.parent.parent.name
    if grand in SPLITS:
        return grand
    joined = re.search(r"(train|val|test)(?=data)", path.stem)  # radiologyvaldata.csv
    return joined[0] if joined else split_of(path.stem)


def _of_v2(captions: list[Path], images: Path | None) -> tuple[list[_Row], dict[str, str]]:
    root = captions[0].parent
    licences, said = v2_licences(root / V2_FILE)
    rows: list[_Row] = []
    for path in captions:
        split = path.name.removesuffix("_captions.csv")
        table = read_table(path)
        id_column, caption_column = table.positions("ID", "Caption")
        likely = (root / split, root / f"{split}_images" / split, root / f"{split}_images", root / "images" / split)
        folder = _images_of(next((folder for folder in likely if folder.is_dir()), root / split), images)
        for cells in table.rows:
            name = cells[id_column].strip()
            article, licence = licences.get(name, ("", ""))
            file = inside(folder, name if name.lower().endswith(".jpg") else f"{name}.jpg")
            rows.append(
                _Figure(name.removesuffix(".jpg"), file, cells[caption_column].strip(), split, article, licence)
                if name
                else "no image named"
            )
    return rows, {
        "form": "ROCOv2",
        "rows": "the rows of " + ", ".join(_short(path) for path in captions) + ", counted through",
        "licences": said,
        "not used": "concepts (CUIs)",
    }


def _images_of(usual: Path, named: Path | None) -> Path:
    folder = named if named is not None else usual
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images; name it with --images")
    return folder


def _lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line} is not UTF-8: save the file again as UTF-8") from error
    # Only a line feed ends a line: captions hold other characters that str.splitlines would split at.
    return [line for line in text.split("\n") if line.strip()]


def _of_licences(rows: list[_Row], asked: str) -> list[_Row]:
    kinds = {licence_kind(name) for name in asked.split(",") if name.strip()}
    there = {licence_kind(row.licence) or "(none)" for row in rows if not isinstance(row, str)}
    strange = kinds - there
    if strange:
        raise UserError(
            f"--roco-licences: no figure has {', '.join(sorted(strange))}; there are {', '.join(sorted(there))}"
        )
    return [
        row if isinstance(row, str) or licence_kind(row.licence) in kinds else "licence not asked for" for row in rows
    ]


def _articles(rows: list[_Row]) -> str:
    splits: dict[str, set[str]] = {}
    for row in rows:
        if not isinstance(row, str) and row.article:
            splits.setdefault(row.article, set()).add(row.split)
    if not splits:
        return "not known"
    torn = sum(len(found) > 1 for found in splits.values())
    return f"{len(splits)}; {torn} of them have figures in more than one split, as their owners split them"


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
