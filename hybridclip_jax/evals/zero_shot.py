"""Zero-shot classification from prompt pairs: the protocol of CheXzero (Tiu et al., Nature BME 2022).

For each label, prompts for its presence and for its absence are embedded and L2-normalised, averaged and
normalised again; an image's score is the softmax over its two raw cosines, without the logit scale (their
`zero_shot.py`). AUROC sees only the order of one model's scores; an ensemble averages these probabilities, so
the missing scale matters there.
"""

# N images, P prompts, T tokens, K labels, E embedding

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hybridclip_jax.data.loader import width_for
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import metrics, prompt_file
from hybridclip_jax.evals.encode import Encode, Values

# The five labels of the CheXpert competition, over which CheXzero's headline mean is taken.
COMPETITION = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")


class ZeroShot:
    """AUROC per label of a store and their mean.

    Config fields: `data` (a store, PATH[:SPLIT]) and `prompts` (the name of a shipped prompt file or a path;
    default "chexzero"). Prompts are tokenised once, here, and padded to one fixed length. UserError for a
    store without labels, for labels outside 0 and 1, and for a prompt longer than the context.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        tokenizer: Tokenizer,
        *,
        context: int,
        image_size: int,
        open_store: Callable[[str], Store] = Store.open,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.store = open_store(config["data"])
        self.labels = tuple(self.store.label_names)
        if not self.labels:
            raise UserError(
                f"{config['data']} has no label columns: zero-shot needs them; run prepare again with --label-columns"
            )
        for label in self.labels:
            values = self.store.labels[label]
            if not np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
                raise UserError(f"{config['data']}: label {label!r} holds values other than 0, 1 and unknown")
        self.prompts = prompt_file.load(config.get("prompts", "chexzero"))
        texts: list[str] = []
        self._sides: list[tuple[slice, slice]] = []  # rows of each label's positive and negative prompts
        for label in self.labels:
            pair = self.prompts.pair(label)
            start, middle = len(texts), len(texts) + len(pair.positive)
            texts += [*pair.positive, *pair.negative]
            self._sides.append((slice(start, middle), slice(middle, len(texts))))
        tokens = tokenizer(texts, context)
        if tokens.truncated.any():
            text = texts[int(np.argmax(tokens.truncated))]
            raise UserError(f"evals.{name}: prompt {text!r} does not fit into the context of {context} tokens")
        self.ids_PxT = tokens.ids[:, : width_for(int(tokens.eot.max()) + 1, context)]

    def probabilities(self, encode: Encode, params: Mapping[str, Any]) -> np.ndarray:
        """Probability of presence per image and label, float64 [N, K]: what an ensemble averages."""
        text_PxE = encode.of_tokens(params, self.ids_PxT).astype(np.float64)
        image_NxE = encode.of_store(params, self.store, self.image_size).astype(np.float64)
        columns = []
        for positive, negative in self._sides:
            cosine_pos = image_NxE @ class_embedding(text_PxE[positive])
            cosine_neg = image_NxE @ class_embedding(text_PxE[negative])
            columns.append(1 / (1 + np.exp(cosine_neg - cosine_pos)))  # softmax over two
        return np.stack(columns, axis=1)

    def score(self, probability_NxK: np.ndarray) -> Values:
        """Values by public name: `auroc/<label>`, `auroc/mean` over the defined ones, `auroc/n_labels`.

        `auroc/mean5` comes where the store has the five competition labels. An undefined value is None beside
        `auroc_why/<name>`.
        """
        values: Values = {}
        by_label: dict[str, float | None] = {}
        for label, score_N in zip(self.labels, probability_NxK.T, strict=True):
            by_label[label], why = metrics.auroc(score_N, self.store.labels[label])
            values[f"auroc/{label}"] = by_label[label]
            if why is not None:
                values[f"auroc_why/{label}"] = why
        values["auroc/mean"], values["auroc/n_labels"] = metrics.mean_of_defined(by_label.values())
        if values["auroc/mean"] is None:
            values["auroc_why/mean"] = "no label has a defined AUROC"
        by_key = {prompt_file.label_key(label): value for label, value in by_label.items()}
        if all(label in by_key for label in COMPETITION):
            five = [by_key[label] for label in COMPETITION]
            missing = [label for label, value in zip(COMPETITION, five, strict=True) if value is None]
            values["auroc/mean5"] = None if missing else metrics.mean_of_defined(five)[0]
            if missing:
                values["auroc_why/mean5"] = f"undefined for {', '.join(missing)}"
        return values

    def at_chance(self) -> Values:
        """What `run` gives for a model that scores all alike: which values there are and which are undefined."""
        return self.score(np.zeros((len(self.store), len(self.labels))))

    def run(self, encode: Encode, params: Mapping[str, Any]) -> Values:
        """One evaluation of `params`: see `score` for the names."""
        return self.score(self.probabilities(encode, params))


def class_embedding(prompt_PxE: np.ndarray) -> np.ndarray:
    """The unit vector [E] of a class: its L2-normalised prompts averaged, then normalised again."""
    mean = _unit(prompt_PxE).mean(axis=0)
    return _unit(mean)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
