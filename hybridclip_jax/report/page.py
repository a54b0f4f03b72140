"""The page of one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridclip_jax.logs import duration
from hybridclip_jax.report.curves import by_step
from hybridclip_jax.report.document import SYNTHETIC, document
from hybridclip_jax.report.markup import Markup, breakable, element, join
from hybridclip_jax.report.recipe import recipe_section
from hybridclip_jax.report.run import Run
from hybridclip_jax.report.tables import (
    config_section,
    data_section,
    evaluations_section,
    machine_section,
    reproduce_section,
    uses_section,
    work_section,
)
from hybridclip_jax.report.words import decimal, figures, interval
from hybridclip_jax.rundir import write_whole


def render(workdir: Path, *, unverified: bool = False) -> Path:
    """Writes `workdir/report.html` from the run's JSON files alone and returns its path.

    They are config.json, metrics.jsonl and, where there are any, best.json, summary.json, audit.json and
    evaluated.jsonl. The page loads nothing and runs no script. Published results that were not checked in their source
    are in it only with `unverified`. Raises UserError where the folder holds no run, no logged step or a file that a
    run does not write so, StorageError when the disk refuses.
    """
    run = Run.read(Path(workdir))
    path = run.workdir / "report.html"
    write_whole(path, page(run, unverified=unverified))
    return path


def page(run: Run, *, unverified: bool = False) -> str:
    body = element(
        "main",
        _header(run),
        banners(run),
        _tiles(run),
        _choice(run),
        by_step(run),
        evaluations_section(run, unverified=unverified),
        uses_section(run),
        recipe_section(run.config),
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


def banners(run: Run) -> Markup:
    said: list[Markup] = []
    if run.synthetic:
        text = f"{SYNTHETIC}. No number here says anything about people."
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
    tiles: list[tuple[str, object]] = []
    if run.best:
        tiles.append(
            (decimal(run.best["value"]), [breakable(run.best["metric"]), f", chosen step{_ends(run.best, ', ')}"])
        )
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
    early = run.summary.get("stopped_early")
    said_there = early and early in (run.best.get("why") or "")
    parts = [element("p", _sentence(early))] if early and not said_there else []
    if not run.best:
        text = "No step has been chosen yet; where a step is needed below, the last evaluated one stands in."
        return element("section", element("h2", "The chosen step"), element("p", text), parts)
    best = run.best
    said = f"Step {best['step']:,}: {best['metric']} = {best['value']:.4f}{_ends(best, ', interval ')}."
    why, runner = best.get("why"), best.get("runner_up")
    parts = [element("p", said), element("p", _sentence(why) if why else "No reason was recorded."), *parts]
    if runner and not why:  # which names it
        said = f"Runner-up: step {runner['step']:,}, {runner['value']:.4f}{_ends(runner, ', interval ')}."
        parts.append(element("p", said))
    if kept := best.get("kept"):
        steps = ", ".join(f"{one['step']:,} ({decimal(one['value'])})" for one in kept)
        parts.append(element("p", f"Kept, the best first: steps {steps}."))
    return element("section", element("h2", "The chosen step"), parts)


def _sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:].rstrip('.')}."


def _ends(choice: Mapping[str, Any], before: str) -> str:
    """The interval of a choice behind `before`; nothing where it has none."""
    ends = choice.get("interval")
    return f"{before}{interval(*ends)}" if ends else ""
