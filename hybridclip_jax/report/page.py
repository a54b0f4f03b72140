"""The page of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.logs import duration
from hybridclip_jax.report.charts import Series, line_chart, thin
from hybridclip_jax.report.document import document
from hybridclip_jax.report.markup import Markup, element, join
from hybridclip_jax.report.run import Run, evaluations, labels
from hybridclip_jax.report.tables import (
    config_section,
    data_section,
    labels_section,
    machine_section,
    reproduce_section,
    work_section,
)
from hybridclip_jax.report.words import figures, number
from hybridclip_jax.rundir import write_whole


def render(workdir: Path) -> Path:
    """Writes `workdir/report.html` from the run's JSON files alone and returns its path.

    They are config.json, metrics.jsonl and, where there are any, best.json, summary.json and audit.json. The page loads
    nothing and runs no script. Raises UserError where the folder holds no run, no logged step or a file that a run
    does not write so, StorageError when the disk refuses.
    """
    run = Run.read(Path(workdir))
    path = run.workdir / "report.html"
    write_whole(path, page(run))
    return path


def page(run: Run) -> str:
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
    return document(f"{run.name}: hybridclip report", body)


def _header(run: Run) -> Markup:
    config, devices = run.config, run.summary.get("devices")
    said = f"{config['model']['image']['arch']} joined with {config['model']['text']['arch']}, "
    said += f"{config['steps']:,} steps of {config['batch_size']:,} pairs"
    if devices:
        said += f", on {devices['count']:,} {devices['kind']}"
    return element("header", element("h1", run.name), element("p", said, class_="quiet"))


def _banners(run: Run) -> Markup:
    said: list[Markup] = []
    if run.synthetic:
        text = "Synthetic data: drawn phantoms, not patients. No number here says anything about people."
        said.append(element("p", element("strong", text), class_="banner"))
    if not run.summary.get("finished"):
        why = f": {run.summary['exit']}" if run.summary.get("exit") else ""
        text = f"This run is not finished: step {run.reached:,} of {run.config['steps']:,}{why}."
        said.append(element("p", text, class_="banner"))
    for text in run.summary.get("warnings") or []:
        said.append(element("p", f"Warned at the start: {text}.", class_="banner"))
    loss, chance = run.final_loss(), run.chance_loss
    if loss is not None and run.at_chance():
        verdict = (
            f"The loss is at chance: it ends at {loss:.3f}, where a model that cannot tell the pairs of a "
            f"batch apart has {chance:.3f}. Nothing of the pairing has been learnt."
        )
        said.append(element("p", verdict, class_="banner bad"))
    return join(said)


def _tiles(run: Run) -> Markup:
    tiles: list[tuple[str, str]] = []
    if run.best:
        tiles.append((f"{run.best['value']:.3f}", f"{run.best['metric']}, chosen step"))
        tiles.append((f"{run.best['step']:,}", "chosen step"))
    loss = run.final_loss()
    if loss is not None:
        tiles.append((f"{loss:.3f}", f"training loss at the end, chance {run.chance_loss:.3f}"))
    tiles.append((f"{run.reached:,}", f"of {run.config['steps']:,} steps"))
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
    said = f"Step {best['step']:,}: {best['metric']} = {best['value']:.4f}"
    if interval := best.get("interval"):
        said += f", interval {interval[0]:.3f} to {interval[1]:.3f}"
    parts = [element("p", f"{said}."), element("p", best.get("why") or "No reason was recorded.")]
    if runner := best.get("runner_up"):
        parts.append(element("p", f"Runner-up: step {runner['step']:,}, {runner['value']:.4f}."))
    return element("section", element("h2", "The chosen step"), parts)


def _charts(run: Run) -> Markup:
    mark = (float(run.best["step"]), f"chosen: {run.best['step']:,}") if run.best else None
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
    chart = line_chart(
        [Series("training loss", points)],
        title="Training loss by step",
        reference=(chance, f"chance: ln {run.config['batch_size']:,} = {chance:.3f}"),
        # half a nat in view, so that a run stuck at chance looks flat and not like a lively curve
        include=(chance - 0.5,),
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
