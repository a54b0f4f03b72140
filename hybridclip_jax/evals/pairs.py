"""Units of a store beside their own texts: what retrieval and the contrastive loss are measured on."""

# N pairs, M images, U different texts, E embedding

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import clean
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.evaluator import Preparation
from hybridclip_jax.evals.units import Units, normalised


def seeded_order(n: int, seed: int = 0) -> np.ndarray:
    """A permutation of n things, int64 [n], the same in every numpy version."""
    # Raw draws of a counter-based generator and a stable sort; Generator's methods may change their streams.
    draws = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(n)
    return np.argsort(draws, kind="stable")


def numbered(things: Sequence[Hashable]) -> np.ndarray:
    """int64 [n]: equal things have one number; the first is 0, the next different one 1."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(thing, len(number)) for thing in things], np.int64)


def text_rows(told: np.ndarray, units: Units) -> np.ndarray:
    """The row whose text is that of each unit, int64 [N]: the first of its rows that `told` marks, else its first.

    told: bool, one of each row of the store, whether it has a text.
    """
    marked = np.flatnonzero(told[units.row_M])
    unit_U, first_U = np.unique(units.unit_M[marked], return_index=True)
    row_N = units.row_N.copy()
    row_N[unit_U] = units.row_M[marked[first_U]]
    return row_N


@dataclasses.dataclass(frozen=True)
class ImageTextPairs:
    """N units that have a text.

    texts: U texts, none twice; two are the same where the tokenizer cleans them to the same. text_N: which one each
    unit has. text_row_N: the row that it is of. study_N: a number for each unit's study. without_text: images of the
    store that have none; those of a study with a text count as its images all the same.
    """

    store: Store
    units: Units
    texts: tuple[str, ...]
    text_N: np.ndarray
    text_row_N: np.ndarray
    study_N: np.ndarray
    without_text: int

    @classmethod
    def of(cls, where: str, store: Store, kind: str) -> ImageTextPairs:
        """All pairs of a store; UserError, beginning with `where`, for fewer than two, or a study with two texts."""
        cleaned = np.array([clean(text) for text in store.texts], object)
        told = cleaned != ""
        units = Units.of(store, kind)
        text_row_N = text_rows(told, units)
        other_M = told[units.row_M] & (cleaned[units.row_M] != cleaned[text_row_N][units.unit_M])
        if differ := len(set(units.unit_M[other_M])):
            raise UserError(
                f"{where}: {differ} studies of {store.spec} have images with different texts, so that a study has no "
                "text of its own; use unit image"
            )
        chosen = np.flatnonzero(told[text_row_N])
        if len(chosen) < 2:
            what = {"image": "images", "study": "studies"}[kind]
            raise UserError(f"{where}: {store.spec} has {len(chosen)} {what} with a text, and this needs two or more")
        units = Units.of(store, kind, units.row_M[np.isin(units.unit_M, chosen)])
        return cls._made(store, units, text_row_N[chosen], int((~told).sum()))

    @classmethod
    def _made(cls, store: Store, units: Units, text_row_N: np.ndarray, without_text: int) -> ImageTextPairs:
        rows = text_row_N.tolist()
        text_N = numbered([clean(store.texts[row]) for row in rows])
        texts = [store.texts[rows[n]] for n in np.unique(text_N, return_index=True)[1]]
        # A source may number each patient's studies from 1.
        study_N = numbered([(store.patients[row], store.studies[row]) for row in rows])
        return cls(store, units, tuple(texts), text_N, text_row_N, study_N, without_text)

    def __len__(self) -> int:
        return len(self.units)

    def only(self, chosen: np.ndarray) -> ImageTextPairs:
        """The pairs whose numbers are in `chosen`, in the order they have here."""
        rows = self.units.row_M[np.isin(self.units.unit_M, chosen)]
        units = Units.of(self.store, self.units.kind, rows)
        return self._made(self.store, units, self.text_row_N[np.unique(chosen)], self.without_text)

    def sharing_N(self) -> np.ndarray:
        """How many pairs have the text of each, itself counted."""
        return np.bincount(self.text_N)[self.text_N]

    def embeddings(
        self, encode: Encode, params: Mapping[str, Any], preparation: Preparation
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors float64: of the units' images [N, E] and of the texts [U, E]."""
        image_MxE = encode.of_store(params, self.store, preparation.image_size, self.units.row_M)
        text_UxE = encode.of_texts(params, self.texts, preparation.tokenizer, preparation.context).astype(np.float64)
        return self.units.embeddings(image_MxE), normalised(text_UxE)

    def describe(self, preparation: Preparation) -> dict[str, Any]:
        """Counts for the description of an evaluation."""
        cut_U = preparation.tokenizer(self.texts, preparation.context).truncated
        return {
            "pairs": len(self),
            "different_texts": len(self.texts),
            "pairs_that_share_a_text": int((self.sharing_N() > 1).sum()),
            "pairs_cut_at_the_context": int(cut_U[self.text_N].sum()),
            "images_without_text": self.without_text,
        }
