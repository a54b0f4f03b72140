"""Real stores of pairs, and encoders that look planted embeddings up.

Row i of a store is an image of grey value i, and its planted embedding is row i of params["image"]; the embedding of
a text is the one that `texts` gives it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.evals import EVALUATORS, Evaluator, Preparation
from hybridclip_jax.evals.encode import Encode

SIZE = 16
TOKENIZER = Tokenizer()
PREPARATION = Preparation(TOKENIZER, 77, SIZE)


@dataclasses.dataclass(frozen=True)
class Row:
    """One record. patient, study: by default its own. grey: value of its pixels, by default the row's number."""

    text: str = "a report"
    patient: str = ""
    study: str = ""
    labels: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    grey: int | None = None
    view: str = ""
    source_row: int | None = None


def write_store(
    path: Path, rows: Sequence[Row], *, unknown_patients: int = 0, namespace: str = "test", **manifest: Any
) -> str:
    """Where it is; `manifest` replaces fields of the manifest."""
    names = tuple(rows[0].labels)
    with StoreWriter(path, channels=1, labels=names, sections=(), synthetic=True) as writer:
        for i, row in enumerate(rows):
            record = Record(
                id=f"{path.name}-i{i}", study=row.study or f"{path.name}-s{i}",
                patient=row.patient or f"{path.name}-p{i}", split="test", view=row.view, text=row.text, sections={},
                n_tokens=4, labels=dict(row.labels), source_row=i + 1 if row.source_row is None else row.source_row,
            )  # fmt: skip
            image = np.full((320, 320, 1), i if row.grey is None else row.grey, np.uint8)
            # Equal images are in one store only where their names are: what no evaluation may be fitted on.
            image[0, :8, 0] = np.frombuffer(hashlib.blake2b(path.name.encode(), digest_size=8).digest(), np.uint8)
            writer.append(record, image)
        ids = {"namespace": namespace, "key_fingerprint": "0", "patients_unknown": unknown_patients}
        policy = {"names": list(names), "uncertain": "ignore", "blank": "missing"}
        about = {"labels": policy, "ids": ids, "source": {"format": "test"}, "text": "report", "preprocessing": {}}
        writer.finish(about | manifest)
    return str(path)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def planted(texts: Mapping[str, np.ndarray], batch_size: int = 8) -> Encode:
    """Encoders of the planted embeddings; `texts` by text."""
    known = {tuple(TOKENIZER.encode(text)): vector for text, vector in texts.items()}

    def of_images(params: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
        assert images.shape == (batch_size, SIZE, SIZE, 1)
        return params["image"][images[:, SIZE // 2, SIZE // 2, 0]]

    def of_texts(params: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
        assert ids.shape[0] == batch_size
        return np.stack([known[tuple(row[1 : row.tolist().index(TOKENIZER.eot)].tolist())] for row in ids])

    return Encode(images=of_images, texts=of_texts, batch_size=batch_size)


def kinds(values: Mapping[str, Any]) -> set[str]:
    """The kinds of value, without what stands beside one."""
    beside = ("lo", "hi", "resamples", "why", "chance", "ceiling", "labels")
    return {name.partition("/")[0] for name in values if name.partition("/")[0].rpartition("_")[2] not in beside}


def evaluator(protocol: str, spec: str, **fields: Any) -> Evaluator:
    return EVALUATORS[protocol]("e", {"protocol": protocol, "data": spec, **fields}, PREPARATION)
