"""Evaluators by protocol name. A new protocol is one new file and one line here."""

from __future__ import annotations

from hybridclip_jax.evals.candidate_loss import CandidateLoss
from hybridclip_jax.evals.chexpert5x200 import ChexpertCxrClip, ChexpertGloria
from hybridclip_jax.evals.chexzero_compat import CheXZeroCompat
from hybridclip_jax.evals.evaluator import COMMON, Evaluator, Field, Preparation
from hybridclip_jax.evals.limits import Limits
from hybridclip_jax.evals.linear_probe import LinearProbe
from hybridclip_jax.evals.plip_linear import PlipLinear
from hybridclip_jax.evals.plip_zero_shot import PlipZeroShot
from hybridclip_jax.evals.retrieval import ByIndex, MultiPositive, UniqueText
from hybridclip_jax.evals.zero_shot import ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
    "chexzero": ZeroShot,
    "chexzero-compat": CheXZeroCompat,
    "limits": Limits,
    "linear-probe": LinearProbe,
    "loss": CandidateLoss,
    "plip-linear": PlipLinear,
    "retrieval-index": ByIndex,
    "retrieval-multi-positive": MultiPositive,
    "retrieval-unique-text": UniqueText,
    "chexpert5x200-gloria": ChexpertGloria,
    "chexpert5x200-cxrclip": ChexpertCxrClip,
    "plip-zeroshot": PlipZeroShot,
}

__all__ = ["COMMON", "EVALUATORS", "Evaluator", "Field", "Preparation"]
