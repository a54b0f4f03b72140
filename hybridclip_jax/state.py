"""The training state, and the two functions that leave NNX and come back to it.

Everything outside `models/` sees parameters as one flat dict keyed `image/blocks/0/attn/q/kernel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds. `stats` are non-trained values (batch statistics), `aux` the objective's own state."""

    step: jax.Array
    params: Params
    stats: Params
    opt: Any
    aux: Any

    @property
    def arrays(self) -> Params:
        """What computes, and what a model folder holds: parameters and statistics in one dict; no two share a name."""
        return {**self.params, **self.stats}


@dataclasses.dataclass(frozen=True)
class Static:
    """A module without its arrays: the graph, and the path behind each flat name."""

    graph: Any
    params: Mapping[str, tuple[Any, ...]]
    stats: Mapping[str, tuple[Any, ...]]


def split(module: nnx.Module) -> tuple[Static, Params, Params]:
    """module -> (static, params, stats); arrays may be abstract."""
    graph, *parts = nnx.split(module, nnx.Param, ...)
    (param_paths, param_values), (stat_paths, stat_values) = map(_flat, parts)
    return Static(graph, param_paths, stat_paths), param_values, stat_values


def _flat(part: Any) -> tuple[dict[str, tuple[Any, ...]], Params]:
    named = {"/".join(map(str, path)): (path, leaf.get_value()) for path, leaf in nnx.to_flat_state(part)}
    return {name: path for name, (path, _) in named.items()}, {name: value for name, (_, value) in named.items()}


def bind(static: Static, params: Params, stats: Params | None = None) -> Any:
    """The module that computes with these arrays. Inverse of `split`. Without `stats`, `params` holds them too."""
    held = params if stats is None else {**params, **stats}
    flat = [(path, held[name]) for name, path in (*static.params.items(), *static.stats.items())]
    return nnx.merge(static.graph, nnx.from_flat_state(flat))


def abstract(build: Callable[[], nnx.Module]) -> tuple[Static, Params, Params]:
    """`split` of the module that `build` would make, as shapes only: nothing is allocated."""
    module = nnx.eval_shape(build)
    return split(module)
