"""Config -> optax: optimiser, schedule, and the regex groups that set learning rates, decay and what is frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from hybridclip_jax import rules
from hybridclip_jax.errors import UserError
from hybridclip_jax.state import Params

_Parts = list[optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`transform` sees the trainable parameters alone; `schedule` gives the learning rate of a 0-based step."""

    transform: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    trainable: frozenset[str]


def _groups(config: Any, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    table = [(pattern, (float(rate), float(decay))) for pattern, rate, decay in config.optim.groups]
    return rules.match(table, names, what="optim.groups")


def trainable(config: Any, names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a parameter's gradient is taken at all, by name."""
    on = {name for name, (rate, _) in _groups(config, names).items() if rate > 0}
    return on.__contains__


def schedule(config: Any) -> Callable[[Any], Any]:
    """step -> learning rate: linear warm-up from 0, then constant or cosine to 0 at `steps`."""
    peak, warmup = config.optim.learning_rate, config.optim.warmup_steps
    if config.optim.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.steps, warmup + 1))
    if warmup:
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak)], [warmup])
    return optax.constant_schedule(peak)


def _scale_each(factors: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: {name: factors[name] * update for name, update in updates.items()})


def _sgd(momentum: float, decay: _Parts) -> _Parts:
    """As torch.optim.SGD: the decay joins the gradient before the momentum, no Nesterov."""
    return [*decay, optax.trace(decay=momentum)]


def _adamw(momentum: float, decay: _Parts) -> _Parts:
    """Adam with the decay decoupled (Loshchilov and Hutter, 2019)."""
    return [optax.scale_by_adam(b1=momentum, b2=0.999), *decay]


def _lion(momentum: float, decay: _Parts) -> _Parts:
    """Sign of a momentum, decay decoupled (Chen et al., 2023). Wants about a tenth of adamw's learning rate."""
    return [optax.scale_by_lion(b1=momentum, b2=0.99), *decay]


# `optim.momentum` is the share of the past in each one's step; Lion's own average keeps 0.99.
OPTIMIZERS: dict[str, Callable[[float, _Parts], _Parts]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lion": _lion,
}


def make(config: Any, names: Iterable[str]) -> Optimizer:
    """The optimiser of `config.optim` for the parameters called `names`.

    Raises UserError for a table of groups that is wrong or freezes everything.
    """
    groups = {name: group for name, group in _groups(config, names).items() if group[0] > 0}
    if not groups:
        raise UserError("optim.groups freezes every parameter; give one of them a learning-rate factor above 0")
    rate = schedule(config)
    parts = OPTIMIZERS[config.optim.name](config.optim.momentum, _decay(config.optim.weight_decay, groups))
    if any(factor != 1.0 for factor, _ in groups.values()):
        parts.append(_scale_each({name: factor for name, (factor, _) in groups.items()}))
    parts.append(optax.scale_by_learning_rate(rate))
    return Optimizer(optax.chain(*parts), rate, frozenset(groups))


def _decay(weight_decay: float, groups: dict[str, tuple[float, float]]) -> _Parts:
    factors = {name: weight_decay * decay for name, (_, decay) in groups.items()}
    if not any(factors.values()):
        return []

    def add(updates: Params, params: Params | None) -> Params:
        assert params is not None
        return {name: update + factors[name] * params[name] for name, update in updates.items()}

    return [optax.stateless(add)]


def partition(params: Params, names: frozenset[str]) -> tuple[Params, Params]:
    """(the parameters in `names`, the others)."""
    return (
        {name: value for name, value in params.items() if name in names},
        {name: value for name, value in params.items() if name not in names},
    )


def global_norm(tree: Any) -> jax.Array:
    return optax.tree.norm(tree)
