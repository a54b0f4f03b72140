"""The device mesh, the rules that place each array on it, and the way a host batch becomes a global array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybridclip_jax import rules
from hybridclip_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
BATCH = PartitionSpec((DATA, FSDP))
# Below this many elements a parameter is cheaper to hold everywhere than to gather.
SHARD_FROM = 2**16
RULES: tuple[tuple[str, str], ...] = ((".*", "largest"),)


def make_mesh(data: int, fsdp: int, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ("data", "fsdp") mesh. `data` = 0 takes all devices left over by `fsdp`.

    Raises UserError when the mesh wants more devices than there are, or the batch does not divide among them.
    """
    devices = list(devices if devices is not None else jax.devices())
    if data == 0:
        if len(devices) % fsdp:
            raise UserError(f"mesh.fsdp = {fsdp} does not divide the {len(devices)} devices")
        data = len(devices) // fsdp
    count = data * fsdp
    if count > len(devices):
        raise UserError(f"mesh.data x mesh.fsdp = {count}, but there are {len(devices)} devices")
    if batch_size % count:
        fitting = ", ".join(str(n) for n in range(1, len(devices) + 1) if batch_size % n == 0)
        raise UserError(
            f"batch_size = {batch_size} does not divide among {count} devices: use a multiple of {count}, "
            f"or set mesh.data so that mesh.data x mesh.fsdp is one of {fitting}"
        )
    grid = np.asarray(devices[:count]).reshape(data, fsdp)
    # Auto: the compiler propagates shardings; Explicit axes would demand a reshard at every product.
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over every device."""
    return NamedSharding(mesh, BATCH)


def _largest(shape: Sequence[int], size: int) -> PartitionSpec:
    fitting = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or math.prod(shape) < SHARD_FROM or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, FSDP)


def of_params(params: dict[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """name -> placement: the largest axis that `fsdp` divides, or everywhere when the array is small."""
    matched = rules.match(RULES, params, what="sharding rules")
    size = mesh.shape[FSDP]
    return {
        name: NamedSharding(mesh, _largest(params[name].shape, size) if rule == "largest" else PartitionSpec())
        for name, rule in matched.items()
    }


def of_tree(tree: Any, params: dict[str, NamedSharding], shapes: dict[str, Any], mesh: Mesh) -> Any:
    """Placement of any state tree: a leaf stored under a parameter's name with its shape lies where that does."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for entry in reversed(path):
            name = getattr(entry, "key", None)
            if name in params and shapes[name].shape == leaf.shape:
                return params[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def to_global(values: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays, leading axis the batch, as arrays sharded over the mesh. The copy runs while the device works."""
    return jax.device_put(values, batch(mesh))
