"""Format `openi`: the Indiana University chest X-rays of Open-i: one XML file a report, and PNG files.

A report names its images; each becomes one record with the text of the report. The collection has one report
a patient, and its views are not told apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.paths import OUTSIDE, inside
from hybridclip_jax.data.study import Format, Skip, Source, Study
from hybridclip_jax.errors import UserError

REPORTS_FOLDER = "ecgen-radiology"
IMAGES_FOLDER = "NLMCXR_png"
LABEL = "normal"
SECTIONS = {"FINDINGS": "findings", "IMPRESSION": "impression", "COMPARISON": "comparison"}
_LARGEST = 1_000_000  # bytes; the real ones have up to 9,000
_NOT_INDEXED = "no indexing"
_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)")


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    """None of its own."""


def _read(args: argparse.Namespace) -> Source:
    source = Path(args.source)
    reports = _folder(args.reports, source, REPORTS_FOLDER, "--reports")
    images = _folder(args.images, source, IMAGES_FOLDER, "--images")
    files = sorted((path for path in reports.iterdir() if path.suffix.lower() == ".xml"), key=_numeric)
    if not files:
        raise UserError(f"{reports} holds no XML reports: name their folder with --reports")
    return Source(
        studies=_Studies(files, images),
        total=None,  # a report may have any number of images
        labels=(LABEL,),
        namespace="openi",
        public_ids=False,
        synthetic=False,
        notes={
            "rows": "the XML files in the order of their numbers",
            "text": "AbstractText parts that are not empty, each behind its label",
            "sections": ", ".join(SECTIONS.values()),
            "labels": f"{LABEL}: whether MeSH/major says normal, and blank where it says nothing or {_NOT_INDEXED}",
            "not used": "other MeSH/major headings, MeSH/automatic, captions",
            "patient": "one report a patient, as the collection was made",
            "view": "not told apart by the source",
        },
    )


FORMAT = Format(
    "openi",
    _add_arguments,
    _read,
    describe="Open-i (Indiana University): ecgen-radiology/*.xml and NLMCXR_png/*.png",
    example="--source openi",
    paths=frozenset({"source", "images", "reports"}),
    text="findings+impression",
)


def _folder(named: str | None, source: Path, usual: str, flag: str) -> Path:
    folder = Path(named) if named is not None else source / usual
    if named is None and not folder.is_dir():
        folder = source
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give --source the folder that holds {usual}, or give {flag}")
    return folder


def _numeric(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isascii() and path.stem.isdigit() else 0, path.name)


@dataclasses.dataclass(frozen=True)
class _Studies:
    files: list[Path]
    images: Path

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, path in enumerate(self.files, start=1):
            report = _report(path)
            if isinstance(report, str):
                yield Skip(row, report)
            elif not report.images:
                yield Skip(row, "report without an image")
            else:
                yield from (self._study(row, report, image) for image in report.images)

    def _study(self, row: int, report: _Report, image: str) -> Study | Skip:
        path = inside(self.images, f"{image}.png")
        if path is None:
            return Skip(row, OUTSIDE)
        return Study(
            source_row=row,
            id=image,
            study=report.name,
            patient=report.name,
            split="",
            view="",
            text="\n".join(f"{label}: {text}" for label, text in report.parts.items()),
            sections={SECTIONS[label]: text for label, text in report.parts.items() if label in SECTIONS},
            labels={LABEL: report.normal},
            load_image=pixels.lazy(path),
            licence=report.licence,
        )


@dataclasses.dataclass(frozen=True)
class _Report:
    name: str
    images: tuple[str, ...]
    parts: dict[str, str]  # by label, those with a text
    normal: float | None
    licence: str


def _report(path: Path) -> _Report | str:
    """The report, or why it cannot be used."""
    try:
        if path.stat().st_size > _LARGEST:
            return "report larger than 1 MB"
        text = path.read_bytes().decode("utf-8-sig")
    except OSError:
        return "report that cannot be read"
    except UnicodeDecodeError:
        return "report that is not UTF-8"
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can make gigabytes of a small file, or name other files
        return "XML with a document type"
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return "damaged XML"
    uid = root.find("uId")
    name = uid.get("id", "").strip() if uid is not None else ""
    if not name:
        return "report without uId"
    parts: dict[str, str] = {}
    for part in root.iter("AbstractText"):
        said = "".join(part.itertext()).strip()
        if said:
            label = part.get("Label", "").strip().upper()
            parts[label] = f"{parts[label]}\n{said}" if label in parts else said
    images = dict.fromkeys(image.get("id", "").strip() for image in root.iter("parentImage"))
    return _Report(name, tuple(image for image in images if image), parts, _normal(root), _licence(root))


def _normal(root: ElementTree.Element) -> float | None:
    major = [(heading.text or "").strip().lower() for heading in root.iterfind("MeSH/major")]
    said = [heading for heading in major if heading and heading != _NOT_INDEXED]
    return float(LABEL in said) if said else None


def _licence(root: ElementTree.Element) -> str:
    link = _CREATIVE_COMMONS.search(root.findtext("licenseURL", ""))
    return f"CC {link[1].upper()} {link[2]}" if link else root.findtext("licenseType", "").strip()
