"""The values of an evaluation, each with what stands beside it, by their public names.

A value `<kind>/<rest>` may have `<kind>_lo/<rest>`, `<kind>_hi/<rest>`, `<kind>_resamples/<rest>`, `<kind>_why/<rest>`,
`<kind>_chance/<rest>` and `<kind>_ceiling/<rest>` (the best that can be) beside it; where it is the mean of its
resamples, the set's own as `<kind>_point/<rest>`; where it has no interval, `<kind>_interval_why/<rest>`; and where it
counts labels, their names as `<kind>_labels/<rest>`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hybridclip_jax.report.words import number

BESIDE = ("lo", "hi", "resamples", "why", "interval_why", "labels", "chance", "ceiling", "point")
# The level of a model that has learnt nothing, of kinds for which it is the same on every set.
CHANCE = {"auroc": 0.5, "probe_auroc": 0.5, "mcc": 0.0}
# Rests that are a summary of the others, and how a reader is told.
SUMMARIES = {
    "mean": "mean",
    "mean5": "mean of the five competition labels",
    "macro": "mean of the classes",
    "weighted": "mean of the classes, weighted by their size",
}
COUNTS = "n_labels"  # of auroc/mean: how many labels it is over
_KINDS = {
    "auroc": "AUROC",
    "f1": "F1",
    "mcc": "MCC",
    "probe_auroc": "AUROC of a linear probe",
    "loss_t0.07": "loss at a temperature of 0.07",
    "wording_bare": "AUROC with bare prompts",
    "wording_templated": "AUROC with templated prompts",
    "wording_spread": "spread of the AUROC over the prompts",
}
_WORDS = {"i2t": "image to text", "t2i": "text to image", "auroc": "AUROC", "f1": "F1"}


@dataclasses.dataclass(frozen=True)
class Value:
    """One value; None is undefined, with `why`, which may also say more of one that is defined.

    The rest is None where it was not written.
    """

    kind: str
    rest: str
    value: float | int | None
    low: float | None = None
    high: float | None = None
    resamples: int | None = None
    chance: float | None = None
    ceiling: float | None = None
    point: float | None = None
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.rest}"

    @property
    def summary(self) -> bool:
        return self.rest in SUMMARIES


def read(line: Mapping[str, Any]) -> list[Value]:
    """The values in a line of metrics.jsonl, or in the `values` of an evaluation, in the order they were written."""
    names: dict[tuple[str, str], None] = {}
    for key in line:
        kind, _, rest = key.partition("/")
        if not rest or any(f"{base}/{rest}" in line for base in _bases(kind)):
            continue
        names[kind.removesuffix("_why"), rest] = None  # an undefined value may be written by its reason alone
    return [_value(line, kind, rest) for kind, rest in names]


def _bases(kind: str) -> list[str]:
    """The kinds beside which this one may stand."""
    return [base for what in BESIDE if (base := kind.removesuffix(f"_{what}")) != kind]


def _value(line: Mapping[str, Any], kind: str, rest: str) -> Value:
    def beside(what: str) -> float | None:
        return number(line.get(f"{kind}_{what}/{rest}"))

    whole = line.get(f"{kind}/{rest}")  # a count is written without a point, and shown so
    value = whole if type(whole) is int else number(whole)
    resamples, chance = beside("resamples"), beside("chance")
    return Value(
        kind,
        rest,
        value,
        beside("lo"),
        beside("hi"),
        None if resamples is None else int(resamples),
        CHANCE.get(kind) if chance is None else chance,
        beside("ceiling"),
        beside("point"),
        str(_said(line, kind, rest) or ("no value was logged" if value is None else "")),
    )


def _said(line: Mapping[str, Any], kind: str, rest: str) -> Any:
    return next(filter(None, (line.get(f"{kind}_{what}/{rest}") for what in ("why", "interval_why", "labels"))), None)


def by_kind(values: list[Value]) -> dict[str, list[Value]]:
    kinds: dict[str, list[Value]] = {}
    for value in values:
        kinds.setdefault(value.kind, []).append(value)
    return kinds


def find(line: Mapping[str, Any], name: str) -> Value | None:
    """The value of that name in a line, or None where the line has none."""
    return next((value for value in read(line) if value.name == name), None)


def headline(values: list[Value]) -> list[Value]:
    """What to show where not all can be: first the mean, else the first value, then the other summaries.

    Constants and counts are passed over where anything was resampled: `selection.headline` names the same first value.
    """
    measured = [value for value in values if value.resamples is not None] or values
    if not measured:
        return []
    first = next((value for value in measured if value.rest == "mean"), measured[0])
    return [first, *(value for value in measured if value.summary and value is not first)]


def kind_title(kind: str) -> str:
    """A kind in a reader's words: recall_i2t is "recall, image to text"."""
    of, _, fraction = kind.partition("@")
    if fraction:
        return f"{kind_title(of)}, fitted on {fraction} of the training patients"
    if kind in _KINDS:
        return _KINDS[kind]
    first, *more = [_WORDS.get(word, word) for word in kind.split("_")]
    aside = [word for word in more if " " in word]
    plain = " ".join([first, *(word for word in more if " " not in word)])
    return ", ".join([plain, *aside])


def rest_title(value: Value, labels: int | None) -> str:
    """What a value is of, in a reader's words. `labels`: how many `auroc/mean` is over, where that is known."""
    if value.name == "auroc/mean" and labels is not None:
        return f"mean of {labels}"
    if value.kind.startswith("recall_") and value.rest.isdigit():
        return f"among the first {value.rest}"
    return SUMMARIES.get(value.rest) or _WORDS.get(value.rest, value.rest)
