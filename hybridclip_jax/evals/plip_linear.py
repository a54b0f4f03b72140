"""PLIP's linear probing of classes that exclude each other (Huang et al., Nature Medicine 2023).

Stochastic gradient descent on the logistic loss, five seeds, macro F1 (`linear_classifier.py`). Their script takes
the strength of the regularisation from the command line; here the validation store chooses it.
"""

# N units, K classes, S seeds, E embedding, R resamples

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import label_counts, metrics, probe
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Predictions, Preparation
from hybridclip_jax.evals.fitted import Fitted
from hybridclip_jax.evals.multi_class import exclusive_rows, highest, images_only
from hybridclip_jax.evals.units import Units


class PlipLinear(Fitted):
    """Macro F1, weighted F1 and accuracy of a linear classifier on image embeddings, means over five seeds.

    Values: `probe_f1/macro` (PLIP's), `probe_f1/weighted`, `probe_accuracy/mean`, and `probe_f1_seeds/lowest` and
    `/highest`, the macro F1 of single seeds. Rows with exactly one positive label are used in each store. Intervals
    draw the patients of the measured store again; the classifiers stay. UserError as of Fitted, and where the three
    stores do not have the same classes, each with rows to fit.
    """

    # The margins of two models have no common scale.
    AVERAGES: ClassVar[bool] = False

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        images_only(self)
        self.classes = tuple(self.store.label_names)
        self.train_units, self.train_class = self._classified("train", self.train)
        self.validation_units, self.validation_class = self._classified("validation", self.validation)
        self.units, self.class_N = self._classified("data", self.store)
        self.truth_NxK = np.eye(len(self.classes))[self.class_N]
        self.columns = tuple(f"{label}@seed{seed}" for seed in probe.SEEDS for label in self.classes)
        self.alpha: float | None = None  # of the model that this evaluator scored last

    def _classified(self, field: str, store: Store) -> tuple[Units, np.ndarray]:
        """The units of exactly one class, and the class of each as its place in `classes`."""
        names, row_M, class_M = exclusive_rows(store)
        if len(self.classes) < 2 or set(names) != set(self.classes):
            raise UserError(
                f"evals.{self.name}.{field} = {store.spec}: has classes {', '.join(names) or 'none'}, and data has "
                f"{', '.join(self.classes) or 'none'}; all three stores need the same, two or more"
            )
        place = np.array([self.classes.index(name) for name in names])
        missing = [name for k, name in enumerate(names) if k not in class_M]
        if missing and field == "train":
            raise UserError(f"evals.{self.name}.train = {store.spec}: no row is of class {missing[0]!r} alone")
        if not len(row_M):
            raise UserError(f"evals.{self.name}.{field} = {store.spec}: no row has exactly one positive label")
        if left_out := len(store) - len(row_M):
            self.notes.append(f"{left_out:,} of {len(store):,} images of {field} are left out: no class, or several")
        return Units.of(store, "image", row_M), place[class_M]

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Margins of the classes, one group of columns for each seed."""
        self.alpha = None
        train_NxE, validation_NxE, test_NxE = features = self.features(encode, params)
        if not all(np.isfinite(feature).all() for feature in features):
            return self._predictions(np.full((len(self.units), len(self.columns)), np.nan))
        fitted = probe.fit_classes(train_NxE, self.train_class, validation_NxE, self.validation_class)
        self.alpha = fitted[0].alpha
        return self._predictions(np.concatenate([one.predict(test_NxE) for one in fitted], axis=1))

    def blank(self) -> Predictions:
        return self._predictions(np.zeros((len(self.units), len(self.columns))))

    def _predictions(self, score_NxK: np.ndarray) -> Predictions:
        return Predictions(self.columns, score_NxK, np.tile(self.truth_NxK, (1, len(probe.SEEDS))))

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        if not np.isfinite(predictions.score_NxK).all():
            names = ("probe_f1/macro", "probe_f1/weighted", "probe_accuracy/mean")
            return dict.fromkeys((*names, *_SEEDS), np.full(len(weight_RxN), np.nan))
        tables = [
            metrics.confusion(self.truth_NxK, highest(score_NxK), weight_RxN)
            for score_NxK in np.split(predictions.score_NxK, len(probe.SEEDS), axis=1)
        ]
        macro_SxR = np.stack([metrics.macro_f1(table) for table in tables])
        return {
            "probe_f1/macro": macro_SxR.mean(axis=0),
            "probe_f1/weighted": np.mean([metrics.weighted_f1(table) for table in tables], axis=0),
            "probe_accuracy/mean": np.mean([metrics.accuracy(table) for table in tables], axis=0),
            "probe_f1_seeds/lowest": macro_SxR.min(axis=0),
            "probe_f1_seeds/highest": macro_SxR.max(axis=0),
        }

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        names = self.measure(predictions, np.ones((1, len(self.units))))
        return dict.fromkeys(names, "the model's embeddings are not all finite")

    def constants(self, predictions: Predictions) -> Values:
        return self.chance_levels()

    def describe(self) -> dict[str, Any]:
        said = super().describe()
        labels = label_counts.of(self.classes, self.truth_NxK)
        said["notes"] += label_counts.warnings(self.classes, self.truth_NxK, self.units.patient_N)
        said["train"]["units"], said["validation"]["units"] = len(self.train_units), len(self.validation_units)
        return said | {
            "labels": labels,
            "meanings": MEANINGS,
            "seeds": list(probe.SEEDS),
            "alpha": {"grid": list(probe.ALPHAS), "chosen for the first model": self.alpha},
        }


# By kind of value.
MEANINGS = {
    "probe_f1": "F1 of a linear classifier on the embeddings, mean over five seeds; macro: the mean over the classes, "
    "weighted: by the classes' size",
    "probe_accuracy": "accuracy of the same classifiers, mean over the seeds",
    "probe_f1_seeds": "lowest and highest macro F1 of a single seed",
}
_SEEDS = ("probe_f1_seeds/lowest", "probe_f1_seeds/highest")
