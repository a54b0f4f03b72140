"""The limits that labels show: whether a model sees a "no", and how much the wording of prompts matters."""

# N units, P prompts of a side, E embedding, R resamples

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridclip_jax.evals import label_counts, metrics, prompt_file
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Preparation, beside
from hybridclip_jax.evals.preference import balanced, preferred
from hybridclip_jax.evals.prompt_tokens import PromptTokens
from hybridclip_jax.evals.zero_shot import class_embedding

WORDINGS = {"bare": "chexzero", "templated": "templated"}  # by the name in values, the shipped prompt file
KINDS = ("negation", *(f"wording_{wording}" for wording in WORDINGS), "wording_spread")


class LabelTests:
    """Tests of K labels, [N] of 1, 0 or NaN by name; their values are those of `Limits` that name a label.

    Columns of scores: `<wording>/<label>`, the image's cosine with the statement that the label is present less that
    with its absence, and `statements/<label>`, the cosine between the two bare statements, one number for all units.
    """

    def __init__(self, where: str, labels: Mapping[str, np.ndarray], preparation: Preparation) -> None:
        self.labels = labels
        self.prompts = {wording: prompt_file.load(file) for wording, file in WORDINGS.items()}
        self.tokens = {wording: self._tokens(where, file, preparation) for wording, file in self.prompts.items()}
        self.truth = {f"{column}/{label}": y for column in (*WORDINGS, "statements") for label, y in labels.items()}

    def _tokens(self, where: str, prompts: prompt_file.PromptFile, preparation: Preparation) -> PromptTokens:
        pairs = [prompts.pair(label) for label in self.labels]
        groups = [side for pair in pairs for side in (pair.positive, pair.negative)]
        return PromptTokens.of(where, groups, preparation.tokenizer, preparation.context)

    def scores(self, encode: Encode, params: Mapping[str, np.ndarray], image_NxE: np.ndarray) -> dict[str, np.ndarray]:
        score = {}
        for wording, tokens in self.tokens.items():
            classes = [class_embedding(prompt_PxE) for prompt_PxE in tokens.embed(encode, params)]
            for label, present, absent in zip(self.labels, classes[::2], classes[1::2], strict=True):
                score[f"{wording}/{label}"] = image_NxE @ present - image_NxE @ absent
                if wording == "bare":
                    score[f"statements/{label}"] = np.full(len(image_NxE), present @ absent)
        return score

    def blank(self) -> dict[str, np.ndarray]:
        return {name: np.full(len(y), float(name.startswith("statements/"))) for name, y in self.truth.items()}

    def measure(self, score: Mapping[str, np.ndarray], weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        kinds = {
            f"wording_{wording}": {
                label: metrics.weighted_auroc(score[f"{wording}/{label}"], truth_N, weight_RxN)
                for label, truth_N in self.labels.items()
            }
            for wording in WORDINGS
        }
        spread = {label: np.ptp([by_label[label] for by_label in kinds.values()], axis=0) for label in self.labels}
        chosen = {
            label: balanced(preferred(score[f"bare/{label}"]), truth_N, weight_RxN)
            for label, truth_N in self.labels.items()
        }
        # Over the same labels in every resample: undefined in one where any of them is.
        defined = [label for label in self.labels if label not in self._why(score)]
        values: dict[str, np.ndarray] = {}
        for kind, by_label in {"negation": chosen, **kinds, "wording_spread": spread}.items():
            values |= {f"{kind}/{label}": value_R for label, value_R in by_label.items()}
            if defined:
                values[f"{kind}/mean"] = np.mean([by_label[label] for label in defined], axis=0)
            else:
                values[f"{kind}/mean"] = np.full(len(weight_RxN), np.nan)
        return values

    def reasons(self, score: Mapping[str, np.ndarray]) -> dict[str, str]:
        why = {"mean": "no label has a value", **self._why(score)}
        return {f"{kind}/{name}": reason for kind in KINDS for name, reason in why.items()}

    def constants(self, score: Mapping[str, np.ndarray]) -> Values:
        tested = [kind for kind in KINDS if kind != "wording_spread"]
        chance = {beside(f"{kind}/{name}", "chance"): 0.5 for kind in tested for name in (*self.labels, "mean")}
        cosines = {label: float(score[f"statements/{label}"][0]) for label in self.labels}
        cosines["mean"] = float(np.mean(list(cosines.values())))
        values: Values = {**chance}
        for name, cosine in cosines.items():
            values[f"negation_cosine/{name}"] = cosine if np.isfinite(cosine) else None
            if not np.isfinite(cosine):
                values[f"negation_cosine_why/{name}"] = "an embedding is not finite"
        return values

    def backwards(self, values: Values) -> Values:
        """How many labels each wording reads backwards for certain, and which, from the intervals in `values`."""
        found: Values = {}
        for wording in WORDINGS:
            ends = {label: values[f"wording_{wording}_hi/{label}"] for label in self.labels}
            names = [label for label, high in ends.items() if isinstance(high, float) and high < 0.5]
            found[f"wording_backwards/{wording}"] = len(names)
            if names:
                found[f"wording_backwards_labels/{wording}"] = ", ".join(names)
        return found

    def describe(self) -> dict[str, Any]:
        names = tuple(self.labels)
        return {
            "labels": label_counts.of(names, np.stack([self.labels[label] for label in names], axis=1)),
            "prompts": [prompts.describe(names) for prompts in self.prompts.values()],
        }

    def _why(self, score: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Of each label that has no values: why."""
        return {
            label: why
            for label, truth_N in self.labels.items()
            for wording in WORDINGS
            if (why := metrics.auroc(score[f"{wording}/{label}"], truth_N)[1])
        }
