"""What `evaluate` says on the terminal, before it begins and of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridclip_jax.data.store import Store
from hybridclip_jax.evals.evaluator import beside
from hybridclip_jax.lineage import Lineage, Verdict
from hybridclip_jax.logs import table

COUNTS = ("positives", "negatives")
LEVELS = ("chance", "ceiling")  # constants that stand beside a value


def before(
    store: Store,
    models: Sequence[Lineage],
    others: Sequence[Lineage],
    verdict: Verdict,
    used: Sequence[Mapping[str, Any]],
) -> str:
    """Which steps of which runs, on whom, and what is known of both."""
    said = [f"{'model' if i == 0 else '':<9}{_model(line)}" for i, line in enumerate(models)]
    said += [f"{'against' if i == 0 else '':<9}{_model(line)}" for i, line in enumerate(others)]
    checks = {text: what for what, text in verdict.checks.items() if text not in verdict.warnings}
    said += [f"{'training' if what == 'training' else 'choice':<9}{text}" for text, what in checks.items()]
    if used:
        times = "once" if len(used) == 1 else f"{len(used)} times"
        said.append(
            f"{'used':<9}{store.spec} was evaluated {times} before with these runs, last on {used[-1].get('when')} "
            f"with {used[-1].get('protocol')}: whatever was changed after looking makes it less of a test"
        )
    return "\n".join([*said, *(f"warning: {warning}" for warning in verdict.warnings)])


def _model(line: Lineage) -> str:
    if line.step is None:
        return str(line.folder)
    return f"{line.folder}: step {line.step:,}" + (f"; {line.why}" if line.why else "")


def after(result: Mapping[str, Any]) -> str:
    """Every value with its interval, the differences, and the notes."""
    evaluation, values, against = result["evaluation"], result["values"], result["against"]
    what = f"{evaluation['units']:,} {'studies' if evaluation['unit'] == 'study' else 'images'}"
    title = f"{evaluation['protocol']} on {evaluation['data']}: {what} of {evaluation['patients']:,} patients"
    said = [title, _values(values, evaluation.get("labels", {}))]
    said += _others(values)
    if against is not None:
        said += ["", "differences: --model less --against", _differences(against["differences"])]
    said += [f"note: {note}" for note in evaluation["notes"]]
    if result["synthetic"]:
        said.append("synthetic data: phantoms, not patients; no value here says anything about real images")
    return "\n".join(said)


def _values(values: Mapping[str, Any], labels: Mapping[str, Mapping[str, int]]) -> str:
    names = [name for name in values if beside(name, "lo") in values]
    levels = [level for level in LEVELS if any(beside(name, level) in values for name in names)]
    rows = []
    for name in names:
        low, high = (values[beside(name, end)] for end in ("lo", "hi"))
        row = [name, number(values[name]), interval(low, high), values.get(beside(name, "resamples"), "-")]
        row += [number(values[key]) if (key := beside(name, level)) in values else "-" for level in levels]
        if labels:
            row += [labels.get(name.partition("/")[2], {}).get(count, "-") for count in COUNTS]
        rows.append(row)
    return table(["", "value", "95 % interval", "valid resamples", *levels, *(COUNTS if labels else ())], rows)


def _others(values: Mapping[str, Any]) -> list[str]:
    """Values without an interval, and what is to be said of any: why it is undefined, which labels it counts."""
    measured = [name for name in values if beside(name, "lo") in values]
    shown = {beside(name, kind) for name in measured for kind in ("lo", "hi", "resamples", *LEVELS)}
    whys = {beside(name, "why"): name for name in values if beside(name, "why") in values}
    said = [f"{name}: {number(value)}" for name, value in values.items() if name not in {*measured, *shown, *whys}]
    return said + [f"{name}{' is undefined' * (values[name] is None)}: {values[why]}" for why, name in whys.items()]


def _differences(differences: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, number(row["value"], sign=True), interval(row["low"], row["high"]), p_value(row["p"]), row["method"]]
        for name, row in differences.items()
    ]
    return table(["", "difference", "95 % interval", "p", "method"], rows)


def number(value: Any, *, sign: bool = False) -> str:
    """Three decimals, or four figures where it is no share or score; text as it stands."""
    if value is None:
        return "n/a"
    if not isinstance(value, int | float):
        return str(value)
    plus = "+" if sign and value > 0 else ""
    if isinstance(value, int):
        return f"{plus}{value:,}"
    return plus + (f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}")


def interval(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{number(low)} to {number(high)}"


def p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
