"""Several runs on one page: what differs in their settings, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.logs import duration
from hybridclip_jax.report.charts import Series, key, line_chart, run_style, thin
from hybridclip_jax.report.curves import curve_of, figure, thinned
from hybridclip_jax.report.document import SYNTHETIC, document
from hybridclip_jax.report.markup import Markup, breakable, element, join, table
from hybridclip_jax.report.run import Run, at_step, evaluations, shown_step
from hybridclip_jax.report.values import COUNTS, Value, find, kind_title, read, rest_title
from hybridclip_jax.report.words import decimal, figures, flatten, interval, number, plural, text
from hybridclip_jax.rundir import write_whole

MOST_LABELS = 60


def render(workdirs: Sequence[Path], out: Path) -> Path:
    """Writes the page of several runs side by side from their JSON files alone, and returns its path.

    Raises UserError where a folder holds no run, no logged step or a file that a run does not write so, StorageError
    when the disk refuses.
    """
    write_whole(out, page([Run.read(workdir) for workdir in workdirs]))
    return out


def page(runs: Sequence[Run]) -> str:
    names = _names(runs)
    body = element(
        "main",
        element("header", element("h1", f"{len(runs)} runs side by side"), element("p", ", ".join(names))),
        _banners(names, runs),
        _headlines(names, runs),
        _charts(names, runs),
        _values(names, runs),
        _settings(names, runs),
    )
    return document(f"{', '.join(names)}: hybridclip report", body)


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' own names where they differ, else their paths as given."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.workdir) for run in runs]


def _banners(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    said: list[object] = []
    synthetic = [name for name, run in zip(names, runs, strict=True) if run.synthetic]
    if synthetic:
        text = f"{SYNTHETIC}, in {_all_or(synthetic, names)}."
        said.append(element("strong", text))
    unfinished = [name for name, run in zip(names, runs, strict=True) if not run.summary.get("finished")]
    if unfinished:
        said.append(f"Not finished: {', '.join(unfinished)}.")
    stuck = [name for name, run in zip(names, runs, strict=True) if run.at_chance()]
    if stuck:
        said.append(f"The loss ends at chance in {', '.join(stuck)}: nothing of the pairing has been learnt there.")
    said += [
        f"Evaluation {name} is not of the same {differ} in each run: its values do not compare."
        for name in _shared(runs)
        if (differ := _differ([_measured(run, name) for run in runs if name in run.config["evals"]]))
    ]
    return join([element("p", one, class_="banner") for one in said])


def _all_or(some: Sequence[str], names: Sequence[str]) -> str:
    return "every run" if len(some) == len(names) else ", ".join(some)


def _shared(runs: Sequence[Run]) -> list[str]:
    """The evaluations that more than one run has, in the first one's order."""
    named = [name for run in runs for name in evaluations(run.metrics)]
    return [name for name in dict.fromkeys(named) if named.count(name) > 1]


def _measured(run: Run, name: str) -> dict[str, object]:
    """What must be equal for two runs' values of an evaluation to compare, by what it is called."""
    described = (run.summary.get("evaluations") or {}).get(name)
    if not described:
        entry = run.config["evals"][name]
        return {"protocol": entry["protocol"], "store": entry["data"]}
    fields = described.get("fields")
    return {
        "protocol": described["protocol"],
        "store": described.get("store_fingerprint"),
        "split": (described.get("set") or {}).get("split"),
        "unit": described.get("unit"),
        # a prompt file is the same by its sentences, wherever it lies
        "fields": {key: fields[key] for key in fields if key != "prompts"} if isinstance(fields, dict) else fields,
        "labels": sorted(described.get("labels") or {}),
        "prompts": _digests(described.get("prompts")),
    }


def _digests(prompts: Any) -> list[object]:
    """The sha256 of each prompt file, as `describe` gives one of them or several."""
    if isinstance(prompts, dict) and "sha256" in prompts:
        return [prompts["sha256"]]
    parts = prompts.values() if isinstance(prompts, dict) else prompts if isinstance(prompts, list) else []
    return [digest for part in parts for digest in _digests(part)]


def _differ(measured: Sequence[Mapping[str, object]]) -> str:
    """What of these is not the same in all, in words; empty where everything is."""
    first, *others = measured
    keys = dict.fromkeys(key for one in measured for key in one)
    named = [key for key in keys if any(one.get(key) != first.get(key) for one in others)]
    return " and ".join(filter(None, (", ".join(named[:-1]), *named[-1:])))


def _headlines(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    titles = (
        "run",
        "chosen by",
        "value",
        "interval",
        "step",
        "of",
        "loss at the end",
        "chance",
        "PF-days",
        "wall time",
    )
    numbers = {"value", "step", "of", "loss at the end", "chance", "PF-days"}
    head = element("tr", [element("th", title, class_="n" if title in numbers else None) for title in titles])
    rows = []
    for name, run in zip(names, runs, strict=True):
        best, wall = run.best, run.last("wall_s")
        note = element("div", "synthetic phantoms", class_="note") if run.synthetic else None
        cells = [
            element("td", breakable(best.get("metric") or "nothing chosen")),
            element("td", decimal(best.get("value")), class_="n"),
            element("td", interval(*(best.get("interval") or (None, None))), class_="why"),
            *(element("td", cell, class_="n") for cell in (_step(best), f"{run.reached:,}")),
            *(element("td", decimal(value), class_="n") for value in (run.final_loss(), run.chance_loss)),
            element("td", figures(run.last("pf_days_model")), class_="n"),
            element("td", "not recorded" if wall is None else duration(wall)),
        ]
        rows.append(element("tr", element("th", name, note, scope="row"), cells))
    said = "Intervals are of each run alone; whether two models differ, hybridclip evaluate --against says."
    return element("section", element("h2", "What came of them"), table(head, rows), element("p", said, class_="note"))


def _step(best: Mapping[str, Any]) -> str:
    return f"{best['step']:,}" if best else ""


def _charts(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    losses, most = [], 1
    for place, (name, run) in enumerate(zip(names, runs, strict=True)):
        points, k = thin([(line["step"], number(line.get("loss"))) for line in run.train])
        losses.append(Series(name, points, run_style(place)))
        most = max(most, k)
    reached = max(run.reached for run in runs)
    levels = {run.chance_loss for run in runs}
    reference = (levels.pop(), "chance") if len(levels) == 1 else None
    chart = line_chart(losses, title="Training loss by step", reference=reference, x_max=reached)
    note = f"In nats{thinned(most)}."
    if reference is None:
        note += " The runs' batches differ, and so does the level of chance: the losses do not compare."
    drawn = [figure("Training loss", join([chart, key(losses)]), note)]
    for metric in dict.fromkeys(run.metric for run in runs if run.metric):
        drawn.append(_metric_chart(metric, names, runs, reached))
    return element("section", element("h2", "By step"), element("div", drawn, class_="charts"))


def _metric_chart(metric: str, names: Sequence[str], runs: Sequence[Run], reached: int) -> Markup:
    """The value that a run chose by, of every run that has it."""
    evaluation, _, value = metric.partition("/")
    series, chance = [], None
    for place, (name, run) in enumerate(zip(names, runs, strict=True)):
        lines = evaluations(run.metrics).get(evaluation, [])
        found = find(lines[-1], value) if lines else None
        if found is not None:
            chance = found.chance
            series.append(curve_of(lines, value, name, run_style(place)))
    reference = None if chance is None else (chance, f"chance: {chance:.4g}")
    chart = line_chart(series, title=f"{metric} by step", reference=reference, x_max=reached)
    said = "Bands: 95 % intervals." if any(one.band for one in series) else ""
    return figure(metric, join([chart, key(series)]), said)


def _values(names: Sequence[str], runs: Sequence[Run]) -> Markup | None:
    shared = _shared(runs)
    if not shared:
        return None
    parts = []
    for evaluation in shared:
        columns = [_chosen(run, evaluation) for run in runs]
        titles = dict.fromkeys(name for column in columns for name in column)
        if not titles:
            continue
        head = [element("th", ""), *(element("th", name, class_="n") for name in names)]
        rows = []
        for name in list(titles)[:MOST_LABELS]:
            one = next(column[name] for column in columns if name in column)
            title = f"{kind_title(one.kind)}, {rest_title(one, None)}"
            cells = [element("td", _cell(column.get(name)), class_="n") for column in columns]
            rows.append(
                element("tr", element("th", title, scope="row"), cells, class_="total" if one.summary else None)
            )
        more = len(titles) - MOST_LABELS
        note = (
            element("p", f"{plural(more, 'value')} more on the runs' own pages.", class_="note") if more > 0 else None
        )
        parts.append(element("section", element("h3", evaluation), table(element("tr", head), rows), note))
    return element("section", element("h2", "Evaluations, each run at its chosen step"), parts)


def _chosen(run: Run, evaluation: str) -> dict[str, Value]:
    """The AUROCs of an evaluation at the run's chosen step, and its values that have an interval."""
    evals = evaluations(run.metrics)
    line = at_step(evals.get(evaluation, []), shown_step(run.best, evals))
    values = [value for value in read(line or {}) if value.low is not None or value.kind == "auroc"]
    return {value.name: value for value in values if value.rest != COUNTS}


def _cell(value: Value | None) -> Markup | str:
    if value is None:
        return ""
    ends = interval(value.low, value.high)
    return join([decimal(value.value), element("div", ends, class_="note") if ends else None])


def _settings(names: Sequence[str], runs: Sequence[Run]) -> Markup:
    flat = [dict(flatten(run.config)) for run in runs]
    fields = dict.fromkeys(field for config in flat for field in config)
    differ = [field for field in fields if any(config.get(field) != flat[0].get(field) for config in flat)]
    equal = plural(len(fields) - len(differ), "setting")
    if not differ:
        return element("section", element("h2", "Settings"), element("p", f"All {equal} are the same."))
    head = element("tr", element("th", "setting"), [element("th", name) for name in names])
    rows = []
    for field in differ:
        cells = [text(config[field]) if field in config else "not set" for config in flat]
        rows.append(element("tr", element("th", field, scope="row"), [element("td", c, class_="long") for c in cells]))
    said = element("p", f"The other {equal} are the same.", class_="note")
    return element("section", element("h2", "Settings that differ"), table(head, rows), said)
