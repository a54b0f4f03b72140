"""What a run says on the terminal when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.logs import table
from hybridclip_jax.report.run import at_step, evaluations, labels, shown_step, value_or_why
from hybridclip_jax.report.values import SUMMARIES, headline, read
from hybridclip_jax.report.words import decimal, interval, number


def end_table(best: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], workdir: Path | None = None) -> str:
    """The evaluations at the chosen step, why that step, and where the run's files are.

    `best` is best.json (empty where nothing was chosen: the last evaluation is shown), `metrics` the lines of
    metrics.jsonl. Without an evaluation in them only the places are named. `workdir` leads the places where given.
    """
    evals = evaluations(metrics)
    step = shown_step(best, evals)
    said: list[str] = []
    if step is not None:
        chosen = {name: at_step(lines, step) for name, lines in evals.items()}
        with_labels = {name: line for name, line in chosen.items() if labels(evals[name])}
        if with_labels:
            said += _auroc_table(step, with_labels, evals)
        said += [
            f"{name} at step {step:,}: {_headline(line)}" for name, line in chosen.items() if not labels(evals[name])
        ]
        said.append("")
    said.append(_choice(best))
    place = f"{workdir}/" if workdir is not None else ""
    where = [("report", "report.html"), ("metrics", "metrics.jsonl"), ("checkpoints", "checkpoints/")]
    if best:
        where.insert(0, ("model", "best/"))
    said += [f"{what:<12}{place}{path}" for what, path in where]
    return "\n".join(said)


def _auroc_table(
    step: int, chosen: Mapping[str, Mapping[str, Any] | None], evals: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    names = list(dict.fromkeys(label for name in chosen for label in labels(evals[name])))
    rows = [[name, *(_cell(line, name) for line in chosen.values())] for name in names]
    rows += [
        [title, *(_cell(line, key) for line in chosen.values())]
        for title, key in (("mean", "mean"), ("mean of the 5 competition labels", "mean5"))
        if any(line and f"auroc/{key}" in line for line in chosen.values())
    ]
    said = [f"AUROC at step {step:,}", table(["label", *chosen], rows)]
    for name, line in chosen.items():
        for label in names:
            value, why = value_or_why(line, label)
            if line is not None and value is None and label in labels([line]):
                said.append(f"{name}: {label} has no AUROC: {why}")
    return said


def _cell(line: Mapping[str, Any] | None, name: str) -> str:
    """An AUROC; a mean with its interval, where it has one."""
    value, _ = value_or_why(line, name)
    if line is None or value is None:
        return "n/a"
    low, high = (number(line.get(f"auroc_{end}/{name}")) for end in ("lo", "hi"))
    ends = interval(low, high) if name in SUMMARIES else ""
    return f"{value:.3f} ({ends})" if ends else f"{value:.3f}"


def _headline(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "not evaluated"
    shown = []
    for value in headline(read(line)):
        ends = interval(value.low, value.high)
        shown.append(f"{value.name} {decimal(value.value)}{f' ({ends})' if ends else ''}")
    return ", ".join(shown)


def _choice(best: Mapping[str, Any]) -> str:
    if not best:
        return "No step was chosen."
    value = number(best.get("value"))
    shown = "" if value is None else f" = {value:.4f}"
    return f"Chosen: step {best.get('step')}, {best.get('metric')}{shown}. {best.get('why') or ''}".rstrip()
