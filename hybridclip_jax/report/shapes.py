"""What the files of runs and evaluations must hold before a page is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridclip_jax.errors import UserError
from hybridclip_jax.report.fields import (
    COUNT,
    FLAG,
    INTERVAL,
    LIST,
    NUMBER,
    NUMBERS,
    OBJECT,
    PICTURE,
    TEXT,
    TEXTS,
    WHOLE,
    Each,
    Items,
    Maybe,
    Shape,
    fault,
    shown,
)

CONFIG: Shape = {
    "steps": COUNT,
    "batch_size": COUNT,
    "model": {"image": {"arch": TEXT}, "text": {"arch": TEXT}},
    "data": {"train": TEXT},
    "evals": Each({"protocol": TEXT, "data": TEXT}),
}
BEST: Shape = {
    "step": WHOLE,
    "metric": TEXT,
    "value": NUMBER,
    "interval": Maybe(INTERVAL),
    "runner_up": Maybe({"step": WHOLE, "value": NUMBER, "interval": Maybe(INTERVAL)}),
    "why": Maybe(TEXT),
    "kept": Maybe(Items({"step": WHOLE, "value": NUMBER, "folder": Maybe(TEXT)})),
}
# Evaluator.describe(): each protocol adds its own to it, which is printed as it stands.
DESCRIPTION: Shape = {
    "protocol": TEXT,
    "data": TEXT,
    "unit": Maybe(TEXT),
    **dict.fromkeys(("units", "images", "patients"), Maybe(WHOLE)),
    "set": Maybe(OBJECT),
    "labels": Maybe(Each({"positives": WHOLE, "negatives": WHOLE})),
    "synthetic": Maybe(FLAG),
    "notes": Maybe(TEXTS),
    "meanings": Maybe(Each(TEXT)),
}
STORE = Maybe({"spec": TEXT, "records": Maybe(WHOLE), "patients": Maybe(WHOLE), "synthetic": Maybe(FLAG)})
SUMMARY: Shape = {
    "step": WHOLE,
    "finished": FLAG,
    "exit": Maybe(TEXT),
    "wall_s": Maybe(NUMBER),
    "pairs_per_s": Maybe(NUMBER),
    "pf_days_model": Maybe(NUMBER),
    "pf_days_capacity": Maybe(NUMBER),
    "mfu": Maybe(NUMBER),
    "attempts": Maybe(WHOLE),
    "parameters": Maybe(Each({"count": WHOLE, "trainable": WHOLE})),
    "devices": Maybe({"kind": TEXT, "count": WHOLE}),
    "data": Maybe({"train": STORE, "evals": Maybe(Each(STORE))}),
    "versions": Maybe(Each(TEXT)),
    "command": Maybe(TEXT),
    "warnings": Maybe(TEXTS),
    "stopped_early": Maybe(TEXT),
    "estimate": Maybe({"pf_days": NUMBER, "hours": Maybe(NUMBER)}),
    "eval_share": Maybe({"flops": Maybe(NUMBER), "wall": Maybe(NUMBER)}),
    "evaluations": Maybe(Each(DESCRIPTION)),
}
# What the page shows of an audit; it holds more.
AUDIT: Shape = {
    "splits": Items(
        {
            "name": TEXT,
            "records": WHOLE,
            "studies": WHOLE,
            "patients": WHOLE,
            "patients_known": FLAG,
            "tokens": {"median": NUMBER, "beyond": Each(WHOLE)},
            "images": {"distinct": WHOLE, "constant": LIST, "duplicates": LIST},
            "texts": {"without": WHOLE, "studies_with_a_repeated_text": WHOLE},
            "near_copies": Maybe(LIST),
        }
    ),
    "pairs": Items(
        {
            "a": TEXT,
            "b": TEXT,
            **dict.fromkeys(("patients", "studies", "images"), Maybe(WHOLE)),
            **dict.fromkeys(("ids_why", "images_why"), Maybe(TEXT)),
            "texts": WHOLE,
            "near_copies": Maybe(LIST),
        }
    ),
    "problems": TEXTS,
}
# Of a line of metrics.jsonl what the report reads. A value `<kind>/<rest>` is a number, what stands
# beside it as `<kind>_why/<rest>` or `<kind>_labels/<rest>` text.
LINE: Mapping[str, Shape] = {
    "step": WHOLE,
    "split": TEXT,
    **dict.fromkeys(("loss", "wall_s", "pairs_per_s", "step_ms", "input_wait_ms"), Maybe(NUMBER)),
    **dict.fromkeys(("tflops", "mfu", "pf_days_model", "pf_days_capacity"), Maybe(NUMBER)),
}
# A line of evaluated.jsonl: one use of the run by `evaluate`.
USE: Shape = {
    "when": TEXT,
    "protocol": TEXT,
    "data": TEXT,
    "step": Maybe(WHOLE),
    "steps": Maybe(Items(Maybe(WHOLE))),
    "unit": Maybe(TEXT),
    "values": Maybe(OBJECT),
    "out": Maybe(TEXT),
}
MODEL: Shape = {
    "folder": TEXT,
    **dict.fromkeys(("fingerprint", "run", "why"), Maybe(TEXT)),
    "step": Maybe(WHOLE),
    "synthetic": Maybe(FLAG),
}
MODELS = Items(MODEL)
DIFFERENCE: Shape = {
    **dict.fromkeys(("value", "low", "high", "p"), Maybe(NUMBER)),
    "method": Maybe(TEXT),
    "resamples": Maybe(WHOLE),
}
CURVE: Shape = {
    "false_positive_rate": NUMBERS,
    "true_positive_rate": NUMBERS,
    **dict.fromkeys(("positives", "negatives"), Maybe(WHOLE)),
}
EVALUATION: Shape = {
    "evaluation": DESCRIPTION,
    "models": MODELS,
    "values": OBJECT,
    "each": Maybe(Items(OBJECT)),
    "against": Maybe({"models": MODELS, "values": OBJECT, "differences": Each(DIFFERENCE)}),
    "curves": Maybe(Each(CURVE)),
    "checks": Maybe(OBJECT),
    "chosen": Maybe(TEXT),
    "warnings": Maybe(TEXTS),
    "used_before": Maybe(Items({"when": TEXT, "model": Maybe(TEXT), "protocol": Maybe(TEXT)})),
    "versions": Maybe(Each(TEXT)),
    "command": Maybe(TEXT),
    "machine": Maybe(OBJECT),
    "eval_s": Maybe(NUMBER),
    "synthetic": Maybe(FLAG),
}
EXAMPLE = Items({"url": PICTURE, "score": NUMBER, "truth": NUMBER, "source_row": WHOLE})
EXAMPLES: Shape = {"about": Maybe(TEXT), "labels": Each({"hits": EXAMPLE, "misses": EXAMPLE})}
# By file: its shape, and what to do where the file does not have it.
WRITTEN_AT_START = "restore it, or delete it and give the command that trains once more, which writes it"
FILES = {
    "config.json": (CONFIG, "restore it, or train anew in another --workdir"),
    "best.json": (BEST, "restore it, or delete it: the report then shows the last evaluation"),
    "summary.json": (SUMMARY, WRITTEN_AT_START),
    "audit.json": (AUDIT, WRITTEN_AT_START),
    "metrics.json": (EVALUATION, "evaluate again into another --out"),
    "examples.json": (EXAMPLES, "delete it, or evaluate again into another --out"),
}


def read(path: Path) -> dict[str, Any]:
    """The object in one of FILES; empty where there is no such file. Raises UserError naming file and field."""
    if not path.is_file():
        return {}
    shape, remedy = FILES[path.name]
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    wrong = fault(body, shape)
    for part in _values(body) if not wrong else ():
        wrong = wrong or values_fault(part)
    if wrong:
        raise UserError(f"{path}: {wrong}; {remedy}")
    return body


def read_uses(path: Path) -> list[dict[str, Any]]:
    """The lines of an evaluated.jsonl; none where there is no such file. Raises UserError naming the line."""
    if not path.is_file():
        return []
    uses = []
    for i, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            use = json.loads(text)
        except (ValueError, RecursionError):
            continue  # torn by a crash
        if wrong := fault(use, USE) or values_fault(use.get("values") or {}):
            raise UserError(f"{path} line {i}: {wrong}; delete that line")
        uses.append(use)
    return uses


def _values(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects in a file that hold values by public name."""
    if "evaluation" not in body:
        return []
    return [body["values"], *(body.get("each") or ()), (body.get("against") or {}).get("values") or {}]


def values_fault(values: Mapping[str, Any]) -> str:
    """The first value by public name that is not of its kind, in words; empty where each is."""
    named = {name: value for name, value in values.items() if "/" in name}
    kinds = {name: Maybe(TEXT if name.partition("/")[0].endswith(("_why", "_labels")) else NUMBER) for name in named}
    return fault(named, kinds)


def check_line(path: Path, line: Mapping[str, Any]) -> None:
    """Raises UserError where a line of metrics.jsonl has a value that is not of its kind."""
    if wrong := fault(line, {name: kind for name, kind in LINE.items() if name in line}) or values_fault(line):
        where = f"step {shown(line['step'])}, split {shown(line['split'])}"
        raise UserError(f"{path}: the line of {where}: {wrong}; delete that line")
