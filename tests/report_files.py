"""Files such as runs and evaluations leave, for the tests of the report, and a page taken apart."""

from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import PIL.Image

from hybridclip_jax.logs import MetricsWriter

CHANCE = math.log(64)
LABELS = ("cardiomegaly", "pleural effusion left", "nodule")
WHY = "no positive image among the 40 that are known"
NASTY = "<script>alert('x')</script>&\"<img src=http://evil.example/a.png onerror=alert(1)>"


def make_run(
    workdir: Path, *, loss: float = 3.0, label: str = LABELS[0], finished: bool = True, synthetic: bool = True
) -> Path:
    """A run of 40 steps with two evaluations every 10, whose effusion label is undefined."""
    workdir.mkdir(parents=True)
    config: dict[str, Any] = {
        "steps": 40,
        "batch_size": 64,
        "model": {"image": {"arch": "dinov3_vitb16", "weights": ""}, "text": {"arch": "clip_text_b"}},
        "data": {"train": "stores/a:train", "mean": [0.48, 0.46, 0.41]},
        "evals": {
            "val": {"protocol": "chexzero", "data": "stores/a:val"},
            "other": {"protocol": "chexzero", "data": "stores/a:other"},
            "pairs": {"protocol": "retrieval-index", "data": "stores/a:val"},
        },
        "select": {"metric": "val/auroc/mean", "mode": "max"},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    writer = MetricsWriter(workdir, None)
    for step in range(1, 41):
        value = CHANCE + (loss - CHANCE) * step / 40
        writer.write(step, "train", {"loss": value, "pairs_per_s": 300.0 + step, "step_ms": 213.0, "mfu": None})
        if step % 10 == 0:
            aurocs = {label: 0.5 + step / 100, LABELS[1]: None, LABELS[2]: 0.61}
            values: dict[str, Any] = {f"auroc/{name}": auroc for name, auroc in aurocs.items()}
            values |= {f"auroc_why/{LABELS[1]}": WHY, "auroc/mean": 0.55 + step / 200, "auroc/n_labels": 2}
            recalls = {"recall_i2t/10": step / 100, "recall_i2t_lo/10": 0.05, "recall_i2t_hi/10": 0.45}
            writer.write(step, "eval/pairs", recalls | {"recall_i2t_chance/10": 0.25, "pairs/counted": 40})
            writer.write(step, "eval/val", values)
            sure = {"auroc_lo/nodule": 0.51, "auroc_hi/nodule": 0.71, "auroc_resamples/nodule": 998}
            sure |= {"auroc_lo/mean": 0.5 + step / 200, "auroc_hi/mean": 0.6 + step / 200}
            writer.write(step, "eval/other", values | sure)
    writer.close()
    use = {"when": "2026-11-20 10:00", "step": 30, "protocol": "chexzero", "data": "stores/a:test", "unit": "study"}
    (workdir / "evaluated.jsonl").write_text(
        "".join(json.dumps(use | {"values": {"auroc/mean": value}, "out": "out"}) + "\n" for value in (0.71, 0.72))
    )
    if finished:
        best = {
            "step": 30,
            "metric": "val/auroc/mean",
            "value": 0.7,
            "interval": [0.61, 0.79],
            "runner_up": {"step": 40, "value": 0.69, "interval": [0.6, 0.78]},
            "why": "the highest of 4 evaluations",
            "kept": [{"step": 30, "value": 0.7, "folder": "kept/step-30"}],
        }
        store = {"spec": "stores/a:train", "records": 12345, "patients": 678, "synthetic": synthetic}
        summary = {
            "step": 40,
            "steps": 40,
            "finished": True,
            "wall_s": 337.0,
            "pf_days_model": 0.0043,
            "pf_days_capacity": 0.0129,
            "mfu": 0.333,
            "parameters": {"image": {"count": 85_660_416, "trainable": 0}},
            "devices": {"kind": "NVIDIA H200", "count": 1, "mesh": {"data": 1, "fsdp": 1}},
            "data": {"train": store, "evals": {"val": store}},
            "versions": {"jax": "0.10.2"},
            "command": "python -m hybridclip_jax.main --config=configs/demo.py --workdir=runs/a",
            "attempts": 2,
            "synthetic": synthetic,
            "stopped_early": None,
            "eval_share": {"flops": 0.0123, "wall": 0.25},
            "estimate": {"pf_days": 0.005, "hours": 1.5},
            "evaluations": {"other": description("stores/a:other", [label, LABELS[2]], synthetic=synthetic)},
        }
        (workdir / "best.json").write_text(json.dumps(best))
        (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir


def description(data: str, labels: list[str], *, synthetic: bool = False, **more: Any) -> dict[str, Any]:
    """What Evaluator.describe() gives of a zero-shot evaluation."""
    return {
        "protocol": "chexzero",
        "data": data,
        "store_fingerprint": "f" * 64,
        "set": {"namespace": "chexpert", "format": "chexpert", "split": "test", "text": "report"},
        "unit": "study",
        "units": 500,
        "images": 668,
        "patients": 500,
        "fields": {"prompts": "chexzero"},
        "synthetic": synthetic,
        "notes": ["nodule has 7 positives: its interval is wide"],
        "meanings": {"mcc": "correlation of calls and truth", "auroc": "area under the ROC curve"},
        "labels": {label: {"positives": 7, "negatives": 489, "unknown": 4} for label in labels},
        "prompts": {
            "name": "chexzero",
            "version": "1",
            "sha256": "ab" * 32,
            "labels": {label: {"positive": [f"sign of {label}"], "negative": [f"no {label}"]} for label in labels},
        },
        **more,
    }


COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def make_evaluation(out: Path, *, note: str = "", synthetic: bool = False) -> Path:
    """The folder of an evaluation of two models against a third, with examples."""
    out.mkdir(parents=True)
    values: dict[str, Any] = {}
    for i, label in enumerate((*COMPETITION, "mean", "mean5")):
        middle = 0.7 + i / 50
        values |= {f"auroc/{label}": middle, f"auroc_lo/{label}": middle - 0.05, f"auroc_hi/{label}": middle + 0.05}
        values[f"auroc_resamples/{label}"] = 1000 - i
    values |= {"auroc/n_labels": 5, "mcc/mean5": 0.41, "mcc_lo/mean5": 0.35, "mcc_hi/mean5": 0.46}
    values |= {"auroc/Fracture": None, "auroc_why/Fracture": WHY}
    model = {
        "folder": "runs/a/best",
        "fingerprint": "0123456789abcdef",
        "run": "runs/a",
        "step": 30,
        "synthetic": False,
    }
    difference = {"value": 0.021, "low": -0.004, "high": 0.046, "p": 0.0004, "method": "DeLong", "resamples": None}
    lost = {"value": None, "low": None, "high": None, "p": None, "method": "DeLong", "why": WHY}
    body = {
        "format": 1,
        "evaluation": description("stores/a:test", [*COMPETITION, "Fracture"], synthetic=synthetic),
        "models": [model, model | {"folder": "runs/b/best", "step": 20}],
        "values": values,
        "each": [{"auroc/mean": 0.811, "auroc/mean5": 0.812}, {"auroc/mean": 0.821, "auroc/mean5": 0.822}],
        "against": {
            "models": [model | {"folder": "runs/c/best"}],
            "values": {"auroc/Edema": 0.739},
            "differences": {"auroc/Edema": difference, "auroc/Fracture": lost},
        },
        "curves": {
            label: {
                "false_positive_rate": [0.0, 0.1, 0.4, 1.0],
                "true_positive_rate": [0.0, 0.6, 0.8, 1.0],
                "positives": 7,
                "negatives": 489,
            }
            for label in COMPETITION
        },
        "checks": {"training": "no patient is shared with stores/a:train", "selection": "not checked: no run"},
        "chosen": "step 30 has the highest val/auroc/mean",
        "warnings": [note or "this store chose the step: its value is optimistic"],
        "used_before": [{"when": "2026-11-20 10:00", "model": "runs/a/best", "protocol": "chexzero"}],
        "versions": {"jax": "0.10.2"},
        "command": "hybridclip evaluate --model runs/a",
        "machine": {"system": "Linux", "cpus": 2, "devices": {"kind": "cpu", "count": 1}},
        "eval_s": 12.5,
        "synthetic": synthetic,
    }
    (out / "metrics.json").write_text(json.dumps(body))
    example = {"url": picture(), "score": 0.61, "truth": 1, "source_row": 1234}
    examples = {
        "format": 1,
        "about": "by rank",
        "labels": {"Edema": {"hits": [example] * 3, "misses": [example | {"truth": 0}]}},
    }
    (out / "examples.json").write_text(json.dumps(examples))
    return out


def picture() -> str:
    """A small grey picture as a data: URL."""
    file = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((128, 128)).save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


class Page(HTMLParser):
    """Every element with its attributes, the text of the page, and whether tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
