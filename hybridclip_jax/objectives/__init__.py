"""Objectives by name, and the protocol they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax

from hybridclip_jax.objectives.contrastive import Contrastive
from hybridclip_jax.state import Params

Metrics = dict[str, jax.Array]


class Objective(Protocol):
    """What the step asks of an objective. Teachers, queues and centres live in `aux`."""

    def init_aux(self, params: Params) -> Any: ...

    def loss(
        self,
        bind: Callable[[Params], Any],
        params: Params,
        aux: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[Any, Metrics]]: ...

    def after_update(self, params: Params, aux: Any) -> tuple[Params, Any]: ...


OBJECTIVES: dict[str, Callable[..., Objective]] = {"contrastive": Contrastive}
