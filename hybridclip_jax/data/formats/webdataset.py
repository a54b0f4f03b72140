"""Format `webdataset`: plain tar shards in which the files of one sample follow each other under one key.

A sample is an image (key.jpg, key.png, ...) with key.txt, or with key.json whose fields are the columns of a
table (`columns.py`); an object `labels` in it counts as columns of its own. The shards are read as they lie:
one pass over the headers and texts, later each image from its place.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.columns import ROLES, ROLES_BESIDE_IMAGES, SECTIONS, Columns, add_flags, find_columns
from hybridclip_jax.data.formats.shards import split_of
from hybridclip_jax.data.formats.table import Table, as_text, is_name
from hybridclip_jax.data.formats.tar_index import Member, members
from hybridclip_jax.data.study import Format, RecordError, Skip, Source, Study
from hybridclip_jax.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp", "gif", "ppm", "pgm", "jp2", "dcm")
_KNOWN = ("cls", "npy", "npz", "pth", "pt", "pkl", "pyd", "msgpack", "xml", "mp4", "md5")
PREFIX = "webdataset-"
_LARGEST_IMAGE = 256_000_000  # bytes
_LARGEST_TEXT = 1_000_000
_MOST_SHARDS = 100_000
_MOST_FIELDS = 1_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.S)


@dataclasses.dataclass(slots=True)
class _Sample:
    """The members of one key; `fault` says why it cannot be used."""

    key: str
    shard: Path
    images: list[Member] = dataclasses.field(default_factory=list)
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    text: str | None = None
    fault: str = ""


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    add_flags(parser, ROLES_BESIDE_IMAGES, PREFIX)


def _read(args: argparse.Namespace) -> Source:
    shards = _shards(args.source)
    samples, unused = _samples(shards)
    faults = collections.Counter(sample.fault or _image_fault(sample.images) for sample in samples)
    if not samples:
        raise UserError(f"{args.source} holds no samples: the shards are empty")
    if "" not in faults:
        reasons = ", ".join(f"{reason} {count}" for reason, count in faults.most_common())
        raise UserError(
            f"{args.source}: none of the {len(samples)} samples can be used ({reasons}): make the shards anew"
        )
    table, named = _table(Path(args.source), samples, unused)
    columns = find_columns(table, args, ROLES_BESIDE_IMAGES, PREFIX)
    return Source(
        studies=_Studies(samples, table, columns),
        total=len(samples),
        labels=tuple(columns.labels),
        text_optional=columns.text_optional,
        namespace=f"webdataset:{shards[0].parent.resolve().name}",
        public_ids=False,
        synthetic=False,
        notes={
            "shards": f"{len(shards)}; their samples are the rows, counted through",
            **columns.notes,
            **({"split": "from the names of the shards"} if named else {}),
            "members not used": ", ".join(f"{kind} {count}" for kind, count in sorted(unused.items())) or "none",
        },
    )


FORMAT = Format(
    "webdataset",
    _add_arguments,
    _read,
    describe="plain tar shards of key.jpg (or png, ...) with key.txt or key.json",
    example="--source 'shards/cxr-{000..063}.tar'",
    paths=frozenset({"source"}),
)


@dataclasses.dataclass(frozen=True)
class _Studies:
    samples: list[_Sample]
    table: Table
    columns: Columns

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, (sample, cells) in enumerate(zip(self.samples, self.table.rows, strict=True), start=1):
            fault = sample.fault or _image_fault(sample.images)
            if fault:
                yield Skip(row, fault)
            else:
                (image,) = sample.images
                load_image = functools.partial(open_member, sample.shard, image.offset, image.size)
                yield self.columns.study(row, cells, sample.key, load_image)


def open_member(shard: Path, offset: int, size: int) -> PIL.Image.Image:
    """The image at that place of a shard; raises RecordError as `pixels.open_bytes` does, or if the shard is gone."""
    try:
        with shard.open("rb") as file:
            file.seek(offset)
            raw = file.read(size)
    except OSError as error:
        raise RecordError("shard that cannot be read") from error
    return pixels.open_bytes(raw)


def _image_fault(images: list[Member]) -> str:
    if len(images) != 1:
        return "sample with several images" if images else "sample without an image"
    return "image larger than 256 MB" if images[0].size > _LARGEST_IMAGE else ""


def _shards(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            packed = any(path.glob("*.tar.*")) or any(path.glob("*.tgz"))
            raise UserError(f"{path} holds no .tar files" + (": unpack the compressed ones first" if packed else ""))
        return found
    shards = [Path(name) for name in _expand(source)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such shard ({len(missing)} of {len(shards)} are missing)")
    return shards


def _expand(pattern: str) -> list[str]:
    """Every name that a pattern with {000..123} or {a,b} stands for; leading zeros are kept."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, listed = braces.groups()
    if listed is not None:
        parts = listed.split(",")
    elif not 0 <= int(last) - int(first) < _MOST_SHARDS:
        raise UserError(f"--source: {braces[0]} is no range of up to {_MOST_SHARDS} shards")
    else:
        parts = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    rest = _expand(pattern[braces.end() :])
    if len(parts) * len(rest) > _MOST_SHARDS:
        raise UserError(f"--source names more than {_MOST_SHARDS} shards")
    return [pattern[: braces.start()] + part + end for part in parts for end in rest]


def _samples(shards: list[Path]) -> tuple[list[_Sample], collections.Counter[str]]:
    """Samples in order, what cannot be one among them; and how many members of other types there are."""
    samples: list[_Sample] = []
    seen: dict[str, int] = {}
    unused: collections.Counter[str] = collections.Counter()
    for shard in shards:
        current: _Sample | None = None
        with shard.open("rb") as file:
            for member in members(shard):
                key, kind, fault = _name(member)
                if fault:
                    samples.append(_Sample(key, shard, fault=fault))
                    continue
                if current is None or key != current.key:
                    current = _Sample(key, shard)
                    samples.append(current)
                    if key in seen:
                        raise UserError(
                            f"{shard}: samples {seen[key]} and {len(samples)} have one key: the files of a sample must"
                            " follow each other, and no two samples share a key"
                        )
                    seen[key] = len(samples)
                _add(current, member, kind, file, unused)
    return samples, unused


def _name(member: Member) -> tuple[str, str, str]:
    """Key, type in lower case, and why the member is refused ("" if not)."""
    name = member.name.removeprefix("./")
    if not member.is_file:
        return "", "", "a link or device in the shard"
    if name.startswith("/") or ".." in name.split("/"):
        return "", "", "a path that leaves the shard"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "", "", "a name that is not UTF-8"
    match = _KEY.fullmatch(name)
    return (match[1], match[2].lower(), "") if match else ("", "", "a file without key and type")


def _add(sample: _Sample, member: Member, kind: str, file: BinaryIO, unused: collections.Counter[str]) -> None:
    if kind in IMAGES:
        sample.images.append(member)
    elif kind not in ("txt", "json"):
        # Any other type is not named: behind the first dot of a file name may stand half a patient's id.
        unused[f".{kind}" if kind in _KNOWN else "other types"] += 1
    elif member.size > _LARGEST_TEXT:
        sample.fault = "text larger than 1 MB"
    else:
        file.seek(member.offset)
        try:
            text = file.read(member.size).decode("utf-8-sig")
            if kind == "txt":
                sample.text = text
            else:
                _add_fields(sample, json.loads(text), unused)
        except UnicodeError:
            sample.fault = "text that is not UTF-8"
        except (ValueError, RecursionError):
            sample.fault = "JSON that is no object of named fields"


def _add_fields(sample: _Sample, said: object, unused: collections.Counter[str]) -> None:
    if not isinstance(said, dict):
        raise ValueError("not an object")
    labels = said.pop("labels", None)
    fields = {**said, **labels} if isinstance(labels, dict) else said
    for name, value in fields.items():
        if not is_name(name):
            raise ValueError("data for a key")
        if isinstance(value, list | dict):
            unused[f".json {name!r}"] += 1
        else:
            sample.fields[name] = as_text(value)
    json.dumps(sample.fields, ensure_ascii=False).encode()  # UnicodeError for half a character


def _table(path: Path, samples: list[_Sample], unused: collections.Counter[str]) -> tuple[Table, bool]:
    """A row for each sample: the fields of its .json, its .txt as `text`; and whether the shards name a split."""
    names = dict.fromkeys(name for sample in samples for name in sample.fields)
    if len(names) > _MOST_FIELDS:
        raise UserError(f"{path}: the .json files have more than {_MOST_FIELDS} different fields between them")
    if any(sample.text is not None for sample in samples):
        for name in [name for name in names if name.lower() in ROLES["text"] and name.lower() not in SECTIONS]:
            del names[name]
            unused[f".json {name!r} (.txt is the text)"] += sum(name in sample.fields for sample in samples)
        names["text"] = None
    splits = {sample.shard: split_of(sample.shard.stem) for sample in samples}
    add_split = any(splits.values()) and not any(name.lower() == "split" for name in names)
    if add_split:
        names["split"] = None
    rows: list[list[str]] = []
    for sample in samples:
        own = {"split": splits[sample.shard], **sample.fields} if add_split else dict(sample.fields)
        if sample.text is not None:
            own["text"] = sample.text
        rows.append([own.get(name, "") for name in names])
    return Table(path, tuple(names), rows), add_split
