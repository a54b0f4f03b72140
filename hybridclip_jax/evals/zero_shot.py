"""Zero-shot classification from prompt pairs: the protocol of CheXzero (Tiu et al., Nature BME 2022).

For each label, prompts for its presence and for its absence are embedded and L2-normalised, averaged and
normalised again; an image's score is the softmax over its two raw cosines, without the logit scale (their
`zero_shot.py`). AUROC sees only the order of one model's scores; an ensemble averages these probabilities, so
the missing scale matters there. F1 and MCC need a threshold a label: the one with the largest MCC on another store,
never on the one that is measured (as in their paper).
"""

# N units, P prompts of a side, K labels, E embedding, R resamples

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import apart, binary_labels, label_counts, metrics, prompt_file
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Evaluator, Field, Predictions, Preparation, beside
from hybridclip_jax.evals.prompt_file import label_key
from hybridclip_jax.evals.prompt_tokens import PromptTokens
from hybridclip_jax.evals.units import Units, normalised

# The five labels of the CheXpert competition, over which CheXzero's headline mean is taken.
COMPETITION = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")
_AT_THRESHOLD = {"f1": metrics.f1, "mcc": metrics.mcc}

# By kind of value.
MEANINGS = {
    "auroc": "how often a positive scores higher than a negative, a tie a half; mean: over the labels that have one; "
    "mean5: over the five of the CheXpert competition",
    "f1": "F1 of the positives at the label's threshold",
    "mcc": "Matthews correlation of label and prediction at the label's threshold",
    "threshold": "score from which on a label is called present: the one with the largest MCC in the validation store",
}

PromptPair = tuple[np.ndarray, np.ndarray]  # embeddings of a label's positive and negative prompts, [P, E] each
ByLabel = dict[str, np.ndarray]  # values [R] by label


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """Units of a store with their labels [N, K]."""

    store: Store
    units: Units
    truth_NxK: np.ndarray


class ZeroShot(Evaluator):
    """AUROC per label of a store and their means; with `validation`, F1 and MCC at thresholds from that store.

    Values: `auroc/<label>`, `auroc/mean` over those that are defined, `auroc/n_labels`, and `auroc/mean5` where the
    five competition labels are among them; with `validation` the same of `f1` and `mcc`, and `threshold/<label>`.
    Prompts are tokenised once, here, and padded to one fixed length. UserError for a store without labels, for a
    label that it lacks, for labels outside 0 and 1, for prompts that the protocol cannot use, and for a validation
    store that shares patients or images with the one that is measured.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "prompts": Field("chexzero", "a shipped prompt file by name, or any by path"),
        "labels": Field(
            "", "the labels that are measured, comma-separated (none whose own name holds a comma); all where empty"
        ),
        "validation": Field("", "a store of other patients that thresholds for F1 and MCC are taken from"),
    }
    NEEDS_NEGATIVES: ClassVar[bool] = True

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        self.labels = self._named_labels()
        self.tested = self._labelled(self.store, self.units)
        self.validation, self._notes = self._open_validation()
        self.prompts = prompt_file.load(self.entry["prompts"])
        if self.NEEDS_NEGATIVES and not self.prompts.has_negatives:
            raise UserError(
                f"evals.{name}.prompts = {self.entry['prompts']}: {self.prompts.source} has no negative prompts, and "
                f"protocol {self.entry['protocol']} compares a label's presence with its absence; name a file with both"
            )
        pairs = [self.prompts.pair(label) for label in self.labels]
        groups = [side for pair in pairs for side in (pair.positive, pair.negative)]
        self.tokens = PromptTokens.of(f"evals.{name}", groups, preparation.tokenizer, preparation.context)

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Probability of presence per unit and label: what an ensemble averages."""
        groups = self.tokens.embed(encode, params)
        pairs = list(zip(groups[::2], groups[1::2], strict=True))

        def of(data: _Labelled, validation: Predictions | None) -> Predictions:
            image_MxE = encode.of_store(params, data.store, self.preparation.image_size)
            score_NxK = self._scores(data.units.embeddings(image_MxE), pairs)
            return Predictions(self.labels, score_NxK, data.truth_NxK, validation)

        return of(self.tested, of(self.validation, None) if self.validation else None)

    def _scores(self, image_NxE: np.ndarray, pairs: Sequence[PromptPair]) -> np.ndarray:
        return np.stack([probability(image_NxE, *pair) for pair in pairs], axis=1)

    def blank(self) -> Predictions:
        def of(data: _Labelled, validation: Predictions | None) -> Predictions:
            return Predictions(self.labels, np.zeros(data.truth_NxK.shape), data.truth_NxK, validation)

        return of(self.tested, of(self.validation, None) if self.validation else None)

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: value
            for kind, why in self._why(predictions).items()
            for name, value in self._with_means(kind, self._by_label(kind, why, predictions, weight_RxN), why).items()
        }

    def _by_label(self, kind: str, why: dict[str, str], predictions: Predictions, weight_RxN: np.ndarray) -> ByLabel:
        """Values of one kind; NaN for the labels that `why` says have none."""
        values = {}
        for k, label in enumerate(self.labels):
            score_N, truth_N = predictions.score_NxK[:, k], predictions.truth_NxK[:, k]
            if label in why:
                values[label] = np.full(len(weight_RxN), np.nan)
            elif kind == "auroc":
                values[label] = metrics.weighted_auroc(score_N, truth_N, weight_RxN)
            else:
                values[label] = _AT_THRESHOLD[kind](score_N >= _threshold(predictions, k)[0], truth_N, weight_RxN)
        return values

    def _with_means(self, kind: str, by_label: ByLabel, why: dict[str, str]) -> dict[str, np.ndarray]:
        """`by_label` by public name, with the means over the labels of which `why` holds nothing, and over the five."""
        values = {f"{kind}/{label}": value for label, value in by_label.items()}
        undefined = np.full(len(next(iter(by_label.values()))), np.nan)
        defined = [value for label, value in by_label.items() if label not in why]
        # Over the same labels in every resample: undefined in one where any of them is.
        values[f"{kind}/mean"] = np.mean(defined, axis=0) if defined else undefined
        by_key = {label_key(label): value for label, value in by_label.items()}
        if all(key in by_key for key in COMPETITION):
            values[f"{kind}/mean5"] = np.mean([by_key[key] for key in COMPETITION], axis=0)
        return values

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for kind, why in self._why(predictions).items():
            missing = [key for key in COMPETITION if key in {label_key(label) for label in why}]
            reasons |= {f"{kind}/{label}": reason for label, reason in why.items()} | {
                f"{kind}/mean": f"no label has a defined {kind.upper()}",
                f"{kind}/mean5": f"undefined for {', '.join(missing)}",
            }
        return reasons

    def _why(self, predictions: Predictions) -> dict[str, dict[str, str]]:
        """Of each kind of value: the labels that have none, and why."""
        columns = zip(self.labels, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True)
        why = {label: why for label, score_N, truth_N in columns if (why := metrics.auroc(score_N, truth_N)[1])}
        if predictions.validation is None:
            return {"auroc": why}
        thresholds = {label: _threshold(predictions, k)[1] for k, label in enumerate(self.labels)}
        without = {
            label: f"no threshold: in the validation store {reason}" for label, reason in thresholds.items() if reason
        }
        return {"auroc": why} | dict.fromkeys(_AT_THRESHOLD, without | why)

    def constants(self, predictions: Predictions) -> Values:
        values: Values = {}
        for kind, why in self._why(predictions).items():
            values[f"{kind}/n_labels"] = len(self.labels) - len(why)
        for k, label in enumerate(self.labels if predictions.validation else ()):
            values[f"threshold/{label}"], why_not = _threshold(predictions, k)
            if why_not:
                values[beside(f"threshold/{label}", "why")] = why_not
        return values

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        labels = label_counts.of(self.labels, self.tested.truth_NxK)
        few = label_counts.warnings(self.labels, self.tested.truth_NxK, self.units.patient_N)
        described["notes"] += [*few, *self._notes]
        described |= {"labels": labels, "prompts": self.prompts.describe(self.labels), "meanings": MEANINGS}
        if self.validation:
            described["validation"] = {
                "data": self.validation.store.spec,
                "store_fingerprint": self.validation.store.fingerprint,
                "units": len(self.validation.units),
                "patients": self.validation.units.named_patients,
                "labels": label_counts.of(self.labels, self.validation.truth_NxK),
                "thresholds": "for each label the score with the largest MCC in this store; present from there upwards",
            }
        return described

    def _named_labels(self) -> tuple[str, ...]:
        spec, there = self.entry["data"], self.store.label_names
        if not there:
            raise UserError(
                f"{spec} has no label columns: zero-shot needs them; run prepare again with --label-columns"
            )
        named = tuple(dict.fromkeys(filter(None, (label.strip() for label in self.entry["labels"].split(",")))))
        if unknown := [label for label in named if label not in there]:
            commas = "; a label whose name holds a comma cannot be named" if any("," in one for one in there) else ""
            raise UserError(
                f"evals.{self.name}.labels: {spec} has no label {unknown[0]!r}; it has {', '.join(there)}{commas}"
            )
        return named or tuple(there)

    def _labelled(self, store: Store, units: Units) -> _Labelled:
        for label in self.labels:
            if label not in store.labels:
                has = ", ".join(store.label_names) or "none"
                raise UserError(f"evals.{self.name}.validation = {store.spec}: has no label {label!r}; it has {has}")
        return _Labelled(store, units, binary_labels.of(store, units, self.labels))

    def _open_validation(self) -> tuple[_Labelled | None, list[str]]:
        if "validation" not in self.FIELDS or not self.entry["validation"]:
            return None, []
        store = self.preparation.open_store(self.entry["validation"])
        notes = apart.check(f"evals.{self.name}.validation", store, self.store)
        return self._labelled(store, Units.of(store, self.units.kind)), notes


def probability(image_NxE: np.ndarray, positive_PxE: np.ndarray, negative_PxE: np.ndarray) -> np.ndarray:
    """CheXzero's probability [N] that a label is present: a softmax over raw cosines, so between 0.119 and 0.881.

    `image_NxE` holds unit vectors; the prompts of a side are normalised, averaged and normalised again.
    """
    cosine_pos = image_NxE @ class_embedding(positive_PxE)
    cosine_neg = image_NxE @ class_embedding(negative_PxE)
    return 1 / (1 + np.exp(cosine_neg - cosine_pos))


def class_embedding(prompt_PxE: np.ndarray) -> np.ndarray:
    """The unit vector [E] of a class: its L2-normalised prompts averaged, then normalised again."""
    return normalised(normalised(prompt_PxE).mean(axis=0))


def _threshold(predictions: Predictions, k: int) -> tuple[float | None, str | None]:
    """The threshold of label k from the validation store, or None and why there is none."""
    validation = predictions.validation
    if validation is None:
        raise ValueError("no predictions of a validation store")
    return metrics.best_threshold(validation.score_NxK[:, k], validation.truth_NxK[:, k])
