"""What the tests of the towers share: torch references that hide nothing, and every intermediate value of ours.

Ordinary initialisation hides what is wrong: with it a port that swaps the rotary axes keeps a CLS cosine of
0.99997. So nothing here is left at 0 or 1 ("mild"), and attention is made peaked besides ("stress").
"""

# B batch, H W image sides

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
from flax import nnx

from hybridclip_jax import models, state
from hybridclip_jax.models import layers

TOLERANCE = {"mild": 2e-5, "stress": 5e-4}

Flat = dict[str, np.ndarray]


def mild_std(width: int) -> float:
    """B/16's 0.02 at width 768 gives projections of this size; so does this value at another width."""
    return 0.02 * math.sqrt(768 / width)


STRESSED = ("v_proj", "o_proj", "out_proj", "mlp", "patch_embedding")


def randomise(model: torch.nn.Module, init: str, std: float) -> None:
    """`mild`: norms, biases, LayerScale and tokens away from 0 and 1; `stress`: peaked attention besides."""
    draw = torch.Generator().manual_seed(0)

    def noise(value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=draw)

    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.1 * noise(value))
            elif name.endswith("bias"):
                value.copy_(0.1 * noise(value))
            elif "layer_scale" in name:
                value.copy_(1 + 0.2 * noise(value))
            elif name.endswith(("_token", "_tokens", "class_embedding")):
                value.copy_(0.5 * noise(value))
            else:
                value.copy_(std * noise(value))
            if init == "stress" and name.endswith("weight"):
                if "q_proj" in name or "k_proj" in name:
                    value.mul_(6)
                elif any(part in name for part in STRESSED):
                    value.mul_(2)


# --- their weights under our names: written here, not taken from the converters, so each checks the other


def linear(ours: str, theirs: str, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {f"{ours}/kernel": source.pop(f"{theirs}.weight").T}
    if f"{theirs}.bias" in source:
        found[f"{ours}/bias"] = source.pop(f"{theirs}.bias")
    return found


def norm(ours: str, theirs: str, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{ours}/scale": source.pop(f"{theirs}.weight"), f"{ours}/bias": source.pop(f"{theirs}.bias")}


def conv(ours: str, theirs: str, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{ours}/kernel": source.pop(f"{theirs}.weight").permute(2, 3, 1, 0)}


def clip_blocks(depth: int, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The blocks of either of transformers' CLIP towers."""
    found = {}
    for i in range(depth):
        ours, theirs = f"blocks/{i}", f"encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            found |= linear(f"{ours}/attn/{part}", f"{theirs}.self_attn.{part}_proj", source)
        for n in (1, 2):
            found |= linear(f"{ours}/mlp/fc{n}", f"{theirs}.mlp.fc{n}", source)
            found |= norm(f"{ours}/norm{n}", f"{theirs}.layer_norm{n}", source)
    return found


def arrays(found: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> Flat:
    """`found` as numpy; nothing of `source` may be left."""
    assert not source, f"unused: {sorted(source)}"
    return {name: value.numpy() for name, value in found.items()}


# --- one tower's intermediate values


def images(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype(np.float32)


def towers(make: Callable[[], nnx.Module]) -> Callable[[Flat, Any], list[jax.Array]]:
    """The jitted function (arrays, input) -> every intermediate value of the tower that `make` builds.

    [embedding, after each block, tokens, pooled].
    """
    static, shapes, stats = state.abstract(make)

    @jax.jit
    def outputs(arrays: Any, values: Any) -> list[jax.Array]:
        found: list[jax.Array] = []

        def recorded(block: Any, x: Any, *args: Any, remat: bool) -> Any:
            found.extend([x] if not found else [])
            found.append(block(x, *args))
            return found[-1]

        # Of the one forward pass, not of blocks called one by one: that would be another tower, and twice the work.
        with mock.patch.object(layers, "run_block", recorded):
            whole = state.bind(static, arrays)(values)
        return [*found, whole.tokens, whole.pooled]

    def run(arrays: Flat, values: Any) -> list[jax.Array]:
        wanted = {name: leaf.shape for name, leaf in {**shapes, **stats}.items()}
        assert {name: value.shape for name, value in arrays.items()} == wanted
        return outputs(arrays, values)

    return run


def fresh(make: Any, config: Any) -> Callable[..., Any]:
    """A cached builder's result compiled anew: a mistake put into the modules has to go round the cache."""
    return make.__wrapped__(config)


def worst(ours: list[Any], theirs: list[np.ndarray]) -> list[float]:
    """The largest difference of each value."""
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    return [float(np.max(np.abs(np.asarray(a, np.float64) - b))) for a, b in zip(ours, theirs, strict=True)]


def count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in shapes.values())


def double() -> models.Numerics:
    return models.Numerics(jax.numpy.dtype("float64"))
