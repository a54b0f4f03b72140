"""Reports written another way: what a model that reads them should tell from the original."""

# N units with their texts, P of them

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from hybridclip_jax.data.sentences import split_sentences
from hybridclip_jax.data.tokenizer import Tokenizer

# "left and right" is as true when swapped, so it is taken as one word and left alone.
_BOTH = r"(?:left|right)\s*(?:and/or|and|or|&|/)\s*(?:left|right)"
_SIDE = re.compile(rf"\b(?:{_BOTH}|left|right)\b", re.I)
_OPPOSITE = {"left": "right", "right": "left"}


@dataclasses.dataclass(frozen=True)
class Contrasts:
    """Texts of P units, each beside another that the unit's image should not prefer.

    unit_P: int64, numbers of the units. own, other: the texts. context, other_context: tokens that are read of each.
    """

    unit_P: np.ndarray
    own: tuple[str, ...]
    other: tuple[str, ...]
    context: int
    other_context: int

    def __len__(self) -> int:
        return len(self.unit_P)


def sides(unit_N: np.ndarray, texts: Sequence[str], tokenizer: Tokenizer, context: int) -> Contrasts:
    """Each text against itself with left and right swapped, where it names one of them within the context."""
    swapped = [swap_sides(text) for text in texts]
    differ_N = (tokenizer(texts, context).ids != tokenizer(swapped, context).ids).any(axis=1)
    return _chosen(differ_N, unit_N, texts, swapped, context, context)


def order(unit_N: np.ndarray, texts: Sequence[str], tokenizer: Tokenizer, context: int) -> Contrasts:
    """Each text's sentences against the same from last to first, where both fit into the context.

    Both are joined alike, without section headers. Of what is cut, more than the order would differ.
    """
    sentences = [split_sentences(text) for text in texts]
    onward, back = [" ".join(said) for said in sentences], [" ".join(said[::-1]) for said in sentences]
    read, other = tokenizer(onward, context), tokenizer(back, context)
    differ_N = (read.ids != other.ids).any(axis=1)
    return _chosen(differ_N & ~read.truncated & ~other.truncated, unit_N, onward, back, context, context)


def cut(
    unit_N: np.ndarray, texts: Sequence[str], tokenizer: Tokenizer, context: int, *, limit: int, group: int
) -> Contrasts:
    """Each text longer than `limit` tokens against what is left of it there, in whole groups of `group` texts.

    None where the model itself reads no more than `limit`.
    """
    longer_N = tokenizer(texts, limit).truncated & (context > limit)
    longer = np.flatnonzero(longer_N)
    longer_N[longer[len(longer) // group * group :]] = False
    return _chosen(longer_N, unit_N, texts, texts, context, limit)


def _chosen(
    which_N: np.ndarray, unit_N: np.ndarray, own: Sequence[str], other: Sequence[str], context: int, other_context: int
) -> Contrasts:
    kept = np.flatnonzero(which_N).tolist()
    return Contrasts(unit_N[kept], tuple(own[n] for n in kept), tuple(other[n] for n in kept), context, other_context)


def swap_sides(text: str) -> str:
    """The text with every whole word "left" turned into "right" and the reverse, in the case it had.

    What names both sides alike ("left and right ribs") stays.
    """
    return _SIDE.sub(_opposite, text)


def _opposite(match: re.Match[str]) -> str:
    word = match[0]
    if word.lower() not in _OPPOSITE:
        return word
    opposite = _OPPOSITE[word.lower()]
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite
