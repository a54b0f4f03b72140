"""What a run will cost, from its config alone: tables of parameters, FLOPs, memory, capacity and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from hybridclip_jax import accounting, build, optim, peaks, sharding, state
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import duration, table, tower_counts

# Without a count: one device, and the eight of a usual node.
_COUNTS = (1, 8)


def render(config: Any, *, device: str | None, devices: int | None, use: float | None) -> str:
    """The tables as plain text. No data is read and no device is touched.

    `device` is a name of the table of peaks, a device_kind of jax, "unknown", or None for the whole table;
    `devices` None means 1 (and 8, over the whole table); `use` is a share of the peak beside the usual 0.33.
    Raises UserError for a device that is not in the table, or a number of devices that the run cannot use.
    """
    kinds = [_known(device)] if device else [entry.name for entry in peaks.DEVICES]
    counts = (devices,) if devices else ((1,) if device else _COUNTS)
    uses = (accounting.ASSUMED_USE, *([use] if use else []))
    config = _on_any_machine(config)
    model = build.model(config)
    flops = step_flops(config, model)
    tokens = model.spec.text_arch.context
    pairs, size = f"{config.steps:,} steps of {config.batch_size} pairs", config.data.image_size
    parts = [
        f"{pairs}, {size} px, {tokens} text tokens",
        parameters_table(model),
        work_table(flops, config.steps)
        + "\nmatrix products only, multiply-add = 2, causal attention half, frozen parts as computed;"
        + f"\nevaluation not included; batches trimmed below {tokens} text tokens cost less",
        memory_table(config, model, devices),
        device_table(kinds, counts, config.compute.dtype, flops.total * config.steps, uses),
    ]
    return "\n\n".join(parts)


def _known(name: str) -> str:
    if name != "unknown" and peaks.find_device(name) is None:
        known = ", ".join([*(device.name for device in peaks.DEVICES), "unknown"])
        raise UserError(f"--device {name}: not in the table of peaks; one of {known}")
    return name


def step_flops(config: Any, model: build.Model) -> accounting.StepFlops:
    """FLOPs of one step whose texts fill the context."""
    return accounting.of_step(config, model, model.spec.text_arch.context)


def parameters_table(model: build.Model) -> str:
    """Parameters of each part and how many of them train."""
    counts = tower_counts(model.shapes, model.optimizer.trainable.__contains__)
    totals = {kind: sum(count[kind] for count in counts.values()) for kind in ("count", "trainable")}
    rows = [[name, *map(_millions, count.values())] for name, count in {**counts, "total": totals}.items()]
    return table(["parameters", "count", "trained"], rows)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def work_table(flops: accounting.StepFlops, steps: int) -> str:
    rows = []
    for name, step in (("forward", flops.forward), ("forward and backward", flops.total)):
        whole = step * steps
        rows.append([name, f"{step / 1e12:#.4g} TFLOP", f"{whole:.3g}", f"{accounting.pf_days(whole):#.3g}"])
    return table(["work", "a step", "FLOPs in all", "PF-days in all"], rows)


def memory_table(config: Any, model: build.Model, devices: int | None) -> str:
    """What one device holds; `devices` None is the fewest that the config's mesh allows."""
    devices = devices or max(config.mesh.data, 1) * config.mesh.fsdp
    held = state_bytes(config, model, devices)
    held["together"] = sum(held.values())
    held["activations, an estimate before fusion"] = activation_bytes(config, model, devices)
    rows = [[name, f"{size / 1e9:.2f} GB"] for name, size in held.items()]
    return table([f"memory of one device of {devices}", "size"], rows)


def state_bytes(config: Any, model: build.Model, devices: int) -> dict[str, float]:
    """Bytes of parameters, gradients and optimiser state on each of `devices`, placed as the run would.

    Raises UserError where the config's mesh or batch does not divide among them.
    """
    data, fsdp = config.mesh.data, config.mesh.fsdp
    if devices % fsdp or (data and data * fsdp != devices):
        raise UserError(f"--devices {devices}: the config's mesh asks for {data or 'any'} x {fsdp} devices")
    if config.batch_size % devices:
        raise UserError(f"--devices {devices}: batch_size = {config.batch_size} does not divide among them")
    mesh: Any = AbstractMesh((devices // fsdp, fsdp), (sharding.DATA, sharding.FSDP))
    trained, _ = optim.partition(model.shapes, model.optimizer.trainable)
    opt = jax.eval_shape(model.optimizer.transform.init, trained)
    placed = sharding.of_params(model.shapes, mesh)
    return {
        "parameters": _bytes(model.shapes, placed),
        "gradients": _bytes(trained, {name: placed[name] for name in trained}),
        "optimiser state": _bytes(opt, sharding.of_tree(opt, placed, model.shapes, mesh)),
    }


def _bytes(tree: Any, placement: Any) -> int:
    """Bytes of one device's shards."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(placement), strict=True)
    return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in pairs)


def activation_bytes(config: Any, model: build.Model, devices: int) -> float:
    """Bytes that one device keeps between the forward and the backward pass of `model`, built from `config`.

    Counted from what JAX's differentiation of the loss saves for what trains, before XLA fuses anything: the
    CPU compiler comes within 2 % of it, a GPU's should keep less. With remat one block at a time is whole
    again during the backward pass: its share, all blocks taken as equal, is added.
    """
    if not config.compute.remat:
        return _saved_bytes(config, model, devices)
    whole = build.model(_without_remat(config))
    blocks = model.spec.image_arch.depth + model.spec.text_arch.depth
    kept = _saved_bytes(config, model, devices)
    return kept + (_saved_bytes(config, whole, devices) - kept) / blocks


def _without_remat(config: Any) -> Any:
    copy = config.copy_and_resolve_references()
    copy.compute.remat = False
    return copy


def _on_any_machine(config: Any) -> Any:
    """With the attention that every machine can trace; cudnn's asks for the GPU as it is traced."""
    copy = config.copy_and_resolve_references()
    copy.compute.attention = "xla"
    return copy


def _saved_bytes(config: Any, model: build.Model, devices: int) -> int:
    trained, frozen = optim.partition(model.arrays, model.optimizer.trainable)
    batch, side = config.batch_size // devices, config.data.image_size
    inputs = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((batch, model.spec.text_arch.context), jnp.int32),
    }

    def saved(trained: state.Params, frozen: state.Params, inputs: dict[str, jax.Array]) -> Any:
        def loss(trained: state.Params) -> jax.Array:
            aux = model.objective.init_aux({**frozen, **trained})
            bound = lambda params: state.bind(model.static, params)  # noqa: E731  # the protocol passes a function
            return model.objective.loss(bound, {**frozen, **trained}, aux, inputs, jax.random.key(0))[0]

        return jax.vjp(loss, trained)[1]

    # Parameters saved as they are are the run's own, already counted.
    own = {(leaf.shape, leaf.dtype) for leaf in model.arrays.values()}
    leaves = jax.tree.leaves(jax.eval_shape(saved, trained, frozen, inputs))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves if (x.shape, x.dtype) not in own)


def device_table(kinds: Sequence[str], counts: Sequence[int], dtype: str, flops: float, uses: Sequence[float]) -> str:
    """Capacity of `counts` devices of each kind in PF-days a day, and the hours that `flops` take on them."""
    rows = []
    for kind in kinds:
        peak = peaks.peak(kind, dtype)
        if peak.flops is None and peaks.peak(kind, "float32").flops is not None:
            # A run in a format that the device lacks is refused at its start; float32 is what remains.
            peak = peaks.peak(kind, "float32")
            peak = peaks.Peak(peak.flops, f"{peak.why} (has no {dtype})")
        for count in counts:
            rows.append([f"{count} x {kind}", *_device_row(peak, count, flops, uses)])
    headers = ["device", "computes in", "PF-days a day", *(f"time at {use:.0%} use" for use in uses)]
    return table(headers, rows)


def _device_row(peak: peaks.Peak, count: int, flops: float, uses: Sequence[float]) -> list[str]:
    if peak.flops is None:
        return [peak.why, "-", *("-" for _ in uses)]
    times = [duration(3600 * accounting.hours(flops, peak.flops, count, use)) for use in uses]
    return [peak.why, f"{peak.flops * count / 1e15:.4f}", *times]
