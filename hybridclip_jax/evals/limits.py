"""What a model cannot read: small tests of negation, sides, order, length, wording and repeated texts, beside chance.

Any model can be asked, on any store with texts or labels. None of the tests says that a model is good: a value near
its chance level names what the model's other numbers cannot rest on.
"""

# N units, K columns, R resamples

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.tokenizer import clean
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import binary_labels, label_counts
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Evaluator, Field, Predictions, Preparation
from hybridclip_jax.evals.limits_labels import LabelTests
from hybridclip_jax.evals.limits_text import CUT, GROUP, TextTests
from hybridclip_jax.evals.pairs import text_rows

# By kind of value.
MEANINGS = {
    "negation": 'balanced accuracy of choosing by cosine, between "X" and "no X", what the label says',
    "negation_cosine": 'cosine between "X" and "no X"; 1 is a model that cannot see the "no"',
    "sides": "preferred: share of images closer to their own text than to it with left and right swapped, a tie a "
    "half; cosine: between the two texts, 1 is a model that cannot tell them apart; texts: how many name a side",
    "order": "preferred: share of images closer to their own text than to its sentences from last to first, a tie a "
    "half; cosine: between the two, 1 is a model that cannot tell them apart; texts: how many were asked about",
    "truncation": f"beyond_{CUT}: share of texts longer than {CUT} tokens; recall_whole, recall_cut: share of images "
    f"that find their own text first among {GROUP} such texts, whole and cut to {CUT} tokens; recall_gain, "
    "cosine_gain: whole minus cut; texts: how many were asked about",
    "wording_bare": "AUROC under the shipped prompt file chexzero",
    "wording_templated": "AUROC under the shipped prompt file templated",
    "wording_spread": "the higher of the two AUROCs minus the lower, so never below 0, its interval neither",
    "wording_backwards": "how many labels have an AUROC whose interval lies below 0.5, as one in forty has by chance",
    "duplicates": "share: of units whose text occurs again; ceiling: the most that recall at 1 by index can be, as k "
    "units of one text share one first place; texts: of how many units",
}


class Limits(Evaluator):
    """Six tests; MEANINGS says what each value is.

    Values, each with an interval over patients and its chance level as `<kind>_chance/<rest>`: `negation/<label>`,
    `wording_bare/<label>`, `wording_templated/<label>` and `wording_spread/<label>`, and the `mean` of each;
    `sides/...`, `order/...`, `truncation/...` and `duplicates/...`. Without an interval: `negation_cosine/<label>`,
    `wording_backwards/bare` and `/templated`, and `wording_backwards_labels/...`, which labels those are.

    Labels are tested on all units, texts on at most `sample` of them, a study by the first text of its images. A store
    without labels has no values of negation and wording. UserError for a store with neither, for labels outside 0
    and 1, and for a prompt longer than the context.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "sample": Field(2000, "how many units' texts are read at most, drawn with a fixed seed"),
    }
    AVERAGES: ClassVar[bool] = False  # what a model prefers is its own

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        if self.entry["sample"] < 1:
            raise UserError(f"evals.{name}.sample = {self.entry['sample']}: must be at least 1")
        told = np.array([bool(clean(text)) for text in self.store.texts])
        texts = [self.store.texts[row] for row in text_rows(told, self.units)]
        self.of_texts = TextTests(texts, self.entry["sample"], preparation)
        names = self.store.label_names
        labels = dict(zip(names, binary_labels.of(self.store, self.units, names).T, strict=True))
        self.of_labels = LabelTests(f"evals.{name}", labels, preparation) if labels else None
        if not labels and not self.of_texts.told_N.any():
            raise UserError(f"{self.entry['data']} has neither texts nor label columns: limits needs one of them")

    @property
    def _tests(self) -> list[LabelTests | TextTests]:
        return [self.of_labels, self.of_texts] if self.of_labels else [self.of_texts]

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Cosines: of images with statements and texts, and between texts; the columns as the two tests say."""
        image_NxE = self.units.embeddings(encode.of_store(params, self.store, self.preparation.image_size))
        return self._predictions([tests.scores(encode, params, image_NxE) for tests in self._tests])

    def blank(self) -> Predictions:
        return self._predictions([tests.blank() for tests in self._tests])

    def _predictions(self, scores: list[dict[str, np.ndarray]]) -> Predictions:
        score = {name: score_N for one in scores for name, score_N in one.items()}
        truth = {name: truth_N for tests in self._tests for name, truth_N in tests.truth.items()}
        columns = tuple(truth)
        score_NxK, truth_NxK = (np.stack([of[name] for name in columns], axis=1) for of in (score, truth))
        return Predictions(columns, score_NxK, truth_NxK)

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        score = _by_column(predictions)
        return {name: value for tests in self._tests for name, value in tests.measure(score, weight_RxN).items()}

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        score = _by_column(predictions)
        return {name: why for tests in self._tests for name, why in tests.reasons(score).items()}

    def constants(self, predictions: Predictions) -> Values:
        score = _by_column(predictions)
        return {name: value for tests in self._tests for name, value in tests.constants(score).items()}

    def score(self, predictions: Predictions) -> Values:
        """As every evaluator's, and from the intervals how many labels each wording reads backwards."""
        values = super().score(predictions)
        return values | (self.of_labels.backwards(values) if self.of_labels else {})

    def describe(self) -> dict[str, Any]:
        described = super().describe() | {
            "texts": {"with_text": int(self.of_texts.told_N.sum()), "read": len(self.of_texts.sample_S)},
            "contrasts": {test: len(contrasts) for test, contrasts in self.of_texts.contrasts.items()},
            "meanings": MEANINGS,
            "cut": {"tokens": CUT, "found_among": GROUP, "context": self.preparation.context},
        }
        if self.of_labels is None:
            described["notes"].append("the store has no label columns: negation and wording are not tested")
            return described
        described |= self.of_labels.describe()
        described["notes"] += label_counts.warnings(
            tuple(self.of_labels.labels), np.stack(list(self.of_labels.labels.values()), axis=1), self.units.patient_N
        )
        return described


def _by_column(predictions: Predictions) -> dict[str, np.ndarray]:
    return dict(zip(predictions.columns, predictions.score_NxK.T, strict=True))
