"""Evaluators by protocol name. A new protocol is one new file and one line in this table."""

from __future__ import annotations

from hybridclip_jax.evals.zero_shot import ZeroShot

EVALUATORS = {
    "chexzero": ZeroShot,
}
