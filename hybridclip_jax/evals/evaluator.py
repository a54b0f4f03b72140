"""What every evaluator is: scores of units, and values that are a function of how often each unit counts."""

# N units, K columns, R resamples

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import intervals
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.units import UNITS, Units


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a protocol's entry in `config.evals`, and a flag of `evaluate`."""

    default: str | int
    help: str


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What an evaluator needs to know of the model before there are weights."""

    tokenizer: Tokenizer
    context: int  # tokens
    image_size: int  # pixels
    open_store: Callable[[str], Store] = Store.open


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model, or the mean of several, says of each unit.

    columns: K names (labels, classes, directions of a retrieval). score_NxK: float64. truth_NxK: float64 with NaN
    for not known; what a score is compared with, in the protocol's own sense. validation: what it says of the units
    of another store, from which thresholds are taken.
    """

    columns: tuple[str, ...]
    score_NxK: np.ndarray
    truth_NxK: np.ndarray
    validation: Predictions | None = None


class Evaluator(abc.ABC):
    """One entry of `config.evals`: what is measured, and on which store. A protocol fills in `predict` and `measure`.

    Built by EVALUATORS[protocol](name, entry, preparation), which raises UserError for whatever the entry or its
    store gets wrong, so that nothing is left to fail at the first evaluation. `entry` holds `data`, `unit` and the
    protocol's FIELDS; what it lacks has its default.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {}
    # Whether the mean of several models' scores is a score, so that they can be an ensemble.
    AVERAGES: ClassVar[bool] = True
    # Whether a value and its resamples are of one kind, so that two models can be compared by them.
    PAIRED: ClassVar[bool] = True

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        self.name = name
        self.entry = {**{key: field.default for key, field in {**COMMON, **self.FIELDS}.items()}, **dict(entry)}
        self.preparation = preparation
        self.store = preparation.open_store(self.entry["data"])
        if self.entry["unit"] not in UNITS:
            raise UserError(f"evals.{name}.unit = {self.entry['unit']!r}: must be one of {', '.join(UNITS)}")
        self.units = Units.of(self.store, self.entry["unit"])

    @abc.abstractmethod
    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """The scores that `params` gives the units."""

    @abc.abstractmethod
    def blank(self) -> Predictions:
        """The predictions of a model that scores all alike."""

    @abc.abstractmethod
    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        """Values [R] by public name where unit n counts weight[r, n] times; NaN where one is undefined."""

    @abc.abstractmethod
    def reasons(self, predictions: Predictions) -> dict[str, str]:
        """Of every value of `measure` that is undefined when each unit counts once: why, in words."""

    def constants(self, predictions: Predictions) -> Values:
        """Values that have no interval: how many labels a mean is over, chance levels."""
        return {}

    def describe(self) -> dict[str, Any]:
        """What was measured on what, ready for JSON: goes beside every result. Protocols add their own to it."""
        return {
            "protocol": self.entry["protocol"],
            "data": self.store.spec,
            "store_fingerprint": self.store.fingerprint,
            # by which a report finds published results of the same images
            "set": {
                "namespace": self.store.namespace,
                "format": self.store.manifest.get("source", {}).get("format"),
                "split": self.store.split,
                "text": self.store.manifest.get("text"),
            },
            "unit": self.units.kind,
            "units": len(self.units),
            "images": len(self.units.row_M),
            "patients": self.units.named_patients,
            "fields": {key: self.entry[key] for key in self.FIELDS},
            "synthetic": self.store.synthetic,
            "notes": self._about_patients(),
        }

    def _about_patients(self) -> list[str]:
        """What their number means for the intervals."""
        notes, unknown = [], self.units.patients_unknown
        if unknown:
            notes.append(
                f"{unknown:,} of {self.store.manifest['records']:,} records name no patient: each such image or "
                "study counts as a patient of its own, and intervals are too narrow where one has several"
            )
        few = intervals.few_patients(self.units.patients)
        return [*notes, few] if few else notes

    def run(self, encode: Encode, params: Mapping[str, Any]) -> Values:
        """One evaluation of `params`: values by public name, with intervals."""
        return self.score(self.predict(encode, params))

    def at_chance(self) -> Values:
        """The values of a model that scores all alike: their names, and which are undefined on this store."""
        return self.point(self.blank())

    def chance_levels(self) -> Values:
        """`<kind>_chance/<name>`: each value that a model which scores all alike has; undefined ones are left out."""
        chance = self.measure(self.blank(), np.ones((1, len(self.units))))
        return {beside(name, "chance"): float(value) for name, [value] in chance.items() if np.isfinite(value)}

    def point(self, predictions: Predictions) -> Values:
        """Values without intervals; an undefined one is None beside `<kind>_why/<name>`."""
        values: Values = {}
        reasons = self.reasons(predictions)
        for name, [value] in self.measure(predictions, np.ones((1, len(self.units)))).items():
            values[name] = float(value) if np.isfinite(value) else None
            if values[name] is None:
                values[beside(name, "why")] = reasons.get(name, "the value is not finite")
        return values | self.constants(predictions)

    def score(self, predictions: Predictions) -> Values:
        """`point` with a 95 % bootstrap interval over patients beside each value.

        For `auroc/x`: `auroc_lo/x`, `auroc_hi/x` and `auroc_resamples/x`, the number of resamples in which it is
        defined. Its ends are None where the value is. An end that a value lacks is None beside `auroc_interval_why/x`.
        """
        drawn = self.resampled(predictions)
        return with_intervals(
            self.point(predictions), {name: self.interval(value_R) for name, value_R in drawn.items()}
        )

    def interval(self, value_R: np.ndarray) -> intervals.Interval:
        """The bootstrap interval of a value, or of a difference, from its resamples."""
        if self.units.patients == 1:  # every resample is the set itself
            return intervals.Interval(None, None, int(np.isfinite(value_R).sum()), intervals.ONE_PATIENT)
        return intervals.percentile(value_R)

    def resampled(self, predictions: Predictions) -> dict[str, np.ndarray]:
        """Values [resamples] of `measure` by name. The resamples depend on the units' patients alone."""
        blocks: list[dict[str, np.ndarray]] = [
            self.measure(predictions, weight_RxN) for weight_RxN in intervals.resamples(self.units.patient_N)
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


COMMON: Mapping[str, Field] = {
    "protocol": Field("chexzero", "what is measured"),
    "data": Field("", "the store, PATH[:SPLIT]"),
    "unit": Field("image", "what is scored: image, or study (its images' embeddings averaged)"),
}


def beside(name: str, kind: str) -> str:
    """The public name of what stands beside a value: beside("auroc/Edema", "lo") is "auroc_lo/Edema"."""
    head, _, rest = name.partition("/")
    return f"{head}_{kind}/{rest}"


def with_intervals(values: Values, found: Mapping[str, intervals.Interval]) -> Values:
    """`values` with what stands beside each that has resamples."""
    values = dict(values)
    for name, interval in found.items():
        defined = values[name] is not None
        values[beside(name, "lo")] = interval.low if defined else None
        values[beside(name, "hi")] = interval.high if defined else None
        values[beside(name, "resamples")] = interval.valid
        if defined and interval.why:
            values[beside(name, "interval_why")] = interval.why
    return values


def mean(predictions: Sequence[Predictions]) -> Predictions:
    """The predictions of an ensemble: the arithmetic mean of its models' scores, as CheXzero's."""
    first = predictions[0]
    if any(other.columns != first.columns for other in predictions):
        raise ValueError("models of one ensemble must score the same columns")
    validations = [one.validation for one in predictions if one.validation is not None]
    return dataclasses.replace(
        first,
        score_NxK=np.mean([one.score_NxK for one in predictions], axis=0),
        validation=mean(validations) if validations else None,
    )
