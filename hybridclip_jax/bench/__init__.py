"""Benchmarks by name. A machine that only measures may lack most requirements, so this imports little."""

from __future__ import annotations

from hybridclip_jax.bench import host
from hybridclip_jax.bench.runner import Bench

BENCHES: dict[str, Bench] = {"host": host.BENCH}
