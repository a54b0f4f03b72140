"""A run's folder as the report reads it: the files, checked, and the questions put to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax import chance
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import METRICS_FILE, read_metrics
from hybridclip_jax.report import shapes
from hybridclip_jax.report.values import COUNTS, read
from hybridclip_jax.report.words import number

AUROC_SUMMARIES = ("mean", "mean5", COUNTS)  # what stands beside the labels under auroc/


def evaluations(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of each evaluation by its name, by rising step."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in sorted(metrics, key=lambda line: line["step"]):
        if line["split"].startswith("eval/") and any("/" in name for name in line):
            found.setdefault(line["split"].removeprefix("eval/"), []).append(line)
    return found


def labels(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the labels that an evaluation's lines have an AUROC of, in the order they were written."""
    names = dict.fromkeys(value.rest for line in lines for value in read(line) if value.kind == "auroc")
    return [name for name in names if name not in AUROC_SUMMARIES]


def value_or_why(line: Mapping[str, Any] | None, name: str) -> tuple[float | None, str]:
    """An AUROC of a line, or None and the reason that there is none."""
    if line is None:
        return None, "not evaluated at this step"
    value = number(line.get(f"auroc/{name}"))
    return value, "" if value is not None else str(line.get(f"auroc_why/{name}") or "no value was logged")


def shown_step(best: Mapping[str, Any], evals: Mapping[str, Sequence[Mapping[str, Any]]]) -> int | None:
    """The chosen step, or where none was chosen the last evaluated one; None without any evaluation."""
    if best:
        return int(best["step"])
    return max((lines[-1]["step"] for lines in evals.values()), default=None)


def at_step(lines: Sequence[Mapping[str, Any]], step: int | None) -> Mapping[str, Any] | None:
    return next((line for line in lines if line["step"] == step), None)


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run's folder, each of its shape in `shapes`; those after `metrics` are empty until written."""

    workdir: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    best: dict[str, Any]
    summary: dict[str, Any]
    audit: dict[str, Any]
    uses: list[dict[str, Any]]  # by `evaluate`

    @classmethod
    def read(cls, workdir: Path) -> Run:
        """Raises UserError where the folder holds no run, no logged step, or a file that is not as a run writes it."""
        workdir = Path(workdir)
        if not (workdir / "config.json").is_file():
            remedy = "give the --workdir of a run, or the --out of an evaluation"
            raise UserError(f"{workdir}: not a run's folder (no config.json); {remedy}")
        metrics = read_metrics(workdir / METRICS_FILE)
        if not metrics:
            raise UserError(f"{workdir / METRICS_FILE}: no step is logged yet; let the run reach its first logged step")
        for line in metrics:
            shapes.check_line(workdir / METRICS_FILE, line)
        names = ("config", "best", "summary", "audit")
        config, best, summary, audit = (shapes.read(workdir / f"{name}.json") for name in names)
        return cls(workdir, config, metrics, best, summary, audit, shapes.read_uses(workdir / "evaluated.jsonl"))

    @property
    def name(self) -> str:
        return self.workdir.resolve().name

    @property
    def metric(self) -> str:
        """`<evaluation>/<kind>/<rest>`, by which the step is chosen; empty where none is."""
        select = self.config.get("select")
        named = select.get("metric") if isinstance(select, dict) else ""
        return str(self.best.get("metric") or named or "")

    @property
    def train(self) -> list[dict[str, Any]]:
        """The training lines by rising step."""
        return sorted((line for line in self.metrics if line["split"] == "train"), key=lambda line: line["step"])

    @property
    def reached(self) -> int:
        """The last step that the run says it made: a killed run's summary is older than its metrics."""
        return max([self.summary.get("step", 0), *(line["step"] for line in self.metrics)])

    @property
    def synthetic(self) -> bool:
        """True where any store of the run says that it holds synthetic data."""
        return _says_synthetic(self.summary) or _says_synthetic(self.config)

    @property
    def chance_loss(self) -> float:
        """ln(batch): the InfoNCE loss, in nats, of a model that cannot tell the pairs of a batch apart."""
        return chance.loss(self.config["batch_size"])

    def train_values(self, name: str) -> list[float]:
        return [value for line in self.train if (value := number(line.get(name))) is not None]

    def last(self, name: str) -> float | None:
        """The summary's value of that name, else the last logged one of training."""
        value, values = number(self.summary.get(name)), self.train_values(name)
        return value if value is not None or not values else values[-1]

    def final_losses(self) -> list[float]:
        """The last tenth of the logged losses (at least one), for one batch's is too noisy."""
        losses = self.train_values("loss")
        return losses[-max(len(losses) // 10, 1) :]

    def final_loss(self) -> float | None:
        """Mean of `final_losses`."""
        tail = self.final_losses()
        return sum(tail) / len(tail) if tail else None

    def at_chance(self) -> bool:
        """True where training has ended up at the chance loss, or above it."""
        return chance.reached(self.final_losses(), self.config["batch_size"])


def _says_synthetic(value: object) -> bool:
    if isinstance(value, dict):
        return value.get("synthetic") is True or any(map(_says_synthetic, value.values()))
    return isinstance(value, list) and any(map(_says_synthetic, value))
