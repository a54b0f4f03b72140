"""The contrastive loss on a fixed set of candidates, so that runs of any batch size compare.

The loss of training falls with the batch: its chance level is the logarithm of the batch size. Here every text is
told from the same number of others, the same in each run and at each step.
"""

# N pairs, G groups, C candidates of a group, U different texts, E embedding, R resamples

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Evaluator, Field, Predictions, Preparation
from hybridclip_jax.evals.pairs import ImageTextPairs, seeded_order

# CLIP's first temperature (Radford et al. 2021): the loss at it compares models whose own has moved apart.
TEMPERATURE = 0.07
WAYS = ("i2t", "t2i")
# By kind of value.
MEANINGS = {
    "loss": "contrastive loss (InfoNCE) in nats among a fixed set of candidates, at the model's own temperature",
    f"loss_t{TEMPERATURE}": f"the same at a temperature of {TEMPERATURE}, which compares models whose own differ",
    "false_negatives": "share of pairs in whose group another pair has the same text, which no model can tell apart",
}


class CandidateLoss(Evaluator):
    """InfoNCE (Radford et al. 2021, figure 3) over groups of exactly `candidates` pairs, drawn with a fixed seed.

    Values: `loss/i2t`, `loss/t2i` and their mean `loss/mean` at the model's own temperature, `loss_t0.07/...` at
    0.07, which compares models whose temperatures differ; natural logarithms, `<kind>_chance/<name>` is
    ln(candidates). `false_negatives/share`: pairs in whose group another pair has the same text, which no model can
    tell apart. Pairs that fill no group are left out and counted. Intervals draw patients and with them pairs; the
    others of a group stay. UserError for a store without texts, or with fewer than `candidates` pairs.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "candidates": Field(64, "how many texts each image is compared with, its own counted"),
    }
    # A mean of losses is the loss of no model.
    AVERAGES: ClassVar[bool] = False

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        pairs = ImageTextPairs.of(f"evals.{name}", self.store, self.entry["unit"])
        candidates = self.entry["candidates"]
        if candidates < 2:
            raise UserError(f"evals.{name}.candidates = {candidates}: must be at least 2")
        groups, self.left_out = divmod(len(pairs), candidates)
        if not groups:
            raise UserError(
                f"evals.{name}.candidates = {candidates}: {self.store.spec} has only {len(pairs)} pairs; give fewer"
            )
        chosen = seeded_order(len(pairs))[: groups * candidates]
        kept = np.sort(chosen)
        self.pairs = pairs.only(kept)
        self.units = self.pairs.units
        self.member_GxC = np.searchsorted(kept, chosen).reshape(groups, candidates)
        self.columns = tuple(f"{kind}/{way}" for kind in ("loss", f"loss_t{TEMPERATURE}") for way in WAYS)

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Each pair's loss in both directions at both temperatures, in nats."""
        image_NxE, text_UxE = self.pairs.embeddings(encode, params, self.preparation)
        with np.errstate(over="ignore", invalid="ignore"):  # a model that has gone astray: NaN, and `reasons` says so
            return self._predictions(self._losses(image_NxE, text_UxE, np.float64(params["logit_scale"])))

    def _losses(self, image_NxE: np.ndarray, text_UxE: np.ndarray, log_scale: np.float64) -> np.ndarray:
        """[N, K], one column each of `columns`."""
        scales = np.exp(log_scale), 1 / TEMPERATURE
        score_NxK = np.empty((len(self.pairs), len(self.columns)))
        for member_C in self.member_GxC:
            cosine_CxC = image_NxE[member_C] @ text_UxE[self.pairs.text_N[member_C]].T
            losses = [_cross_entropy(scale * x_CxC) for scale in scales for x_CxC in (cosine_CxC, cosine_CxC.T)]
            score_NxK[member_C] = np.stack(losses, axis=1)
        return score_NxK

    def blank(self) -> Predictions:
        chance = math.log(self.entry["candidates"])
        return self._predictions(np.full((len(self.pairs), len(self.columns)), chance))

    def _predictions(self, score_NxK: np.ndarray) -> Predictions:
        """The truth is the loss of a perfect model, 0."""
        return Predictions(self.columns, score_NxK, np.zeros(score_NxK.shape))

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        value_RxK = weight_RxN @ predictions.score_NxK / weight_RxN.sum(axis=1, keepdims=True)
        by_column = dict(zip(self.columns, value_RxK.T, strict=True))
        means = {}
        for kind in ("loss", f"loss_t{TEMPERATURE}"):
            means[f"{kind}/mean"] = np.mean([by_column[f"{kind}/{way}"] for way in WAYS], axis=0)
        return means | by_column

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        names = self.measure(predictions, np.ones((1, len(self.pairs))))
        return dict.fromkeys(names, "the model's embeddings or its temperature are not finite")

    def constants(self, predictions: Predictions) -> Values:
        return self.chance_levels() | {"false_negatives/share": self._false_negatives() / len(self.pairs)}

    def _false_negatives(self) -> int:
        """Pairs that share their text with another of their group."""
        text_GxC = self.pairs.text_N[self.member_GxC]
        return sum(int((np.bincount(text_C)[text_C] > 1).sum()) for text_C in text_GxC)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "meanings": MEANINGS,
            "groups": len(self.member_GxC),
            "pairs_left_out": self.left_out,
            "texts": self.pairs.describe(self.preparation),
            "intervals": "patients are drawn again, and pairs with them; the others of a group stay",
        }


def _cross_entropy(logit_CxC: np.ndarray) -> np.ndarray:
    """-log softmax over columns at the diagonal, [C]; NaN where a logit is not finite."""
    highest_Cx1 = logit_CxC.max(axis=1, keepdims=True)
    return np.log(np.exp(logit_CxC - highest_Cx1).sum(axis=1)) + highest_Cx1[:, 0] - np.diagonal(logit_CxC)
