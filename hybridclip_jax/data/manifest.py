"""What a store's manifest has to say before anything is done with it: it may have been edited or cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridclip_jax.data.encoding import ENCODINGS, shard_name

TABLE = "table.parquet"
UNCERTAIN = ("ignore", "zero", "one")
BLANK = ("missing", "negative")
_KINDS: dict[str, type] = {
    "records": int,
    "channels": int,
    "synthetic": bool,
    "encoding": str,
    "shard_records": int,
    "splits": dict,
    "sections": list,
    "labels": dict,
    "ids": dict,
    "files": dict,
}
_OPTIONAL: dict[str, type] = {"preprocessing": dict, "source": dict}


def wrong_field(manifest: dict[str, Any]) -> str | None:
    """The first field that `prepare` cannot have written so; None where there is none.

    An encoding that this program does not know is no such field: a later version may have written it.
    """
    for field, kind in (_KINDS | {key: kind for key, kind in _OPTIONAL.items() if key in manifest}).items():
        if type(manifest.get(field)) is not kind:  # not isinstance: True is no number
            return field
    return next(_wrong_values(manifest), None)


def _wrong_values(manifest: dict[str, Any]) -> Iterator[str]:
    """Fields whose kinds are right, and whose contents are not."""
    for field, fine in (
        ("records", _counts(manifest["records"])),
        ("channels", manifest["channels"] in (1, 3)),
        ("shard_records", _counts(manifest["shard_records"]) and manifest["shard_records"] > 0),
        ("sections", _names(manifest["sections"])),
    ):
        if not fine:
            yield field
    labels, ids = manifest["labels"], manifest["ids"]
    if not _names(labels.get("names")):
        yield "labels.names"
    for field, known in (("uncertain", UNCERTAIN), ("blank", BLANK)):
        if labels.get(field) not in known:
            yield f"labels.{field}"
    for field in ("namespace", "key_fingerprint"):
        if not isinstance(ids.get(field), str):
            yield f"ids.{field}"
    if not _counts(ids.get("patients_unknown", 0)):
        yield "ids.patients_unknown"
    records: list[Any] = [
        split.get("records") if isinstance(split, dict) else None for split in manifest["splits"].values()
    ]
    if not all(map(_counts, records)) or sum(records) != manifest["records"]:
        yield "splits"
    yield from _wrong_files(manifest)


def _wrong_files(manifest: dict[str, Any]) -> Iterator[str]:
    files = manifest["files"]
    for name, facts in files.items():
        if not (isinstance(facts, dict) and _counts(facts.get("bytes")) and isinstance(facts.get("sha256"), str)):
            yield f"files.{name}"
    needed = [TABLE]
    if manifest["encoding"] in ENCODINGS:
        shards = -(-manifest["records"] // manifest["shard_records"])
        if shards > len(files):
            yield "files"
            return
        needed += [shard_name(index, ENCODINGS[manifest["encoding"]].suffix) for index in range(shards)]
    for name in needed:
        if name not in files:
            yield f"files.{name}"


def _counts(value: Any) -> bool:
    return type(value) is int and value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
