"""summary.json: what a run was, how far it came, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybridclip_jax import accounting, logs, versions
from hybridclip_jax.build import Job
from hybridclip_jax.data.store import Store, parse_spec


def body(
    job: Job,
    meter: accounting.Meter,
    lines: Sequence[Mapping[str, Any]],
    *,
    step: int,
    finished: bool,
    stopped: str | None,
    stopped_early: str | None,
    best: Mapping[str, Any] | None,
    estimate: Mapping[str, float | None],
    command: str,
) -> dict[str, Any]:
    """`lines` of metrics.jsonl. `stopped`: why the run could not go on; `stopped_early`: why it did not need to.
    `estimate`: PF-days and hours that the whole run was expected to take.
    """
    rates = [line["pairs_per_s"] for line in lines if line["split"] == "train" and line.get("pairs_per_s")]
    devices = list(job.mesh.devices.flat)
    return {
        "step": step,
        "steps": job.config.steps,
        "finished": finished,
        "exit": stopped,
        "stopped_early": stopped_early,
        "wall_s": lines[-1]["wall_s"] if lines else 0.0,
        "pairs_per_s": float(np.median(rates)) if rates else None,
        **meter.summary(),
        "estimate": estimate,
        "parameters": logs.tower_counts(job.abstract.params, job.model.optimizer.trainable.__contains__),
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "mesh": dict(job.mesh.shape)},
        "data": {
            "train": _of_store(job.store),
            "evals": {name: _of_store(evaluator.store) for name, evaluator in job.evaluators.items()},
        },
        "evaluations": evaluations(job),
        "versions": versions.installed(),
        "command": command,
        "synthetic": job.synthetic,
        "warnings": list(job.warnings),
        "best": best,
    }


def evaluations(job: Job) -> dict[str, dict[str, Any]]:
    """What each evaluation measures on what, with the notes of its protocol and of this run."""
    described = {name: evaluator.describe() for name, evaluator in job.evaluators.items()}
    return {name: {**one, "notes": [*one["notes"], *job.notes[name]]} for name, one in described.items()}


def eval_share(meter: accounting.Meter) -> str:
    """What evaluation cost, in a sentence; empty where nothing was evaluated."""
    share = meter.summary()["eval_share"]
    if not share["flops"]:
        return ""
    return f"Evaluation took {share['flops']:.2%} of the run's FLOPs and {share['wall']:.1%} of its wall time."


def _of_store(store: Store) -> dict[str, Any]:
    return {
        "spec": store.spec,
        # where a relative spec was opened: elsewhere it may name another store
        "path": str(parse_spec(store.spec)[0].resolve()),
        "records": len(store),
        "patients": len(store.patient_set),
        "synthetic": store.synthetic,
        "fingerprint": store.fingerprint,
        "namespace": store.namespace,
        "split": store.split,
    }
