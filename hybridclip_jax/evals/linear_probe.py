"""The linear probe: logistic regression on a frozen model's embeddings, from all and from few training labels."""

# N units, K columns, E embedding, R resamples

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax import logs
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import binary_labels, label_counts, metrics, probe
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Field, Predictions, Preparation, beside
from hybridclip_jax.evals.fitted import Fitted
from hybridclip_jax.evals.pairs import numbered, seeded_order


class LinearProbe(Fitted):
    """AUROC per label of a logistic regression (see `probe.fit`) on the embeddings of `train`, one for each label.

    Values: `probe_auroc@<fraction>/<label>` for each of `fractions` of the training patients, `.../mean` over the
    labels defined at that fraction, `.../n_labels` how many those are. Fractions are of patients, drawn with a fixed
    seed, and each holds the smaller ones; the validation store is used whole at each. A label that one of the stores
    has but another lacks is left out, and named. Unknown labels are left out label by label. Intervals draw the
    patients of the measured store again; the probe stays.
    UserError as of Fitted, for a fraction outside (0, 1], and for stores without a label in common.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        **Fitted.FIELDS,
        "fractions": Field("0.01,0.1,1", "shares of the training patients that are fitted on, comma-separated"),
    }

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        self.fractions = self._fractions()
        self.labels = self._labels()
        self.train_truth, self.validation_truth, self.truth = (
            binary_labels.of(store, units, self.labels)
            for store, units in (
                (self.train, self.train_units),
                (self.validation, self.validation_units),
                (self.store, self.units),
            )
        )
        patient_N = numbered(self.train_units.patient_N.tolist())
        place_P = np.argsort(seeded_order(int(patient_N.max()) + 1))
        self.chosen = {
            text: np.flatnonzero(place_P[patient_N] < _share(share, len(place_P)))
            for text, share in self.fractions.items()
        }
        self.columns = tuple(f"{label}@{text}" for text in self.fractions for label in self.labels)
        self.strengths: dict[str, float] = {}  # of the model that this evaluator scored last
        self._unfit = self._why_unfit()

    def _fractions(self) -> dict[str, float]:
        """Rising shares by the text that names them in values."""
        given = self.entry["fractions"]
        try:
            shares = sorted({float(part) for part in given.split(",")})
        except ValueError:
            shares = []
        if not shares or not all(0 < share <= 1 for share in shares):
            raise UserError(
                f"evals.{self.name}.fractions = {given!r}: must be numbers above 0 and up to 1, as in 0.01,0.1,1"
            )
        return {str(share).removesuffix(".0"): share for share in shares}

    def _labels(self) -> tuple[str, ...]:
        stores = {"train": self.train, "validation": self.validation, "data": self.store}
        common = tuple(n for n in self.store.label_names if all(n in s.label_names for s in stores.values()))
        if not common:
            have = "; ".join(f"{field} has {', '.join(s.label_names) or 'none'}" for field, s in stores.items())
            raise UserError(f"evals.{self.name}: the three stores have no label in common: {have}")
        if left_out := sorted({name for s in stores.values() for name in s.label_names} - set(common)):
            self.notes.append(f"left out, because not all three stores have them: {', '.join(left_out)}")
        return common

    def _why_unfit(self) -> dict[str, str]:
        """Of each column that no probe can be fitted for: why."""
        why = {}
        for k, label in enumerate(self.labels):
            on_validation = probe.why_unfit(self.validation_truth[:, k])
            for text, rows in self.chosen.items():
                if reason := probe.why_unfit(self.train_truth[rows, k]):
                    why[f"{label}@{text}"] = f"no probe: in the training rows {reason}"
                elif on_validation:
                    why[f"{label}@{text}"] = f"no probe: in the validation store {on_validation}"
        return why

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Probability of each label from the probe of each fraction; NaN where there is none."""
        train_NxE, validation_NxE, test_NxE = features = self.features(encode, params)
        score_NxK = np.full((len(self.units), len(self.columns)), np.nan)
        self.strengths = {}
        finite = all(np.isfinite(feature).all() for feature in features)
        to_fit = [column for column in self.columns if finite and column not in self._unfit]
        bar = logs.Progress(len(to_fit), "probe", "fit")
        for text, rows in self.chosen.items():
            feature_NxE = train_NxE[rows]
            for k, label in enumerate(self.labels):
                if (column := f"{label}@{text}") not in to_fit:
                    continue
                fitted = probe.fit(feature_NxE, self.train_truth[rows, k], validation_NxE, self.validation_truth[:, k])
                score_NxK[:, self.columns.index(column)] = fitted.predict(test_NxE)
                self.strengths[column] = fitted.strength
                bar.update(len(self.strengths))
        bar.close()
        return self._predictions(score_NxK)

    def blank(self) -> Predictions:
        score_NxK = np.zeros((len(self.units), len(self.columns)))
        score_NxK[:, [column in self._unfit for column in self.columns]] = np.nan
        return self._predictions(score_NxK)

    def _predictions(self, score_NxK: np.ndarray) -> Predictions:
        return Predictions(self.columns, score_NxK, np.tile(self.truth, (1, len(self.fractions))))

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        why = self._why(predictions)
        values = {}
        for text in self.fractions:
            by_label = {
                label: metrics.weighted_auroc(*self._column(predictions, label, text), weight_RxN)
                for label in self.labels
            }
            defined = [value for label, value in by_label.items() if f"{label}@{text}" not in why]
            mean = np.mean(defined, axis=0) if defined else np.full(len(weight_RxN), np.nan)
            values[f"probe_auroc@{text}/mean"] = mean
            values |= {f"probe_auroc@{text}/{label}": value for label, value in by_label.items()}
        return values

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        why = self._why(predictions)
        by_label = {
            f"probe_auroc@{text}/{label}": why[f"{label}@{text}"]
            for text in self.fractions
            for label in self.labels
            if f"{label}@{text}" in why
        }
        return by_label | {f"probe_auroc@{text}/mean": "no label has a defined AUROC" for text in self.fractions}

    def constants(self, predictions: Predictions) -> Values:
        why = self._why(predictions)
        values: Values = {}
        for text in self.fractions:
            values[f"probe_auroc@{text}/n_labels"] = sum(f"{label}@{text}" not in why for label in self.labels)
            values |= {beside(f"probe_auroc@{text}/{name}", "chance"): 0.5 for name in ("mean", *self.labels)}
        return values

    def describe(self) -> dict[str, Any]:
        said = super().describe()
        labels, known = label_counts.of(self.labels, self.truth), self.train_units.named_patients
        said["notes"] += [*label_counts.warnings(self.labels, self.truth, self.units.patient_N), *self._uneven()]
        said["train"]["fractions"] = {
            text: {
                "units": len(rows),
                "patients": None if known is None else len(set(self.train_units.patient_N[rows])),
                "labels": label_counts.of(self.labels, self.train_truth[rows]),
            }
            for text, rows in self.chosen.items()
        }
        said["validation"]["labels"] = label_counts.of(self.labels, self.validation_truth)
        return said | {
            "labels": labels,
            "meanings": {
                f"probe_auroc@{text}": "AUROC of a logistic regression on embeddings of "
                f"{100 * share:g} % of the patients of train"
                for text, share in self.fractions.items()
            },
            "strengths": {"grid": list(probe.STRENGTHS), "chosen for the first model": dict(self.strengths)},
        }

    def _uneven(self) -> list[str]:
        """A sentence for each fraction that lacks a probe which a larger one has."""
        without = {text: {label for label in self.labels if f"{label}@{text}" in self._unfit} for text in self.chosen}
        most, at_most = list(without.items())[-1]
        return [
            f"at fraction {text} no probe can be fitted for {', '.join(sorted(missing - at_most))}: its mean is over "
            f"fewer labels than at fraction {most}"
            for text, missing in without.items()
            if missing - at_most
        ]

    def _column(self, predictions: Predictions, label: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        k = self.columns.index(f"{label}@{text}")
        return predictions.score_NxK[:, k], predictions.truth_NxK[:, k]

    def _why(self, predictions: Predictions) -> dict[str, str]:
        """Of each column without an AUROC: why."""
        columns = zip(self.columns, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True)
        why = {column: metrics.auroc(score_N, truth_N)[1] for column, score_N, truth_N in columns}
        return {column: reason for column, reason in why.items() if reason} | self._unfit


def _share(share: float, of: int) -> int:
    """How many of `of` patients a share is, rounded up, at least one."""
    return max(1, math.ceil(round(share * of, 9)))  # as 0.07 * 100 is a little more than 7
