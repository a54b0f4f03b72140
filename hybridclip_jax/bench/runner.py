"""Measures two arms of a benchmark in turn, A-B-A-B, each time in a process of its own.

A machine's speed drifts with its load and heat by more than most changes matter, so only ratios of neighbours
are worth quoting. Each process prints one JSON object of numbers as its last line; the runner adds what tells
noise from news: CPU seconds per wall second, and the load before the process began.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import RunStopped
from hybridclip_jax.logs import table

# Versions that decide what was measured, where installed.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "pillow", "torch")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Two arms and what one measurement is.

    `prepare(folder)` makes once what both arms read; `measure(arm, folder, seconds)`, called in a process of
    its own, measures for about `seconds` and returns numbers by name. Ratios are of the second arm to the
    first.
    """

    name: str
    help: str
    arms: tuple[str, str]
    prepare: Callable[[Path], None]
    measure: Callable[[str, Path, float], dict[str, float]]


def own_process(bench: Bench, arm: str, folder: Path, seconds: float) -> list[str]:
    """The command of one measurement, with this interpreter: `python -m hybridclip_jax.bench`."""
    return [sys.executable, "-m", "hybridclip_jax.bench", bench.name, arm, str(folder), str(seconds)]


def run(
    bench: Bench,
    *,
    rounds: int,
    seconds: float,
    note: Callable[[str], None] = lambda text: None,
    command: Callable[[Bench, str, Path, float], Sequence[str]] = own_process,
) -> dict[str, Any]:
    """Runs `rounds` times A then B. Returns samples, summaries and ratios, all plain values for JSON.

    A ratio's `median` is the ratio of the medians; its `min` and `max` are over the rounds, each pairing an A
    with the B that followed it. Raises RunStopped when a process fails or prints no measurement.
    """
    samples = []
    with tempfile.TemporaryDirectory(prefix="hybridclip-bench-") as scratch:
        bench.prepare(Path(scratch))
        for turn in range(rounds):
            for arm in bench.arms:
                note(f"{bench.name}: round {turn + 1} of {rounds}, {arm}")
                sample = _measure(bench.name, arm, command(bench, arm, Path(scratch), seconds))
                samples.append({"round": turn + 1, "arm": arm, **sample})
    names = [name for name in samples[0]["values"] if all(name in sample["values"] for sample in samples)]
    return {
        "bench": bench.name,
        "arms": list(bench.arms),
        "rounds": rounds,
        "summary": {name: {arm: _spread(_of(samples, arm, name)) for arm in bench.arms} for name in names},
        "ratio": {name: _ratio(*(_of(samples, arm, name) for arm in bench.arms)) for name in names},
        "samples": samples,
        "machine": machine(),
    }


def _measure(bench: str, arm: str, command: Sequence[str]) -> dict[str, Any]:
    load = os.getloadavg()[0]
    before, began = _children_cpu(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, cpu = time.perf_counter() - began, _children_cpu() - before
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunStopped(f"bench {bench}: {arm} ended with code {done.returncode}: {said}")
    try:
        values = json.loads(done.stdout.strip().splitlines()[-1])
        values = {name: float(value) for name, value in values.items()}
    except (IndexError, ValueError, AttributeError, TypeError):
        raise RunStopped(f"bench {bench}: {arm} printed no measurement as its last line") from None
    return {"values": values, "wall_s": wall, "cpu_s": cpu, "cpu_per_wall": cpu / wall, "load_before": load}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _of(samples: Sequence[dict[str, Any]], arm: str, name: str) -> list[float]:
    return [sample["values"][name] for sample in samples if sample["arm"] == arm]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    base = statistics.median(first)
    if not base or not all(first):
        return {"median": None, "min": None, "max": None}
    pairs = [b / a for a, b in zip(first, second, strict=True)]
    return {"median": statistics.median(second) / base, "min": min(pairs), "max": max(pairs)}


def machine() -> dict[str, Any]:
    """What a reader needs to compare two results: system, processor, cores, versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def render(result: dict[str, Any]) -> str:
    """The result as plain text: one row a measured value, then what the noise was."""
    first, second = result["arms"]
    rows = [
        [name, _range(arms[first]), _range(arms[second]), _range(result["ratio"][name])]
        for name, arms in result["summary"].items()
    ]
    headers = ["median (min to max)", first, second, f"{second} / {first}"]
    samples, cores = result["samples"], result["machine"]["cores"]
    busy = _range(_spread([sample["cpu_per_wall"] for sample in samples]))
    load = _range(_spread([sample["load_before"] for sample in samples]))
    noise = f"{result['rounds']} rounds on {cores} cores; CPU per wall second {busy}; load before {load}"
    return table(headers, rows) + "\n" + noise


def _range(spread: Mapping[str, float | None]) -> str:
    low, mid, high = (spread[name] for name in ("min", "median", "max"))
    return "-" if mid is None else f"{_short(mid)} ({_short(low)} to {_short(high)})"


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
