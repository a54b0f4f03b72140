"""CheXpert 5x200: which one of five findings a frontal image shows. Two published forms of one task.

They differ in how the similarities to a class's prompts become its score, and in whether the rest of the test set has
a say; their values must not be compared with each other.
"""

# N units, K classes, P prompts of a class, R resamples

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.evals import exclusive_sample
from hybridclip_jax.evals.evaluator import Field
from hybridclip_jax.evals.multi_class import MultiClass


class ChexpertCxrClip(MultiClass):
    """The form of CXR-CLIP (You et al., MICCAI 2023): the mean over all prompts of a class; each image by itself.

    UserError for a store without the five labels, without frontal views, or with too few images of a class, and for a
    list of another store.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        **MultiClass.FIELDS,
        "prompts": Field("chexpert5x200", MultiClass.FIELDS["prompts"].help),
        "sample": Field("", "a JSON list of source rows by class, or a metrics.json to repeat; drawn where empty"),
        "per_class": Field(200, "images of each class that are drawn"),
        "seed": Field(0, "of the draw"),
    }

    def _choose(self) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
        found = exclusive_sample.candidates(self.store)
        entry = self.entry
        self.sample = (
            exclusive_sample.read(Path(entry["sample"]), self.store, found)
            if entry["sample"]
            else exclusive_sample.draw(f"evals.{self.name}", self.store, found, entry["per_class"], entry["seed"])
        )
        rows = [[found[label][row] for row in chosen] for label, chosen in self.sample.rows.items()]
        row_M, class_M = np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        order = np.argsort(row_M)
        return tuple(found), row_M[order], class_M[order]

    def _score(self, cosine_NxP: np.ndarray) -> np.ndarray:
        return np.asarray(cosine_NxP.mean(axis=1))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"sample": self.sample.describe()}


class ChexpertGloria(ChexpertCxrClip):
    """The form of GLoRIA (Huang et al., ICCV 2021): the best prompt of a class, then a z-score over the test images.

    Their similarity is the mean of a global and a local one; these towers have the global one alone.
    """

    def _score(self, cosine_NxP: np.ndarray) -> np.ndarray:
        return np.asarray(cosine_NxP.max(axis=1))

    def _comparable(self, score_NxK: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
        return standardised(score_NxK, weight_RxN)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["notes"].append(
            "transductive: each class's scores are standardised over all images of this sample, so that the answer for "
            "one image, and every value, depends on which others are in it"
        )
        return described


def standardised(score_NxK: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """z-scores [R, N, K] of each class over the units, unit n counting weight[r, n] times; 0 where all score alike."""
    share_RxN = weight_RxN / weight_RxN.sum(axis=1, keepdims=True)
    score_NxK = score_NxK - score_NxK[0]  # so that scores that are all alike are 0 exactly, and not rounding errors
    centred_RxNxK = score_NxK - (share_RxN @ score_NxK)[:, None]
    spread_Rx1xK = np.sqrt(np.einsum("rn,rnk->rk", share_RxN, centred_RxNxK**2))[:, None]
    return np.divide(centred_RxNxK, spread_Rx1xK, out=np.zeros_like(centred_RxNxK), where=spread_Rx1xK > 0)
