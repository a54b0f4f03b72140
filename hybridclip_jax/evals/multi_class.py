"""Classes that exclude each other: an image is of the class whose captions it is most similar to."""

# M rows of a store, N units, K classes, P captions of a class, E embedding, R resamples

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import label_counts, metrics, prompt_file
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Evaluator, Field, Predictions, Preparation
from hybridclip_jax.evals.prompt_tokens import PromptTokens
from hybridclip_jax.evals.units import Units, normalised

# By kind of value.
MEANINGS = {
    "accuracy": "share of images whose class has the highest score; chance: each image shared evenly by the classes",
    "accuracy_majority": "accuracy of always naming the most frequent class",
    "f1": "weighted: F1 of the classes, averaged by their size; macro: averaged as they are; chance: of the table in "
    "which every image is shared evenly among the classes",
    "recall": "share of a class's images whose class has the highest score",
}


class MultiClass(Evaluator):
    """Accuracy, F1 and recall of the class with the highest score.

    Values: `accuracy/mean`, `f1/weighted` (by each class's share), `f1/macro`, `recall/<class>`; beside each what
    a model that scores all alike has (`accuracy_chance/mean`), and `accuracy_majority/mean`, what always naming the
    most frequent class has. Classes that score alike share an image evenly; `f1_chance` is the F1 of the table that
    this gives, with each class chosen for 1/K of the images of every class.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "prompts": Field("plip", "a shipped prompt file by name, or any by path; its negative prompts are not used"),
    }

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        images_only(self)
        self.classes, row_M, class_M = self._choose()
        self.units = Units.of(self.store, "image", row_M)
        self.truth_NxK = np.eye(len(self.classes))[class_M]
        self.prompts = prompt_file.load(self.entry["prompts"]).positives()
        groups = [self.prompts.pair(label).positive for label in self.classes]
        self.tokens = PromptTokens.of(f"evals.{name}", groups, preparation.tokenizer, preparation.context)

    @abc.abstractmethod
    def _choose(self) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
        """The classes, the rows of the store that are evaluated [N], and the class of each as its place [N]."""

    @abc.abstractmethod
    def _score(self, cosine_NxP: np.ndarray) -> np.ndarray:
        """The score [N] of a class from the similarities to its captions."""

    def _comparable(self, score_NxK: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
        """The scores by which classes are compared: [N, K], or [R, N, K] where they depend on which units count."""
        return score_NxK

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """The score of each class, before anything that depends on the other units."""
        groups = self.tokens.embed(encode, params)
        image_MxE = encode.of_store(params, self.store, self.preparation.image_size, self.units.row_M)
        image_NxE = self.units.embeddings(image_MxE)
        columns = [self._score(image_NxE @ normalised(text_PxE).T) for text_PxE in groups]
        return Predictions(tuple(self.classes), np.stack(columns, axis=1), self.truth_NxK)

    def blank(self) -> Predictions:
        return Predictions(tuple(self.classes), np.zeros(self.truth_NxK.shape), self.truth_NxK)

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        recall = {f"recall/{label}": k for k, label in enumerate(self.classes)}
        if _not_finite(predictions):
            undefined = np.full(len(weight_RxN), np.nan)
            return dict.fromkeys(["accuracy/mean", "f1/weighted", "f1/macro", *recall], undefined)
        chosen = highest(self._comparable(predictions.score_NxK, weight_RxN))
        confusion_RxKxK = metrics.confusion(predictions.truth_NxK, chosen, weight_RxN)
        recall_RxK = metrics.recall_per_class(confusion_RxKxK)
        return {
            "accuracy/mean": metrics.accuracy(confusion_RxKxK),
            "f1/weighted": metrics.weighted_f1(confusion_RxKxK),
            "f1/macro": metrics.macro_f1(confusion_RxKxK),
            **{name: recall_RxK[:, k] for name, k in recall.items()},
        }

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        everywhere = f"{_not_finite(predictions)} of {predictions.score_NxK.size} scores are not finite"
        if _not_finite(predictions):
            return dict.fromkeys(self.measure(predictions, np.ones((1, len(self.units)))), everywhere)
        return {f"recall/{label}": "no image is of this class" for label in self.classes}

    def constants(self, predictions: Predictions) -> Values:
        return self.chance_levels() | {"accuracy_majority/mean": float(self.truth_NxK.mean(axis=0).max())}

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        labels = label_counts.of(self.classes, self.truth_NxK)
        described["notes"] += label_counts.warnings(self.classes, self.truth_NxK, self.units.patient_N)
        return described | {
            "labels": labels,
            "prompts": self.prompts.describe(self.classes),
            "meanings": MEANINGS,
        }


def images_only(made: Evaluator) -> None:
    """UserError where the unit is not the image: a class is of one."""
    if made.units.kind != "image":
        protocol = made.entry["protocol"]
        raise UserError(f"evals.{made.name}.unit = {made.units.kind}: {protocol} is of images; leave it out")


def exclusive_rows(store: Store) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Every label of a store as a class, the rows with exactly one positive label [M], and the class of each [M].

    Classes are known by the names of their columns, never by an order in which labels and captions occur.
    """
    names = tuple(store.label_names)
    if not names:
        return (), np.zeros(0, np.int64), np.zeros(0, np.int64)
    positive_xK = np.stack([store.labels[name] == 1 for name in names], axis=1)
    row_M = np.flatnonzero(positive_xK.sum(axis=1) == 1)
    return names, row_M, positive_xK[row_M].argmax(axis=1)


def highest(score_xK: np.ndarray) -> np.ndarray:
    """One-hot of the highest score along the last axis; equal ones share it evenly."""
    best = score_xK == score_xK.max(axis=-1, keepdims=True)
    return best / best.sum(axis=-1, keepdims=True)


def _not_finite(predictions: Predictions) -> int:
    return int((~np.isfinite(predictions.score_NxK)).sum())
