"""What a run says before its first step: what trains, on which data, on what machine, for how long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from clu import parameter_overview

from hybridclip_jax import accounting, flops, logs, rundir
from hybridclip_jax.build import Job
from hybridclip_jax.data import audit


def announce(job: Job, meter: accounting.Meter, start: int) -> None:
    """Prints it. `start`: the step that the run goes on from."""
    print(logs.parameter_table(job.abstract.params, job.model.optimizer.trainable.__contains__))
    stores = {"train": job.store} | {f"eval {name}": e.store for name, e in job.evaluators.items()}
    rows = [[what, store.spec, len(store), len(store.patient_set)] for what, store in stores.items()]
    print("\n" + logs.table(["data", "store", "records", "patients"], rows))
    devices = list(job.mesh.devices.flat)
    mesh = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items())
    print(f"\n{len(devices)} x {devices[0].device_kind}, mesh {mesh}, {job.config.compute.dtype}")
    print(_prediction(job, meter, start, len(devices)))
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


def _prediction(job: Job, meter: accounting.Meter, start: int, devices: int) -> str:
    widths = [job.stream.batch(start + i).tokens.shape[1] for i in range(3)]
    left = job.config.steps - start
    work = flops.of_step(job.config, job.model, int(np.median(widths))).total * left
    text = f"{left:,} steps to go, about {accounting.pf_days(work):.2g} PF-days"
    if meter.peak.flops:
        hours = accounting.hours(work, meter.peak.flops, devices)
        return f"{text}, {hours:.1f} h at {accounting.ASSUMED_USE:.0%} use of the peak"
    return f"{text}; hours unknown: {meter.peak.why}"
