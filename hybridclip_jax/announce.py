"""What a run says before its first step: what trains, on which data, on what machine, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from clu import parameter_overview

from hybridclip_jax import accounting, logs, rundir
from hybridclip_jax.build import Job
from hybridclip_jax.data import audit


def announce(job: Job, meter: accounting.Meter, start: int, work: int) -> None:
    """Prints it. `start`: the step that the run goes on from. `work`: FLOPs of all its steps."""
    print(logs.parameter_table(job.abstract.params, job.model.optimizer.trainable.__contains__))
    stores = {"train": job.store} | {f"eval {name}": e.store for name, e in job.evaluators.items()}
    rows = [[what, store.spec, len(store), len(store.patient_set)] for what, store in stores.items()]
    print("\n" + logs.table(["data", "store", "records", "patients"], rows))
    devices = list(job.mesh.devices.flat)
    mesh = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items())
    print(f"\n{len(devices)} x {devices[0].device_kind}, mesh {mesh}, {job.config.compute.dtype}")
    left = job.config.steps - start
    print(_prediction(left, estimate(meter, work * left / job.config.steps), meter))
    if job.synthetic:
        print("synthetic data: phantoms, not patients; no figure of this run says anything about real images")
    for warning in job.warnings:
        print(f"warning: {warning}")
    if start:
        print(f"resuming at step {start:,}")


def write_files(job: Job, workdir: Path) -> None:
    """parameters.txt, and audit.json without near copies: those take minutes to hours, with `hybridclip doctor`."""
    every = parameter_overview.get_parameter_overview(job.abstract.params, include_stats=False, max_lines=None)
    rundir.write_whole(workdir / "parameters.txt", every + "\n")
    distinct = {(str(store.path.resolve()), store.split): store for store in job.stores}
    rundir.write_json(workdir / "audit.json", audit.examine(list(distinct.values())))


def work(job: Job) -> int:
    """FLOPs of all steps of a run, as far as its first texts tell: each step is as long as they are."""
    widths = [job.stream.batch(i).tokens.shape[1] for i in range(3)]
    return accounting.of_step(job.config, job.model, int(np.median(widths))).total * job.config.steps


def estimate(meter: accounting.Meter, work: float) -> dict[str, float | None]:
    """PF-days of `work` FLOPs, and hours on the devices of `meter`, None where their peak is unknown."""
    hours = accounting.hours(work, meter.peak.flops, meter.devices) if meter.peak.flops else None
    return {"pf_days": accounting.pf_days(work), "hours": hours}


def _prediction(steps: int, expected: Mapping[str, float | None], meter: accounting.Meter) -> str:
    text = f"{steps:,} steps to go, about {expected['pf_days']:.2g} PF-days"
    if expected["hours"] is None:
        return f"{text}; hours unknown: {meter.peak.why}"
    return f"{text}, {expected['hours']:.1f} h at {accounting.ASSUMED_USE:.0%} use of the peak"
