"""Zero-shot classification from prompt pairs: the protocol of CheXzero (Tiu et al., Nature BME 2022).

For each label, prompts for its presence and for its absence are embedded and L2-normalised, averaged and
normalised again; an image's score is the softmax over its two raw cosines, without the logit scale (their
`zero_shot.py`). AUROC sees only the order of one model's scores; an ensemble averages these probabilities, so
the missing scale matters there.
"""

# N units, P prompts, T tokens, K labels, E embedding, R resamples

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hybridclip_jax.data.loader import width_for
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import metrics, prompt_file
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Evaluator, Field, Predictions, Preparation

# The five labels of the CheXpert competition, over which CheXzero's headline mean is taken.
COMPETITION = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")


class ZeroShot(Evaluator):
    """AUROC per label of a store, and their mean.

    Values: `auroc/<label>`, `auroc/mean` over those that are defined, `auroc/n_labels`, and `auroc/mean5` where the
    store has the five competition labels. Prompts are tokenised once, here, and padded to one fixed length.
    UserError for a store without labels, for labels outside 0 and 1, and for a prompt longer than the context.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "prompts": Field("chexzero", "a shipped prompt file by name, or any by path"),
    }

    def __init__(self, name: str, entry: Mapping[str, Any], preparation: Preparation) -> None:
        super().__init__(name, entry, preparation)
        store, spec = self.store, self.entry["data"]
        self.labels = tuple(store.label_names)
        if not self.labels:
            raise UserError(
                f"{spec} has no label columns: zero-shot needs them; run prepare again with --label-columns"
            )
        for label in self.labels:
            values = store.labels[label]
            if not np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
                raise UserError(f"{spec}: label {label!r} holds values other than 0, 1 and unknown")
        self.truth_NxK = np.stack([self.units.labels(store.labels[label]) for label in self.labels], axis=1)
        self.prompts = prompt_file.load(self.entry["prompts"])
        texts: list[str] = []
        self._sides: list[tuple[slice, slice]] = []  # rows of each label's positive and negative prompts
        for label in self.labels:
            pair = self.prompts.pair(label)
            start, middle = len(texts), len(texts) + len(pair.positive)
            texts += [*pair.positive, *pair.negative]
            self._sides.append((slice(start, middle), slice(middle, len(texts))))
        context = preparation.context
        tokens = preparation.tokenizer(texts, context)
        if tokens.truncated.any():
            text = texts[int(np.argmax(tokens.truncated))]
            raise UserError(f"evals.{name}: prompt {text!r} does not fit into the context of {context} tokens")
        self.ids_PxT = tokens.ids[:, : width_for(int(tokens.eot.max()) + 1, context)]

    def predict(self, encode: Encode, params: Mapping[str, Any]) -> Predictions:
        """Probability of presence per unit and label: what an ensemble averages."""
        text_PxE = encode.of_tokens(params, self.ids_PxT).astype(np.float64)
        image_MxE = encode.of_store(params, self.store, self.preparation.image_size)
        image_NxE = self.units.embeddings(image_MxE)
        columns = []
        for positive, negative in self._sides:
            cosine_pos = image_NxE @ class_embedding(text_PxE[positive])
            cosine_neg = image_NxE @ class_embedding(text_PxE[negative])
            columns.append(1 / (1 + np.exp(cosine_neg - cosine_pos)))  # softmax over two
        return Predictions(self.labels, np.stack(columns, axis=1), self.truth_NxK)

    def blank(self) -> Predictions:
        return Predictions(self.labels, np.zeros(self.truth_NxK.shape), self.truth_NxK)

    def measure(self, predictions: Predictions, weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        by_label = {
            label: metrics.weighted_auroc(score_N, truth_N, weight_RxN)
            for label, score_N, truth_N in zip(
                self.labels, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True
            )
        }
        values = {f"auroc/{label}": value for label, value in by_label.items()}
        values["auroc/mean"] = _mean([by_label[label] for label in self._defined(predictions)], len(weight_RxN))
        by_key = {prompt_file.label_key(label): value for label, value in by_label.items()}
        if all(label in by_key for label in COMPETITION):
            values["auroc/mean5"] = _mean([by_key[label] for label in COMPETITION], len(weight_RxN))
        return values

    def reasons(self, predictions: Predictions) -> dict[str, str]:
        why = self._why(predictions)
        missing = [key for key in COMPETITION if key in {prompt_file.label_key(label) for label in why}]
        return {f"auroc/{label}": reason for label, reason in why.items()} | {
            "auroc/mean": "no label has a defined AUROC",
            "auroc/mean5": f"undefined for {', '.join(missing)}",
        }

    def constants(self, predictions: Predictions) -> Values:
        return {"auroc/n_labels": len(self._defined(predictions))}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "labels": {
                label: {
                    "positives": int((truth_N == 1).sum()),
                    "negatives": int((truth_N == 0).sum()),
                    "unknown": int(np.isnan(truth_N).sum()),
                }
                for label, truth_N in zip(self.labels, self.truth_NxK.T, strict=True)
            },
            "prompts": self.prompts.describe(self.labels),
        }

    def _why(self, predictions: Predictions) -> dict[str, str]:
        """Of each label without an AUROC: why."""
        columns = zip(self.labels, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True)
        return {label: why for label, score_N, truth_N in columns if (why := metrics.auroc(score_N, truth_N)[1])}

    def _defined(self, predictions: Predictions) -> list[str]:
        why = self._why(predictions)
        return [label for label in self.labels if label not in why]


def _mean(value_KxR: list[np.ndarray], resamples: int) -> np.ndarray:
    """The mean over labels, NaN in a resample where one of them has no value: the labels are the same in each."""
    return np.mean(value_KxR, axis=0) if value_KxR else np.full(resamples, np.nan)


def class_embedding(prompt_PxE: np.ndarray) -> np.ndarray:
    """The unit vector [E] of a class: its L2-normalised prompts averaged, then normalised again."""
    mean = _unit(prompt_PxE).mean(axis=0)
    return _unit(mean)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
