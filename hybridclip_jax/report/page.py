"""The page of one run."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.logs import duration
from hybridclip_jax.report.charts import Series, line_chart, thin
from hybridclip_jax.report.markup import Markup, element, join
from hybridclip_jax.report.run import Run, evaluations, labels
from hybridclip_jax.report.style import CSS
from hybridclip_jax.report.tables import (
    config_section,
    data_section,
    labels_section,
    machine_section,
    reproduce_section,
    work_section,
)
from hybridclip_jax.report.words import count, figures, fixed, number


def render(workdir: Path) -> Path:
    """Writes `workdir/report.html` from the run's JSON files alone and returns its path.

    They are config.json, metrics.jsonl and, where there are any, best.json and summary.json. The page loads
    nothing and runs no script. Raises UserError where the folder holds no run or no logged step.
    """
    run = Run.read(Path(workdir))
    path = run.workdir / "report.html"
    temporary = path.with_name(".report.html.tmp")
    temporary.write_text(page(run), encoding="utf-8")
    os.replace(temporary, path)
    return path


def page(run: Run) -> str:
    style_hash = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{run.name}: hybridclip report"),
        element("style", Markup(CSS)),
    )
    body = element(
        "main",
        _header(run),
        _banners(run),
        _tiles(run),
        _choice(run),
        _charts(run),
        labels_section(run),
        data_section(run),
        work_section(run),
        machine_section(run),
        config_section(run),
        reproduce_section(run),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def _header(run: Run) -> Markup:
    get = run.config.get
    model: Mapping[str, Any] = get("model") or {}
    towers = [str((model.get(side) or {}).get("arch", "?")) for side in ("image", "text")]
    said = f"{towers[0]} joined with {towers[1]}, "
    said += f"{count(get('steps'))} steps of {count(get('batch_size'))} pairs"
    devices = run.summary.get("devices") or {}
    if devices:
        said += f", on {count(devices.get('count'))} {devices.get('kind', 'device')}"
    return element("header", element("h1", run.name), element("p", said, class_="quiet"))


def _banners(run: Run) -> Markup:
    said: list[Markup] = []
    if run.synthetic:
        text = "Synthetic data: drawn phantoms, not patients. No number here says anything about people."
        said.append(element("p", element("strong", text), class_="banner"))
    step, steps = run.reached, number(run.config.get("steps"))
    if run.summary.get("finished") is not True:
        why = f": {run.summary['exit']}" if run.summary.get("exit") else ""
        text = f"This run is not finished: step {step:,} of {count(steps)}{why}."
        said.append(element("p", text, class_="banner"))
    loss, chance = run.final_loss(), run.chance_loss
    if loss is not None and chance is not None and run.at_chance():
        verdict = (
            f"The loss is at chance: it ends at {loss:.3f}, where a model that cannot tell the pairs of a "
            f"batch apart has {chance:.3f}. Nothing of the pairing has been learnt."
        )
        said.append(element("p", verdict, class_="banner bad"))
    return join(said)


def _tiles(run: Run) -> Markup:
    tiles: list[tuple[str, str]] = []
    if run.best:
        tiles.append((fixed(run.best.get("value"), 3), f"{run.best.get('metric', 'value')}, chosen step"))
        tiles.append((count(run.best.get("step")), "chosen step"))
    loss, chance = run.final_loss(), run.chance_loss
    if loss is not None:
        beside = f", chance {chance:.3f}" if chance is not None else ""
        tiles.append((f"{loss:.3f}", f"training loss at the end{beside}"))
    tiles.append((f"{run.reached:,}", f"of {count(run.config.get('steps'))} steps"))
    tiles.append((figures(run.last("pf_days_model")), "PF-days of model work"))
    wall = run.last("wall_s")
    if wall is not None:
        tiles.append((duration(wall), "wall time"))
    return element("div", [element("div", element("b", b), element("span", s)) for b, s in tiles], class_="tiles")


def _choice(run: Run) -> Markup:
    if not run.best:
        text = "No step has been chosen yet; where a step is needed below, the last evaluated one stands in."
        return element("section", element("h2", "The chosen step"), element("p", text))
    best = run.best
    said = f"Step {count(best.get('step'))}: {best.get('metric')} = {fixed(best.get('value'), 4)}"
    interval = best.get("interval")
    if isinstance(interval, list) and len(interval) == 2:
        said += f", interval {fixed(interval[0], 3)} to {fixed(interval[1], 3)}"
    runner = best.get("runner_up")
    parts = [element("p", f"{said}."), element("p", str(best.get("why") or "No reason was recorded."))]
    if isinstance(runner, dict):
        parts.append(element("p", f"Runner-up: step {count(runner.get('step'))}, {fixed(runner.get('value'), 4)}."))
    elif runner is not None:
        parts.append(element("p", f"Runner-up: {runner}."))
    return element("section", element("h2", "The chosen step"), parts)


def _charts(run: Run) -> Markup:
    step = run.best.get("step") if isinstance(run.best.get("step"), int) else None
    mark = (float(step), f"chosen: {step:,}") if step is not None else None
    drawn = [_loss_chart(run)]
    for name, lines in evaluations(run.metrics).items():
        drawn.append(_auroc_chart(name, lines, mark, run.reached))
    rates, k = thin([(line["step"], number(line.get("pairs_per_s"))) for line in run.train])
    if any(y is not None for _, y in rates):
        series = [Series("pairs per second", rates)]
        chart = line_chart(
            series, title="Training pairs per second", limits=(0.0, None), include=(0.0,), x_max=run.reached
        )
        drawn.append(_figure("Throughput", chart, f"Pairs per second{_thinned(k)}."))
    return element("section", element("h2", "By step"), element("div", drawn, class_="charts"))


def _loss_chart(run: Run) -> Markup:
    points, k = thin([(line["step"], number(line.get("loss"))) for line in run.train])
    chance = run.chance_loss
    batch = count(run.config.get("batch_size"))
    reference = (chance, f"chance: ln {batch} = {chance:.3f}") if chance is not None else None
    chart = line_chart(
        [Series("training loss", points)],
        title="Training loss by step",
        reference=reference,
        # half a nat in view, so that a run stuck at chance looks flat and not like a lively curve
        include=(chance - 0.5,) if chance is not None else (),
        x_max=run.reached,
    )
    lost = sum(number(line.get("loss")) is None for line in run.train)
    note = f"InfoNCE over the whole batch, in nats{_thinned(k)}."
    if lost:
        note += f" {lost:,} logged step{'s' if lost > 1 else ''} had no finite loss."
    return _figure("Training loss", chart, note)


def _auroc_chart(name: str, lines: Sequence[Mapping[str, Any]], mark: tuple[float, str] | None, x_max: float) -> Markup:
    def curve(key: str) -> list[tuple[float, float | None]]:
        return [(line["step"], number(line.get(f"auroc/{key}"))) for line in lines]

    names = labels(lines)
    series = [Series(label, curve(label), "label") for label in names]
    said = f"Thick: mean of the labels. Thin: each of the {len(names)} labels; point at one for its name."
    if any("auroc/mean5" in line for line in lines):
        series.append(Series("mean of the five competition labels", curve("mean5"), "second"))
        said += " Dashed green: mean of the five CheXpert competition labels."
    series.append(Series("mean", curve("mean")))
    chart = line_chart(
        series,
        title=f"AUROC by step, {name}",
        reference=(0.5, "chance: 0.5"),
        mark=mark,
        limits=(0.0, 1.0),
        include=(0.4, 0.7),
        x_max=x_max,
    )
    return _figure(f"AUROC, {name}", chart, said)


def _figure(title: str, chart: Markup, caption: str) -> Markup:
    return element("figure", element("h3", title), chart, element("figcaption", caption))


def _thinned(k: int) -> str:
    return f"; each point is the mean of {k} logged steps" if k > 1 else ""
