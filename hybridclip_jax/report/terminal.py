"""What a run says on the terminal when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.logs import table
from hybridclip_jax.report.run import at_step, evaluations, labels, shown_step, value_or_why
from hybridclip_jax.report.words import number


def end_table(best: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], workdir: Path | None = None) -> str:
    """AUROC per label and evaluation at the chosen step, why that step, and where the run's files are.

    `best` is best.json (empty where nothing was chosen: the last evaluation is shown), `metrics` the lines of
    metrics.jsonl. Without an AUROC in them only the places are named. `workdir` leads the places where given.
    """
    evals = evaluations(metrics)
    step = shown_step(best, evals)
    said: list[str] = []
    if step is not None:
        chosen = {name: at_step(lines, step) for name, lines in evals.items()}
        names = list(dict.fromkeys(label for lines in evals.values() for label in labels(lines)))
        rows = [[name, *(_cell(line, name) for line in chosen.values())] for name in names]
        rows += [
            [title, *(_cell(line, key) for line in chosen.values())]
            for title, key in (("mean", "mean"), ("mean of the 5 competition labels", "mean5"))
            if any(line and f"auroc/{key}" in line for line in chosen.values())
        ]
        said += [f"AUROC at step {step:,}", table(["label", *evals], rows)]
        for name, line in chosen.items():
            for label in names:
                value, why = value_or_why(line, label)
                if line is not None and value is None and label in labels([line]):
                    said.append(f"{name}: {label} has no AUROC: {why}")
        said.append("")
    said.append(_choice(best))
    place = f"{workdir}/" if workdir is not None else ""
    where = [("report", "report.html"), ("metrics", "metrics.jsonl"), ("checkpoints", "checkpoints/")]
    if best:
        where.insert(0, ("model", "best/"))
    said += [f"{what:<12}{place}{path}" for what, path in where]
    return "\n".join(said)


def _cell(line: Mapping[str, Any] | None, name: str) -> str:
    value, _ = value_or_why(line, name)
    return "n/a" if value is None else f"{value:.3f}"


def _choice(best: Mapping[str, Any]) -> str:
    if not best:
        return "No step was chosen."
    value = number(best.get("value"))
    shown = "" if value is None else f" = {value:.4f}"
    return f"Chosen: step {best.get('step')}, {best.get('metric')}{shown}. {best.get('why') or ''}".rstrip()
