"""From a dataset's studies to a store: every row is kept or skipped for a counted reason, every image decoded
once.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.base import RecordError, Skip, Source, Study
from hybridclip_jax.data.private_ids import PUBLIC_KEY, IdHasher, user_key
from hybridclip_jax.data.splits import assign_splits
from hybridclip_jax.data.store import SIDE
from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.data.workers import decode_all, tokenizer
from hybridclip_jax.errors import StorageError, UserError

TEXTS = ("report", "findings", "impression")
CAP_FROM_ROWS = 200  # below this, one bad file of a small trial would already be above the cap
_SHOWN_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Options:
    """How to prepare; the same for every format."""

    split: str | None = None  # all rows into this split, whatever the source says
    split_by_patient: Mapping[str, float] | None = None  # share of patients by split name; adds up to 1
    text: str = "report"  # one of TEXTS: the whole text, or one section of it
    resize: str = "pad"
    colour: bool = False
    uncertain: str = "ignore"
    blank: str = "missing"
    max_skipped: float = 0.01  # cap on the share of unreadable images, from CAP_FROM_ROWS rows on

    @property
    def channels(self) -> int:
        """Channels a stored image has."""
        return 3 if self.colour else 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the rows: read = kept + sum(skipped.values())."""

    read: int
    kept: int
    skipped: dict[str, int]  # by reason, most frequent first
    skipped_rows: dict[str, list[int]]  # source rows by reason


def prepare(
    source: Source,
    out: Path,
    options: Options,
    *,
    format_name: str,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Writes the store `out` from `source`; nothing appears at `out` unless all went well.

    Equal input, options, key and versions of this package and its libraries give equal bytes. `workers` None
    means one for each core this process may use. `progress(done, total)` is called as images are decoded.

    Raises:
        UserError: an empty source, nothing kept, one patient in two splits, one image in two differing rows,
            more unreadable images than `max_skipped` allows, and what StoreWriter raises.
        StorageError: the disk refuses or is too small. RunStopped: a worker process died.
    """
    hasher = IdHasher(PUBLIC_KEY if source.public_ids else user_key(), source.namespace)
    plan = _plan(source, options, hasher)
    sections = tuple(dict.fromkeys(name for study in plan.studies for name in study.sections))
    with StoreWriter(
        out, channels=options.channels, labels=source.labels, sections=sections, synthetic=source.synthetic
    ) as writer:
        _check_space(out, len(plan.studies), options.channels)
        unreadable: list[int] = []
        allowed = options.max_skipped * plan.read if plan.read >= CAP_FROM_ROWS else float("inf")
        tasks = [(study.load_image, study.text) for study in plan.studies]
        decoding = decode_all(tasks, channels=options.channels, resize=options.resize, workers=workers)
        with contextlib.closing(decoding) as results:
            rows = zip(plan.studies, plan.splits, results, strict=True)
            for done, (study, split, result) in enumerate(rows, start=1):
                if isinstance(result, RecordError):
                    plan.skip(study.source_row, result.reason)
                    unreadable += [study.source_row] * result.unreadable
                    if len(unreadable) > allowed:
                        raise _too_many(unreadable, plan.read, done, len(plan.studies), options.max_skipped)
                else:
                    image, n_tokens = result
                    writer.append(_record(study, split, n_tokens, hasher), image)
                if progress is not None:
                    progress(done, len(plan.studies))
        outcome = plan.outcome()
        if not outcome.kept:
            reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.skipped.items())
            missing = "missing image file" in outcome.skipped
            where = ", or name the folder of its images with --images" if missing else ""
            raise UserError(
                f"none of the {outcome.read} rows could be kept ({reasons}): mend the source{where}; no store was made"
            )
        for reason, skipped in outcome.skipped_rows.items():
            for row in skipped:
                writer.skip(row, reason)
        writer.finish(_manifest(source, options, hasher, outcome, format_name))
    return outcome


class _Plan:
    """What is known of the rows before any image is opened."""

    def __init__(self) -> None:
        self.read = 0
        self.studies: list[Study] = []
        self.splits: list[str] = []  # one for each study
        self._skipped: dict[str, list[int]] = collections.defaultdict(list)

    def skip(self, row: int, reason: str) -> None:
        self._skipped[reason].append(row)

    def outcome(self) -> Outcome:
        rows = sorted(self._skipped.items(), key=lambda item: (-len(item[1]), item[0]))
        skipped = {reason: len(found) for reason, found in rows}
        return Outcome(self.read, self.read - sum(skipped.values()), skipped, dict(rows))


def _plan(source: Source, options: Options, hasher: IdHasher) -> _Plan:
    plan = _Plan()
    contents: dict[str, tuple[int, bytes]] = {}  # by id: its row, and a digest of all that the row says
    for study in source.studies:
        plan.read += 1
        if isinstance(study, Skip):
            plan.skip(study.source_row, study.reason)
            continue
        content = hashlib.blake2b(
            repr(dataclasses.replace(study, source_row=0, load_image=_no_image)).encode()
        ).digest()
        if study.id in contents:
            first_row, first_content = contents[study.id]
            if first_content != content:
                raise UserError(
                    f"rows {first_row} and {study.source_row} name the same image with different text,"
                    " labels, patient, split or view: keep one of them"
                )
            plan.skip(study.source_row, "duplicate row")
            continue
        contents[study.id] = (study.source_row, content)
        text = study.text if options.text == "report" else study.sections.get(options.text, "")
        if not text.strip():
            plan.skip(study.source_row, "empty text" if options.text == "report" else f"no {options.text}")
        else:
            plan.studies.append(dataclasses.replace(study, text=text))
    if not plan.read:
        raise UserError("the source has no rows: nothing to prepare")
    plan.splits = assign_splits(plan.studies, hasher, options.split, options.split_by_patient)
    return plan


def _no_image() -> PIL.Image.Image:
    raise NotImplementedError


def _record(study: Study, split: str, n_tokens: int, hasher: IdHasher) -> Record:
    return Record(
        id=hasher("id", study.id),
        study=hasher("study", study.study),
        patient=hasher("patient", study.patient),
        split=split,
        view=study.view,
        text=study.text,
        sections=study.sections,
        n_tokens=n_tokens,
        labels=study.labels,
        source_row=study.source_row,
    )


def _manifest(source: Source, options: Options, hasher: IdHasher, outcome: Outcome, format_name: str) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("pillow", "numpy", "pyarrow")}
    return {
        "labels": {"names": list(source.labels), "uncertain": options.uncertain, "blank": options.blank},
        "source": {
            "format": format_name,
            "notes": dict(source.notes),
            "read": outcome.read,
            "kept": outcome.kept,
            "skipped": outcome.skipped,
        },
        "ids": {
            "namespace": source.namespace,
            "key_fingerprint": hasher.fingerprint,
            "public_key": source.public_ids,
        },
        "text": options.text,
        "split_by_patient": dict(options.split_by_patient) if options.split_by_patient is not None else None,
        "preprocessing": {"resize": options.resize, "colour": options.colour, **pixels.RULES},
        # n_tokens counts the start and end tokens too, before any cut at a context length.
        "tokenizer": tokenizer().card(),
        "versions": versions,
    }


def _too_many(unreadable: list[int], read: int, done: int, total: int, cap: float) -> UserError:
    rows = ", ".join(map(str, unreadable[:_SHOWN_ROWS])) + (", ..." if len(unreadable) > _SHOWN_ROWS else "")
    return UserError(
        f"{len(unreadable)} images of the first {done} of {total} cannot be read, above --max-skipped {cap:g}"
        f" of {read} rows (rows {rows}): mend the files, or allow more with --max-skipped; no store was made"
    )


def _check_space(out: Path, records: int, channels: int) -> None:
    need = records * SIDE * SIDE * channels
    free = shutil.disk_usage(out.parent).free
    if need > free:
        raise StorageError(
            f"{out.parent} has {free / 1e9:.1f} GB free and the store takes {need / 1e9:.1f} GB: make room"
        )
