"""What a store is to be made of, before any image is opened: rows are told apart, counted and given their text."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Mapping

from hybridclip_jax.data.private_ids import IdHasher
from hybridclip_jax.data.records import Record
from hybridclip_jax.data.sectioning import is_placeholder
from hybridclip_jax.data.splits import assign_splits
from hybridclip_jax.data.study import RecordError, Skip, Source, Study
from hybridclip_jax.data.workers import LoadImage
from hybridclip_jax.errors import UserError

# What a row says of its image: all but where it stands and how the image is read.
_SHOWN_PAIRS = 10
_SAID = [field.name for field in dataclasses.fields(Study) if field.name not in ("source_row", "load_image")]
TEXTS = ("report", "findings", "impression", "findings+impression")

Progress = Callable[[str, int, int], None]  # what is being done ("scan", "check", "prepare"), how much of how much


@dataclasses.dataclass(frozen=True)
class Options:
    """How to prepare; the same for every format."""

    split: str | None = None  # all rows into this split, whatever the source says
    split_by_patient: Mapping[str, float] | None = None  # share of patients by split name; adds up to 1
    text: str = "report"  # one of TEXTS: the whole text, or sections of it
    resize: str = "pad"
    colour: bool = False
    encoding: str = "raw"  # one of encoding.ENCODINGS
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
    without_text: int  # kept although they have no text, which only evaluation sets may have
    patients_unknown: int  # kept although the source does not name their patient


class Plan:
    """What is known of the rows before any image is opened."""

    def __init__(self) -> None:
        self.read = 0
        self.unreadable: list[int] = []  # rows whose image the reader itself could not read
        self.without_text = 0  # of the records that were kept, as are the next
        self.patients_unknown = 0
        self.records: list[Record] = []  # without their token counts
        self.loads: list[LoadImage] = []  # one for each record
        self.patient_known: list[bool] = []  # one for each record
        self.digest = hashlib.sha256()  # of the rows
        self._skipped: dict[str, list[int]] = collections.defaultdict(list)

    def skip(self, row: int, reason: str) -> None:
        self._skipped[reason].append(row)

    def outcome(self) -> Outcome:
        rows = sorted(self._skipped.items(), key=lambda item: (-len(item[1]), item[0]))
        skipped = {reason: len(found) for reason, found in rows}
        kept = self.read - sum(skipped.values())
        return Outcome(self.read, kept, skipped, dict(rows), self.without_text, self.patients_unknown)


def make_plan(source: Source, options: Options, hasher: IdHasher, progress: Progress) -> Plan:
    """Reads all rows of the source. `progress` is called with "scan".

    Raises:
        UserError: no rows, one image in two rows that differ, and what `assign_splits` raises.
    """
    plan = Plan()
    studies: list[Study] = []
    same_labels: dict[tuple[tuple[str, float | None], ...], dict[str, float | None]] = {}  # few among many rows
    contents: dict[str, tuple[int, bytes]] = {}  # by id: its row, and a digest of all that the row says
    differing: list[tuple[int, int]] = []  # rows of one image that do not say the same
    for study in source.studies:
        plan.read += 1
        progress("scan", plan.read, max(source.total or 0, plan.read))
        if isinstance(study, Skip):
            plan.digest.update(repr(study).encode())
            plan.skip(study.source_row, study.reason)
            plan.unreadable += [study.source_row] * study.unreadable
            continue
        content = hashlib.blake2b(repr([getattr(study, name) for name in _SAID]).encode(), digest_size=24).digest()
        plan.digest.update(content + f"{study.source_row} {_name_of(study.load_image)}\n".encode())
        if study.id in contents:
            first_row, first_content = contents[study.id]
            if first_content != content:
                differing.append((first_row, study.source_row))
            plan.skip(study.source_row, "duplicate row")
            continue
        contents[study.id] = (study.source_row, content)
        try:
            text = paired_text(study, options.text)
        except RecordError as error:
            if not source.text_optional:
                plan.skip(study.source_row, error.reason)
                continue
            text = ""
        labels = same_labels.setdefault(tuple(study.labels.items()), study.labels)
        studies.append(dataclasses.replace(study, text=text, labels=labels))
    if not plan.read:
        raise UserError("the source has no rows: nothing to prepare")
    if differing:
        pairs = ", ".join(f"{a} and {b}" for a, b in differing[:_SHOWN_PAIRS])
        raise UserError(
            f"rows {pairs}{', ...' if len(differing) > _SHOWN_PAIRS else ''} name the same image with different text,"
            f" labels, patient, split or view ({len(differing)} such rows): keep one of each"
        )
    contents.clear()
    splits = assign_splits(studies, hasher, options.split, options.split_by_patient)
    studies.reverse()
    for split in splits:
        study = studies.pop()  # let go of, as there are many
        plan.records.append(_record(study, split, hasher))
        plan.loads.append(study.load_image)
        plan.patient_known.append(study.patient_known)
    return plan


def paired_text(study: Study, policy: str) -> str:
    """The text that goes with the image: all of it, or the sections that `policy` (one of TEXTS) names, whole.

    Of "findings+impression" what is there, a blank line between both. Raises RecordError where nothing is left.
    """
    parts = [study.text] if policy == "report" else [study.sections.get(name, "") for name in policy.split("+")]
    said = [part for part in dict.fromkeys(parts) if part.strip()]  # of findings and impression in one, once
    if not said:
        raise RecordError("empty text" if policy == "report" else f"no {policy.replace('+', ' or ')}", unreadable=False)
    kept = [part for part in said if not is_placeholder(part)]
    if not kept:
        raise RecordError("a placeholder in place of a text", unreadable=False)
    return kept[0] if len(kept) == 1 else "\n\n".join(part.strip() for part in kept)


def _name_of(load_image: LoadImage) -> str:
    """What is called with which arguments; equal in every process."""
    function = getattr(load_image, "func", load_image)
    given = (getattr(load_image, "args", ()), getattr(load_image, "keywords", {}))
    return f"{function.__module__}.{function.__qualname__} {given!r}"


def _record(study: Study, split: str, hasher: IdHasher) -> Record:
    return Record(
        id=hasher("id", study.id),
        study=hasher("study", study.study),
        patient=hasher("patient", study.patient),
        split=split,
        view=study.view,
        text=study.text,
        sections=study.sections,
        n_tokens=0,
        labels=study.labels,
        licence=study.licence,
        source_row=study.source_row,
    )
