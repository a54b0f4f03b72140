"""One full-size step of the recipe, with random weights and a batch of 2."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from hybridclip_jax import build, config, sharding

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_full_size_step_runs(phantom_store: Path) -> None:
    overrides = {
        "batch_size": 2,
        "mesh.data": 1,
        "data.train": f"{phantom_store}:train",
        "evals.external.data": f"{phantom_store}:val",
    }
    loaded = config.load(str(ROOT / "configs/hybrid_cxr.py"), [f"--config.{k}={v}" for k, v in overrides.items()])
    job = build.job(loaded)
    assert sum(math.prod(leaf.shape) for leaf in job.abstract.params.values()) == 149_703_681
    state = build.fresh_state(job)
    before = np.asarray(state.params["image/blocks/0/attn/q/kernel"])
    batch = job.stream.batch(0)
    state, metrics = job.step(state, sharding.to_global({"image": batch.image, "tokens": batch.tokens}, job.mesh))
    metrics = jax.device_get(metrics)
    assert metrics["nonfinite"].tolist() == [0, 0]
    assert 0 < float(metrics["loss"]) < 10
    assert float(metrics["grad_norm/image"]) > 0 and float(metrics["grad_norm/text"]) > 0
    assert not np.array_equal(before, np.asarray(state.params["image/blocks/0/attn/q/kernel"]))
