"""Evaluators by protocol name. A new protocol is one new file and one line here."""

from __future__ import annotations

from hybridclip_jax.evals.evaluator import COMMON, Evaluator, Field, Preparation
from hybridclip_jax.evals.zero_shot import ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
    "chexzero": ZeroShot,
}

__all__ = ["COMMON", "EVALUATORS", "Evaluator", "Field", "Preparation"]
