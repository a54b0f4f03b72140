"""Which step is the run's model, why, in a sentence, and when to stop looking for a better one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals.evaluator import beside


@dataclasses.dataclass(frozen=True)
class Rule:
    """`config.select`, and the store that its evaluation reads.

    metric: <eval>/<value>. mode: max or min. patience: so many evaluations without a better value end the run, 0 for
    never. keep: how many of the best models are kept.
    """

    metric: str
    mode: str
    patience: int
    keep: int
    store: str

    @property
    def split(self) -> str:
        """The evaluation's lines in metrics.jsonl."""
        return f"eval/{self.metric.partition('/')[0]}"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The metric at one step, with its interval where it has one."""

    step: int
    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        bounds = "" if self.interval is None else ", 95 % interval {:.4f} to {:.4f}".format(*self.interval)
        return f"{self.value:.4f}{bounds}"


def history(lines: Sequence[Mapping[str, Any]], metric: str) -> list[Evaluated]:
    """The values of `<eval>/<name>` in the lines of metrics.jsonl; undefined ones are left out.

    Raises UserError when an evaluation has no value of that name: the run would choose nothing.
    """
    name, _, key = metric.partition("/")
    found = []
    for line in lines:
        if line["split"] != f"eval/{name}":
            continue
        if key not in line:
            near = difflib.get_close_matches(key, line, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"select.metric = {metric}: the evaluation has no such value{hint}")
        if isinstance(line[key], str):
            raise UserError(f"select.metric = {metric}: not a number")
        if line[key] is not None:
            found.append(Evaluated(line["step"], line[key], _interval(line, key)))
    return found


def _interval(line: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    low, high = (line.get(beside(key, end)) for end in ("lo", "hi"))
    return None if low is None or high is None else (low, high)


def ranked(values: Sequence[Evaluated], mode: str) -> list[Evaluated]:
    """Best first. Among equals the earliest step wins."""
    sign = -1 if mode == "max" else 1
    return sorted(values, key=lambda one: (sign * one.value, one.step))


def choose(values: Sequence[Evaluated], rule: Rule, at_hand: Collection[int] | None = None) -> dict[str, Any] | None:
    """What `best.json` says of the choice, or None when no value is defined.

    at_hand: the steps whose models there are, None for all. A better step whose model is gone is named in `why`.
    """
    order = ranked(values, rule.mode)
    place = next((n for n, one in enumerate(order) if at_hand is None or one.step in at_hand), None)
    if place is None:
        return None
    gone, best, rest = order[:place], order[place], order[place + 1 :]
    return {
        "step": best.step,
        "metric": rule.metric,
        "value": best.value,
        "interval": best.interval and list(best.interval),
        "runner_up": _runner_up(rest[0]) if rest else None,
        "why": _why_not_better(best, rest, gone[0], rule) if gone else _why(best, rest, rule),
    }


def _runner_up(one: Evaluated) -> dict[str, Any]:
    return {"step": one.step, "value": one.value, "interval": one.interval and list(one.interval)}


def _why(best: Evaluated, rest: Sequence[Evaluated], rule: Rule) -> str:
    if not rest:
        return f"step {best.step} has the only {rule.metric} ({best}), on {rule.store}"
    word = "highest" if rule.mode == "max" else "lowest"
    why = f"step {best.step} has the {word} {rule.metric} ({best}) of {len(rest) + 1} evaluations on {rule.store}; "
    second = rest[0]
    if second.value == best.value:
        return why + f"step {second.step} equals it, and the earlier is taken"
    return why + f"the runner-up is step {second.step} ({second}){_overlap(best, second)}"


def _why_not_better(best: Evaluated, rest: Sequence[Evaluated], gone: Evaluated, rule: Rule) -> str:
    word = "highest" if rule.mode == "max" else "lowest"
    why = f"step {best.step} has the {word} {rule.metric} ({best}) on {rule.store} of the models that are left; "
    if rest:
        why += f"the runner-up is step {rest[0].step} ({rest[0]}){_overlap(best, rest[0])}; "
    than = "equals it and is earlier" if gone.value == best.value else "is better"
    lost = "but its model is gone: lost with a damaged checkpoint, or removed"
    return why + f"step {gone.step} ({gone.value:.4f}) {than}, {lost}"


def _overlap(best: Evaluated, second: Evaluated) -> str:
    if best.interval is None or second.interval is None:
        return ""
    apart = max(best.interval[0], second.interval[0]) > min(best.interval[1], second.interval[1])
    if apart:
        return ", and the two intervals do not overlap"
    return ", and the two intervals overlap: the choice between them is within noise"


def stopped_early(lines: Sequence[Mapping[str, Any]], rule: Rule) -> str:
    """Why `patience` is at its end with the last of these lines, in a sentence; empty where it is not.

    An evaluation whose value is undefined is one without a better value.
    """
    if not rule.patience:
        return ""
    steps = [line["step"] for line in lines if line["split"] == rule.split]
    first = next(iter(ranked(history(lines, rule.metric), rule.mode)), None)
    waited = [step for step in steps if first is None or step > first.step]
    if len(waited) < rule.patience:
        return ""
    count = "1 evaluation" if len(waited) == 1 else f"{len(waited)} evaluations in a row"
    better = f"{rule.metric}" if first is None else f"better {rule.metric} than step {first.step:,}"
    return f"stopped early at step {steps[-1]:,}: {count} gave no {better} (select.patience = {rule.patience})"


def headline(values: Mapping[str, Any]) -> str:
    """The value to show of an evaluation when one is shown: its first mean, else the first that has an interval.

    `values` by public name, as an evaluator gives them; "" where none of them is a measured value.
    """
    measured = [name for name in values if "/" in name and beside(name, "resamples") in values]
    return next((name for name in measured if name.endswith("/mean")), next(iter(measured), ""))


def shown(values: Mapping[str, Any], name: str) -> str:
    """A value with its name and interval, for one line on a terminal."""
    value, low, high = (values.get(at) for at in (name, beside(name, "lo"), beside(name, "hi")))
    if value is None:
        return f"{name} undefined"
    return f"{name} {value:.4f}" + ("" if low is None or high is None else f" [{low:.4f}, {high:.4f}]")
