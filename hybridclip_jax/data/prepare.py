"""From a dataset's studies to a store: every row is kept or skipped for a counted reason, every image decoded
once.

What an attempt that was killed, interrupted or out of disk had done is gone on from, where the plan is the same: the
rows and all they say, the options, the key, the versions, and (for those already done) size and time of change of the
image files. An image that could not be read is tried again, as a disk, a permission or a decoder may have come back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hybridclip_jax
from hybridclip_jax.data import pixels
from hybridclip_jax.data.encoding import SIDE
from hybridclip_jax.data.journal import Done
from hybridclip_jax.data.plan import Options, Outcome, Plan, Progress, make_plan
from hybridclip_jax.data.private_ids import PUBLIC_KEY, IdHasher, user_key
from hybridclip_jax.data.store_writer import GoesOn, StoreWriter
from hybridclip_jax.data.study import Source
from hybridclip_jax.data.workers import Pixels, decode, decode_all, file_state, files_of, tokenizer
from hybridclip_jax.errors import StorageError, UserError

CAP_FROM_ROWS = 200  # below this, one bad file of a small trial would already be above the cap
_SHOWN_ROWS = 20
_LIBRARIES = ("pillow", "numpy", "pyarrow")
# Listed where they are installed: readers, and what pydicom decodes with, which differ in rounding.
_MORE_LIBRARIES = (
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
    "python-gdcm",
    "h5py",
    "array-record",
)
_JPEG_SHARE = 0.4  # of the raw bytes; radiographs take about 0.32: what to ask of the disk before it is known


def prepare(
    source: Source,
    out: Path,
    options: Options,
    *,
    format_name: str,
    workers: int | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Writes the store `out` from `source`; nothing appears at `out` unless all went well.

    Equal input, options, key and versions of this package and its libraries give equal bytes, however often it was
    killed on the way. `workers` None means one for each core this process may use. `say` is told, in a line, what
    was found of an earlier attempt.

    Raises:
        UserError: an empty source, nothing kept, one patient in two splits, one image in two differing rows,
            more unreadable images than `max_skipped` allows, and what StoreWriter raises.
        StorageError: the disk refuses or is too small. RunStopped: a worker process died.
    """
    hasher = IdHasher(PUBLIC_KEY if source.public_ids else user_key(), source.namespace)
    plan = make_plan(source, options, hasher, progress)
    _check_cap(plan, plan.unreadable, 0, options, "")
    how = _how(source, options, hasher, format_name)
    sections = tuple(dict.fromkeys(name for record in plan.records for name in record.sections))
    with StoreWriter(
        out,
        channels=options.channels,
        labels=source.labels,
        sections=sections,
        synthetic=source.synthetic,
        encoding=options.encoding,
    ) as writer:
        digest = hasher("plan", _digest(plan, how, options))
        earlier = _resume(writer, plan, digest, options, progress, say)
        _check_space(out, len(plan.records) - len(earlier), options)
        _images(writer, plan, earlier, options, workers, progress)
        outcome = plan.outcome()
        if not outcome.kept:
            reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.skipped.items())
            raise UserError(
                f"none of the {outcome.read} rows could be kept ({reasons}): {_remedy(outcome, options.text)};"
                " no store was made"
            )
        for reason, skipped in outcome.skipped_rows.items():
            for row in skipped:
                writer.skip(row, reason)
        writer.finish(_manifest(how, outcome))
    return outcome


def _resume(
    writer: StoreWriter, plan: Plan, digest: str, options: Options, progress: Progress, say: Callable[[str], None]
) -> list[Done]:
    """What became of the first images in an earlier attempt."""
    state = functools.lru_cache(maxsize=64)(file_state)  # many images may lie in one file
    how = Pixels(options.channels, options.resize, options.encoding)

    def unchanged(n: int, done: Done) -> bool:
        progress("check", n + 1, len(plan.loads))
        if tuple(map(state, files_of(plan.loads[n]))) != done.files:
            return False
        return not done.unreadable or decode((plan.loads[n], plan.records[n].text), how)[0].reason == done.reason

    before = writer.earlier_plan()
    done = writer.resume(digest, unchanged)
    if done:
        say(f"going on behind {len(done)} of {len(plan.loads)} images that an earlier attempt left in {writer.partial}")
    elif before == digest:
        say(f"starting over: nothing in {writer.partial} could be used")
    elif before is not None:
        say(f"starting over: {writer.partial} was made from another source, options, key or versions")
    return done


def _images(
    writer: StoreWriter, plan: Plan, earlier: list[Done], options: Options, workers: int | None, progress: Progress
) -> None:
    """Everything that is done for each image, and the accounts of it."""
    total, behind = len(plan.records), len(earlier)
    unreadable = list(plan.unreadable)
    how = Pixels(options.channels, options.resize, options.encoding)
    tasks = ((plan.loads[n], plan.records[n].text) for n in range(behind, total))
    with contextlib.closing(decode_all(tasks, total - behind, how, workers)) as decoded:
        fresh = (writer.put(done, data) for done, data in decoded)
        all_done = zip(plan.records, plan.patient_known, itertools.chain(earlier, fresh), strict=True)
        for n, (record, patient_known, done) in enumerate(all_done, start=1):
            if done.reason:
                plan.skip(record.source_row, done.reason)
                unreadable += [record.source_row] * done.unreadable
                _check_cap(plan, unreadable, n, options, f"; what is done is kept in {writer.partial}")
            else:
                writer.add(dataclasses.replace(record, n_tokens=done.n_tokens), done)
                plan.without_text += not record.text
                plan.patients_unknown += not patient_known
            if n > behind or n == total:
                progress("prepare", n, total)


def _how(source: Source, options: Options, hasher: IdHasher, format_name: str) -> dict[str, Any]:
    """What the manifest says of how the store was made."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    for name in _MORE_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "labels": {"names": list(source.labels), "uncertain": options.uncertain, "blank": options.blank},
        "source": {"format": format_name, "notes": dict(source.notes)},
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


def _manifest(how: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    counts = {
        "read": outcome.read,
        "kept": outcome.kept,
        "skipped": outcome.skipped,
        "without_text": outcome.without_text,
    }
    ids = {**how["ids"], "patients_unknown": outcome.patients_unknown}
    return {**how, "source": {**how["source"], **counts}, "ids": ids}


def _digest(plan: Plan, how: dict[str, Any], options: Options) -> str:
    """Of all that the store is made from but the images themselves."""
    splits = hashlib.sha256("\n".join(record.split for record in plan.records).encode()).hexdigest()
    rest = [hybridclip_jax.__version__, options.encoding, splits, plan.digest.hexdigest()]
    return json.dumps([how, *rest], sort_keys=True)


def _check_cap(plan: Plan, unreadable: list[int], done: int, options: Options, kept: str) -> None:
    """Raises GoesOn where too many rows are unreadable, when `done` of the records have been looked at."""
    if plan.read < CAP_FROM_ROWS or len(unreadable) <= options.max_skipped * plan.read:
        return
    rows = ", ".join(map(str, unreadable[:_SHOWN_ROWS])) + (", ..." if len(unreadable) > _SHOWN_ROWS else "")
    found = len(plan.unreadable)  # while the rows were read, before any image was opened
    raise GoesOn(
        f"{len(unreadable)} images of the first {found + done} of {found + len(plan.records)} cannot be read, above"
        f" --max-skipped {options.max_skipped:g} of {plan.read} rows (rows {rows}): mend the files, or allow more with"
        f" --max-skipped; no store was made{kept}"
    )


def _remedy(outcome: Outcome, text: str) -> str:
    """What most often helps where no row could be kept."""
    most = next(iter(outcome.skipped))
    if most.startswith("no ") and text != "report" and most.removeprefix("no ") == text.replace("+", " or "):
        return "pair another part of the report with --text"
    if most == "no report file":
        return "name the folder of the reports with --reports"
    if most == "missing image file":
        return "mend the source, or name the folder of its images with --images"
    return "mend the source"


def _check_space(out: Path, records: int, options: Options) -> None:
    share = _JPEG_SHARE if options.encoding == "jpeg" else 1
    need = int(records * SIDE * SIDE * options.channels * share)
    free = shutil.disk_usage(out.parent).free
    if need > free:
        raise StorageError(
            f"{out.parent} has {free / 1e9:.1f} GB free and the store takes {need / 1e9:.1f} GB: make room"
        )
