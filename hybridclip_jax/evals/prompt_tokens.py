"""The sentences of an evaluation as tokens: made once, padded to one width, so that nothing recompiles."""

# G groups, P prompts of a group, Q prompts of all groups, T tokens, E embedding

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridclip_jax.data.loader import width_for
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.encode import Encode


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """Groups of prompts, such as the positive ones of a label. ids_QxT: int32, group after group; sizes: [G]."""

    ids_QxT: np.ndarray
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, where: str, groups: Sequence[Sequence[str]], tokenizer: Tokenizer, context: int) -> PromptTokens:
        """UserError, beginning with `where`, for a prompt longer than the context."""
        texts = [text for group in groups for text in group]
        tokens = tokenizer(texts, context)
        if tokens.truncated.any():
            text = texts[int(np.argmax(tokens.truncated))]
            raise UserError(f"{where}: prompt {text!r} does not fit into the context of {context} tokens")
        width = width_for(int(tokens.eot.max()) + 1, context)
        return cls(tokens.ids[:, :width], tuple(len(group) for group in groups))

    def embed(self, encode: Encode, params: Mapping[str, Any]) -> list[np.ndarray]:
        """The embeddings of each group, float64 [P, E]."""
        text_QxE = encode.of_tokens(params, self.ids_QxT).astype(np.float64)
        return np.split(text_QxE, np.cumsum(self.sizes)[:-1])
