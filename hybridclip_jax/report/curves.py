"""What a run's page draws by step: the loss, the evaluations, the throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridclip_jax.report.charts import Series, line_chart, thin
from hybridclip_jax.report.markup import Markup, element
from hybridclip_jax.report.run import Run, evaluations, labels
from hybridclip_jax.report.values import find, headline, read
from hybridclip_jax.report.words import number


def by_step(run: Run) -> Markup:
    mark = (float(run.best["step"]), f"chosen: {run.best['step']:,}") if run.best else None
    drawn = [_loss_chart(run)]
    for name, lines in evaluations(run.metrics).items():
        if labels(lines):
            drawn.append(_auroc_chart(name, lines, mark, run.reached))
        if chosen := _other_metric(run, name, lines):
            drawn.append(_value_chart(name, chosen, lines, mark, run.reached))
    rates, k = thin([(line["step"], number(line.get("pairs_per_s"))) for line in run.train])
    if any(y is not None for _, y in rates):
        series = [Series("pairs per second", rates)]
        chart = line_chart(
            series, title="Training pairs per second", limits=(0.0, None), include=(0.0,), x_max=run.reached
        )
        drawn.append(figure("Throughput", chart, f"Pairs per second{thinned(k)}."))
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
    note = f"InfoNCE over the whole batch, in nats{thinned(k)}."
    if lost:
        note += f" {lost:,} logged step{'s' if lost > 1 else ''} had no finite loss."
    return figure("Training loss", chart, note)


def _auroc_chart(name: str, lines: Sequence[Mapping[str, Any]], mark: tuple[float, str] | None, x_max: float) -> Markup:
    def curve(key: str) -> list[tuple[float, float | None]]:
        return [(line["step"], number(line.get(f"auroc/{key}"))) for line in lines]

    names = labels(lines)
    series = [Series(label, curve(label), "label") for label in names]
    said = f"Thick: mean of the labels. Thin: each of the {len(names)} labels; point at one for its name."
    if any("auroc/mean5" in line for line in lines):
        series.append(Series("mean of the five competition labels", curve("mean5"), "second"))
        said += " Dashed green: mean of the five CheXpert competition labels."
    mean = curve_of(lines, "auroc/mean", "mean")
    said += " Band: 95 % interval of the mean." if mean.band else ""
    series.append(mean)
    chart = line_chart(
        series,
        title=f"AUROC by step, {name}",
        reference=(0.5, "chance: 0.5"),
        mark=mark,
        limits=(0.0, 1.0),
        include=(0.4, 0.7),
        x_max=x_max,
    )
    return figure(f"AUROC, {name}", chart, said)


def _other_metric(run: Run, name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The value that this evaluation is drawn by, where its AUROCs do not say it: the choosing one, or a headline."""
    chosen, _, metric = run.metric.partition("/")
    if chosen == name and metric and not metric.startswith("auroc/"):
        return metric
    if labels(lines):
        return ""
    return next((value.name for value in headline(read(lines[-1]))), "")


def _value_chart(
    name: str, metric: str, lines: Sequence[Mapping[str, Any]], mark: tuple[float, str] | None, x_max: float
) -> Markup:
    found = find(lines[-1], metric)
    chance = None if found is None or found.chance is None else (found.chance, f"chance: {found.chance:.4g}")
    curve = curve_of(lines, metric, metric)
    chart = line_chart([curve], title=f"{metric} by step, {name}", reference=chance, mark=mark, x_max=x_max)
    return figure(f"{metric}, {name}", chart, "Band: 95 % interval." if curve.band else "")


def curve_of(lines: Sequence[Mapping[str, Any]], metric: str, name: str, style: str = "main") -> Series:
    """A value by step, with its intervals as the band."""
    kind, _, rest = metric.partition("/")
    points = [(float(line["step"]), number(line.get(metric))) for line in lines]
    band = []
    for line in lines:
        low, high = (number(line.get(f"{kind}_{end}/{rest}")) for end in ("lo", "hi"))
        if low is not None and high is not None:
            band.append((float(line["step"]), low, high))
    return Series(name, points, style, band)


def figure(title: str, chart: Markup, caption: str) -> Markup:
    return element("figure", element("h3", title), chart, element("figcaption", caption))


def thinned(k: int) -> str:
    return f"; each point is the mean of {k} logged steps" if k > 1 else ""
