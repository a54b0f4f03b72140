"""What `evaluate` says on the terminal, before it begins and of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hybridclip_jax.logs import table
from hybridclip_jax.report.evaluation import synthetic
from hybridclip_jax.report.scores import measured
from hybridclip_jax.report.values import Value, read
from hybridclip_jax.report.words import decimal, interval, p_value, signed

COUNTS = ("positives", "negatives")


class Model(Protocol):
    """A model folder, the step of its weights, and why that step."""

    @property
    def folder(self) -> Path: ...
    @property
    def step(self) -> int | None: ...
    @property
    def why(self) -> str | None: ...


def before(
    data: str,
    models: Sequence[Model],
    others: Sequence[Model],
    checks: Mapping[str, str],
    warnings: Sequence[str],
    used: Sequence[Mapping[str, Any]],
) -> str:
    """Which steps of which runs, on whom, and what is known of both. `data`: the store as it was named."""
    said = [*_side("model", models), *_side("against", others)]
    told = {text: what for what, text in checks.items() if text not in warnings}
    said += [f"{'training' if what == 'training' else 'choice':<9}{text}" for text, what in told.items()]
    if used:
        times = "once" if len(used) == 1 else f"{len(used)} times"
        said.append(
            f"{'used':<9}{data} was evaluated {times} before with these runs, last on {used[-1].get('when')} "
            f"with {used[-1].get('protocol')}: whatever was changed after looking makes it less of a test"
        )
    return "\n".join([*said, *(f"warning: {warning}" for warning in warnings)])


def _side(name: str, models: Sequence[Model]) -> list[str]:
    """One line a model; why its step only of a model alone, for those of an ensemble have one reason."""
    said: list[str] = []
    for model in models:
        step = "" if model.step is None else f": step {model.step:,}"
        why = f"; {model.why}" if model.step is not None and model.why and len(models) == 1 else ""
        said.append(f"{'' if said else name:<9}{model.folder}{step}{why}")
    return said


def after(result: Mapping[str, Any]) -> str:
    """Every value with its interval, the differences, and the notes. `result`: what metrics.json holds."""
    evaluation, against = result["evaluation"], result["against"]
    said = [measured(evaluation)]
    values = read(result["values"])
    sure = [value for value in values if value.resamples is not None]
    said.append(_table(sure, evaluation.get("labels", {})))
    said += [f"{value.name}: {decimal(value.value)}" for value in values if value.resamples is None]
    said += [f"{v.name}{' is undefined' * (v.value is None)}: {v.why}" for v in values if v.why]
    if against is not None:
        said += ["", "differences: --model less --against", _differences(against["differences"])]
    said += [f"note: {note}" for note in evaluation["notes"]]
    if what := synthetic(result):
        said.append(f"{what}. No value here says anything about people.")
    return "\n".join(said)


def _table(values: Sequence[Value], labels: Mapping[str, Mapping[str, int]]) -> str:
    levels = [level for level in ("point", "chance", "ceiling") if any(getattr(v, level) is not None for v in values)]
    rows = []
    for value in values:
        row = [value.name, decimal(value.value), interval(value.low, value.high) or "n/a", value.resamples]
        row += [_or_dash(getattr(value, level)) for level in levels]
        if labels:
            row += [labels.get(value.rest, {}).get(count, "-") for count in COUNTS]
        rows.append(row)
    return table(["", "value", "95 % interval", "valid resamples", *levels, *(COUNTS if labels else ())], rows)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else decimal(value)


def _differences(differences: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            signed(row["value"]),
            interval(row["low"], row["high"], signed) or "n/a",
            p_value(row["p"]) or "-",
            row["method"],
        ]
        for name, row in differences.items()
    ]
    return table(["", "difference", "95 % interval", "p", "method"], rows)
