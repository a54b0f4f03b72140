"""Retrieval in both directions: the text of an image among all texts, and the image of a text among all images.

What counts as found differs between publications, and decides most of the value where reports repeat. `index`: the
query's own row alone, as most code does. `unique-text`: texts that are the same are one candidate and one query, as
the code of CXR-CLIP does for image to text (Soombit-ai/cxr-clip); the other direction is ours. `multi-positive`: any
candidate of the same study or with the same text.
"""

# N pairs, Q queries, C candidates, J keys, E embedding, R resamples, B queries of a block

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import metrics
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Evaluator, Field, Predictions, Preparation, beside
from hybridclip_jax.evals.pairs import ImageTextPairs, numbered, seeded_order
from hybridclip_jax.evals.preference import TIE, weighted_mean

AT = (1, 5, 10, 50)
DIRECTIONS = ("i2t", "t2i")
# The values whose mean is `recall/mean`.
_HEADLINE = tuple(f"recall_{way}/{k}" for way in DIRECTIONS for k in (1, 5, 10))
_BLOCK = 4_000_000  # cosines at a time, 16 MB in float32

# By kind of value.
MEANINGS = {
    "recall": "mean of the recalls among the first 1, 5 and 10 in both directions",
    "recall_i2t": "share of images whose text is among the k nearest texts",
    "recall_t2i": "share of texts whose image is among the k nearest images",
    "median_rank": "median over the queries of the place of what is found, from 1",
}


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the best positive of each query stands among the candidates, int64 [Q] each.

    above: negatives that score more. tied: negatives that score the same. own: positives that score the same, the
    best one counted.
    """

    above: np.ndarray
    tied: np.ndarray
    own: np.ndarray

    def recall(self, k: int) -> np.ndarray:
        """Chance [Q] that a positive is among the first k where ties are put in random order."""
        missed_Q = np.ones(len(self.above))
        for place in range(k):
            free_Q = self.tied + self.own - place
            share_Q = np.clip(self.tied - place, 0, None) / np.maximum(free_Q, 1)
            missed_Q *= np.where(self.above + place < k, share_Q, 1.0)
        return 1 - missed_Q

    @classmethod
    def of_chance(cls, own_Q: np.ndarray, candidates: int) -> Places:
        """The places that a model which scores all alike gives queries with so many positives each."""
        return cls(np.zeros_like(own_Q), candidates - own_Q, own_Q)

    def rank(self) -> np.ndarray:
        """Mean place [Q], from 1, of the best positive where ties are put in random order."""
        return self.above + (self.tied + self.own + 1) / (self.own + 1)


def places(query_QxE: np.ndarray, candidate_CxE: np.ndarray, key_QxJ: np.ndarray, key_CxJ: np.ndarray) -> Places:
    """Ranks candidates by cosine; inputs are unit vectors. Positive for a query is what equals it in any key.

    Every query must have a positive. Holds a block of the [Q, C] cosines at a time.
    """
    query_QxE, candidate_CxE = query_QxE.astype(np.float32), candidate_CxE.astype(np.float32)
    parts = []
    block = max(1, _BLOCK // len(candidate_CxE))
    for start in range(0, len(query_QxE), block):
        cosine_BxC = query_QxE[start : start + block] @ candidate_CxE.T
        positive_BxC = np.zeros(cosine_BxC.shape, bool)
        for key_Q, key_C in zip(key_QxJ[start : start + block].T, key_CxJ.T, strict=True):
            positive_BxC |= key_Q[:, None] == key_C
        best_Bx1 = np.max(cosine_BxC, axis=1, keepdims=True, where=positive_BxC, initial=-2)
        above_BxC = cosine_BxC > best_Bx1 + TIE
        equal_BxC = (cosine_BxC >= best_Bx1 - TIE) & ~above_BxC
        parts.append([(mask & side).sum(axis=1) for mask, side in (
            (above_BxC, ~positive_BxC), (equal_BxC, ~positive_BxC), (equal_BxC, positive_BxC)
        )])  # fmt: skip
    return Places(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Retrieval(Evaluator):
    """Recall at 1, 5, 10 and 50 and median rank, image to text (`i2t`) and text to image (`t2i`), by cosine.

    Values: `recall_i2t/<k>`, `recall_t2i/<k>`, `median_rank/<direction>`, and `recall/mean` over k = 1, 5, 10 in both
    directions; `<kind>_chance/<name>` beside each is the value of a model that scores all alike. Candidates that
    score the same are taken in random order: a recall is its expected value, so that such a model gets what chance
    gives. Intervals draw patients and with them queries; the candidates that a query is ranked among stay.
    A subclass says which candidates are found. UserError for a store without texts, or with fewer pairs than `sample`.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "sample": Field(0, "how many pairs are drawn, with a fixed seed; 0 is all"),
    }
    # A mean of ranks is the rank of no model.
    AVERAGES: ClassVar[bool] = False
    FOUND: ClassVar[str] = "the candidate of the query's own row, though another may have the same text"

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        pairs = ImageTextPairs.of(f"evals.{name}", self.store, self.entry["unit"])
        sample = self.entry["sample"]
        if sample < 0 or sample == 1:
            raise UserError(f"evals.{name}.sample = {sample}: must be 0 for all pairs, or at least 2")
        if sample > len(pairs):
            raise UserError(f"evals.{name}.sample = {sample}: {self.store.spec} has {len(pairs)} pairs; give 0 for all")
        self.pairs = pairs.only(seeded_order(len(pairs))[:sample]) if sample else pairs
        self.units = self.pairs.units
        self.columns = (
            *(f"recall_{way}/{k}" for way in DIRECTIONS for k in AT),
            *(f"median_rank/{way}" for way in DIRECTIONS),
        )

    def places(self, image_NxE: np.ndarray, text_UxE: np.ndarray) -> tuple[Places, Places]:
        """Of images among texts and of texts among images, [N] each; text u is text_N[n] of pair n."""
        key_NxJ, text_NxE = self._keys(), text_UxE[self.pairs.text_N]
        return places(image_NxE, text_NxE, key_NxJ, key_NxJ), places(text_NxE, image_NxE, key_NxJ, key_NxJ)

    def chance(self) -> tuple[Places, Places]:
        """The same of a model that scores all alike, without scoring."""
        found = Places.of_chance(self.positives(), len(self.pairs))
        return found, found

    def positives(self) -> np.ndarray:
        """How many candidates each pair finds, itself counted, int64 [N]."""
        return np.ones(len(self.pairs), np.int64)

    def asks(self) -> np.ndarray:
        """Which pairs' texts are a query, bool [N]."""
        return np.ones(len(self.pairs), bool)

    def _keys(self) -> np.ndarray:
        """[N, J]: two pairs that are equal in a column are each other's positives."""
        return np.arange(len(self.pairs))[:, None]

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Per pair each direction's recalls and rank; NaN where its text is not a query of its own."""
        image_NxE, text_UxE = self.pairs.embeddings(encode, params, self.preparation)
        if not (np.isfinite(image_NxE).all() and np.isfinite(text_UxE).all()):
            return self._predictions(np.full((len(self.pairs), len(self.columns)), np.nan))
        return self._of(*self.places(image_NxE, text_UxE))

    def blank(self) -> Predictions:
        return self._of(*self.chance())

    def _of(self, *both: Places) -> Predictions:
        recalls = [found.recall(k) for found in both for k in AT]
        return self._predictions(np.stack([*recalls, *(found.rank() for found in both)], axis=1))

    def _predictions(self, score_NxK: np.ndarray) -> Predictions:
        """The truth is the score of a perfect model: found at once, at place 1."""
        asked_NxK = np.ones(score_NxK.shape, bool)
        asked_NxK[:, ["t2i" in column for column in self.columns]] = self.asks()[:, None]
        return Predictions(self.columns, np.where(asked_NxK, score_NxK, np.nan), np.where(asked_NxK, 1.0, np.nan))

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        values = {}
        for column, score_N, truth_N in zip(
            self.columns, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True
        ):
            asked = ~np.isnan(truth_N)
            if column.startswith("median_rank"):
                values[column] = metrics.weighted_median(score_N, weight_RxN)
            else:
                values[column] = weighted_mean(score_N, asked, weight_RxN)
        return {"recall/mean": np.mean([values[column] for column in _HEADLINE], axis=0), **values}

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        return dict.fromkeys(("recall/mean", *self.columns), "the model's embeddings are not all finite")

    def constants(self, predictions: Predictions) -> Values:
        return self.chance_levels()

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "found": self.FOUND,
            "meanings": MEANINGS,
            "texts": self.pairs.describe(self.preparation),
            "intervals": "patients are drawn again, and queries with them; candidates stay",
        }


class ByIndex(Retrieval):
    """Only the candidate of the query's own row is found.

    `recall_i2t_ceiling/<k>` and `recall_t2i_ceiling/<k>` are what a perfect model gets, which cannot tell apart the
    rows that share a text.
    """

    def constants(self, predictions: Predictions) -> Values:
        sharing_N = self.pairs.sharing_N()
        perfect = Places(above=np.zeros_like(sharing_N), tied=sharing_N - 1, own=np.ones_like(sharing_N))
        ceiling = {beside(f"recall_{way}/{k}", "ceiling"): float(perfect.recall(k).mean())
                   for way in DIRECTIONS for k in AT}  # fmt: skip
        return super().constants(predictions) | ceiling

    def describe(self) -> dict[str, Any]:
        said = super().describe()
        if shared := said["texts"]["pairs_that_share_a_text"]:
            said["notes"].append(
                f"{shared:,} of {len(self.pairs):,} pairs share their text with another, and finding the other counts "
                "as a miss; recall_i2t_ceiling is what a perfect model gets"
            )
        return said


class UniqueText(Retrieval):
    """Texts that are the same are one candidate; as a query such a text finds any of its images.

    A text that several pairs share counts once, with the patient of the first.
    """

    FOUND: ClassVar[str] = "the query's own text among different texts; for a text, any of its images"

    def places(self, image_NxE: np.ndarray, text_UxE: np.ndarray) -> tuple[Places, Places]:
        text_N = self.pairs.text_N
        key_Nx1, key_Ux1 = text_N[:, None], np.arange(len(self.pairs.texts))[:, None]
        of_text = places(text_UxE, image_NxE, key_Ux1, key_Nx1)
        spread = Places(of_text.above[text_N], of_text.tied[text_N], of_text.own[text_N])
        return places(image_NxE, text_UxE, key_Nx1, key_Ux1), spread

    def chance(self) -> tuple[Places, Places]:
        sharing_N = self.pairs.sharing_N()
        of_image = Places.of_chance(np.ones_like(sharing_N), len(self.pairs.texts))
        return of_image, Places.of_chance(sharing_N, len(self.pairs))

    def asks(self) -> np.ndarray:
        first = np.zeros(len(self.pairs), bool)
        first[np.unique(self.pairs.text_N, return_index=True)[1]] = True
        return first


class MultiPositive(Retrieval):
    """Any candidate of the same study or with the same text is found; a query's rank is that of the best."""

    FOUND: ClassVar[str] = "any candidate of the same study or with the same text"

    def _keys(self) -> np.ndarray:
        return np.stack([self.pairs.study_N, self.pairs.text_N], axis=1)

    def positives(self) -> np.ndarray:
        study_N, text_N = self.pairs.study_N, self.pairs.text_N
        both_N = numbered(list(zip(study_N.tolist(), text_N.tolist(), strict=True)))
        in_study, with_text, in_both = (np.bincount(key_N)[key_N] for key_N in (study_N, text_N, both_N))
        return in_study + with_text - in_both
