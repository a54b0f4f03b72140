"""Evaluators by protocol name, and what each of them offers. A new protocol is one new file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from hybridclip_jax.data.store import Store
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.zero_shot import ZeroShot


class Evaluator(Protocol):
    """One entry of `config.evals`: what is measured, and on which store.

    Built by EVALUATORS[protocol](name, entry, tokenizer, context=..., image_size=..., open_store=...), which raises
    UserError for whatever the entry or its store gets wrong, so that nothing is left to fail at the first evaluation.
    """

    store: Store

    def run(self, encode: Encode, params: Mapping[str, Any]) -> Values:
        """One evaluation of `params`: values by public name; an undefined one is None, with why beside it."""
        ...

    def at_chance(self) -> Values:
        """The values of a model that scores all alike: their names, and which are undefined on this store."""
        ...


EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "chexzero": ZeroShot,
}
