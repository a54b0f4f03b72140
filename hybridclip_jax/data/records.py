"""The rows of a store: what is told of each picture, and the table that holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1 << 14


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One row of the table; ids already hashed."""

    id: str
    study: str
    patient: str
    split: str
    view: str
    text: str
    sections: Mapping[str, str]
    n_tokens: int
    labels: Mapping[str, float | None]
    source_row: int
    licence: str = ""


def write_table(
    file: BinaryIO,
    records: Sequence[Record],
    hashes: Sequence[tuple[str, str]],
    *,
    sections: Sequence[str],
    labels: Sequence[str],
    synthetic: bool,
) -> None:
    """Writes parquet, one row a record. `hashes` are sha256 of the pixels and of the stored bytes, "" where the same.

    It is made in groups of rows: the texts of a large dataset are not held in memory once more.
    """
    texts = ("id", "study", "patient", "split", "view", "text")
    fields = [(name, pa.string()) for name in (*texts, *sections)]
    fields += [("n_tokens", pa.int32()), *((name, pa.float32()) for name in labels)]
    fields += [("licence", pa.string()), ("source_row", pa.int64()), ("image_sha256", pa.string())]
    if any(stored for _, stored in hashes):
        fields.append(("stored_sha256", pa.string()))
    schema = pa.schema(fields, metadata={"synthetic": "true" if synthetic else "false"})
    with pq.ParquetWriter(file, schema, compression="snappy") as writer:
        for start in range(0, len(records), ROW_GROUP):
            rows = records[start : start + ROW_GROUP]
            pixels, stored = zip(*hashes[start : start + ROW_GROUP], strict=True)
            columns: dict[str, list[object]] = {name: [getattr(row, name) for row in rows] for name in texts}
            columns |= {name: [row.sections.get(name, "") for row in rows] for name in sections}
            columns |= {name: [row.labels.get(name) for row in rows] for name in labels}
            columns |= {name: [getattr(row, name) for row in rows] for name in ("n_tokens", "licence", "source_row")}
            columns |= {"image_sha256": list(pixels), "stored_sha256": list(stored)}
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=ROW_GROUP)


def split_counts(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Records, studies and patients of each split, in the order in which the splits appear."""
    splits: dict[str, tuple[list[str], set[str], set[str]]] = {}
    for record in records:
        ids, studies, patients = splits.setdefault(record.split, ([], set(), set()))
        ids.append(record.id)
        studies.add(record.study)
        patients.add(record.patient)
    return {
        name: {"records": len(ids), "studies": len(studies), "patients": len(patients)}
        for name, (ids, studies, patients) in splits.items()
    }
