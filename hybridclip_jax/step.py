"""One jitted, donated, sharded training step. B batch, S image side, C channels, T tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hybridclip_jax import optim, sharding
from hybridclip_jax.objectives import Objective
from hybridclip_jax.optim import Optimizer
from hybridclip_jax.state import Params, Static, TrainState, bind

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [B, S, S, 1 or 3] -> float32 [B, S, S, 3]: (x / 255 - mean) / std, grey repeated three times."""
    x = images.astype(jnp.float32) / 255.0
    return (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def init_state(init: Callable[[], tuple[Params, Params]], objective: Objective, optimizer: Optimizer) -> TrainState:
    """The state before step 0 from the (params, stats) of `init`. Traceable: each array is made where it will live."""
    params, stats = init()
    trained, _ = optim.partition(params, optimizer.trainable)
    aux = {"objective": objective.init_aux(params), "nonfinite": jnp.zeros((2,), jnp.int32)}
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.transform.init(trained), aux)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of an (abstract) state lives; the momentum lies like its parameter."""
    placed = sharding.of_params(state.params, mesh)
    return sharding.of_tree(state, placed, state.params, mesh)


def _norms_by_tower(grads: Params) -> dict[str, jax.Array]:
    towers: dict[str, Params] = {}
    for name, grad in grads.items():
        towers.setdefault(name.split("/")[0], {})[name] = grad
    return {f"grad_norm/{tower}": optim.global_norm(part) for tower, part in towers.items()}


def _keep_if(finite: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def _count_nonfinite(counts: jax.Array, finite: jax.Array) -> jax.Array:
    """[total, in a row] after one more step."""
    total, streak = counts
    return jnp.stack([total + ~finite, jnp.where(finite, 0, streak + 1)])


def make_step(
    static: Static,
    objective: Objective,
    optimizer: Optimizer,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    placement: TrainState,
    mesh: Mesh,
) -> Step:
    """(state, {"image": uint8 [B, S, S, C], "tokens": int32 [B, T]}) -> (state, metrics); the old state is donated.

    A step whose loss, gradients or update are not finite leaves parameters, optimiser and objective as they were and is
    counted in `aux["nonfinite"]` = [total, in a row]; the metric `nonfinite` carries the same two numbers.
    """

    def loss_of(
        trained: Params, frozen: Params, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        bound = lambda params: bind(static, params, state.stats)  # noqa: E731  # the protocol passes a function
        return objective.loss(bound, {**frozen, **trained}, state.aux["objective"], batch, key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trained, frozen = optim.partition(state.params, optimizer.trainable)
        batch = {**batch, "image": normalise(batch["image"], mean, std)}
        (loss, (aux, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, frozen, state, batch, key)
        norm = optim.global_norm(grads)
        updates, opt = optimizer.transform.update(grads, state.opt, trained)
        # The update too: a finite gradient times a large rate would leave parameters that no later step can mend.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optim.global_norm(updates))
        params, aux = objective.after_update({**frozen, **optax.apply_updates(trained, updates)}, aux)
        params, opt, aux = _keep_if(finite, (params, opt, aux), (state.params, state.opt, state.aux["objective"]))
        nonfinite = _count_nonfinite(state.aux["nonfinite"], finite)
        metrics = {
            "loss": loss,
            **metrics,
            "logit_scale": state.params["logit_scale"],
            # The optimiser counts the updates it made: a skipped step does not move its schedule.
            "learning_rate": jnp.asarray(optimizer.schedule(state.step - state.aux["nonfinite"][0]), jnp.float32),
            "grad_norm": norm,
            **_norms_by_tower(grads),
            "nonfinite": nonfinite,
        }
        aux = {"objective": aux, "nonfinite": nonfinite}
        return TrainState(state.step + 1, params, state.stats, opt, aux), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placement, sharding.batch(mesh)),
        out_shardings=(placement, sharding.replicated(mesh)),
    )
