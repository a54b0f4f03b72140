"""What `evaluate` says on the terminal: the numbers of its page, in the same form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from report_files import WHY, make_evaluation

from hybridclip_jax.report import evaluation_terminal as terminal


@dataclasses.dataclass(frozen=True)
class Folder:
    folder: Path
    step: int | None = None
    why: str | None = None


def test_before_the_first_image_models_checks_and_earlier_uses_are_said_once() -> None:
    models = [Folder(Path("runs/a/best"), 1500, "the highest of 4"), Folder(Path("runs/b/best"), 2, "another reason")]
    checks = {"training": "no patient is shared", "selection": "not checked: no run", "other": "no patient is shared"}
    used = [{"when": "2026-11-20", "protocol": "chexzero"}] * 2
    said = terminal.before("stores/a:test", models, models[:1], checks, ["not checked: no run"], used)
    assert said.splitlines() == [
        "model    runs/a/best: step 1,500",
        "         runs/b/best: step 2",
        "against  runs/a/best: step 1,500; the highest of 4",
        "choice   no patient is shared",
        "used     stores/a:test was evaluated 2 times before with these runs, last on 2026-11-20 with chexzero: "
        "whatever was changed after looking makes it less of a test",
        "warning: not checked: no run",
    ]


def test_after_it_every_value_stands_with_its_interval_and_the_undefined_with_its_reason(tmp_path: Path) -> None:
    result = json.loads((make_evaluation(tmp_path / "out") / "metrics.json").read_text())
    result["values"] |= {"recall/10": 0.4, "recall_resamples/10": 900, "recall_chance/10": 0.01, "pairs/all": 4000}
    result["against"]["differences"]["far"] = {"value": 1234.5, "low": -1e4, "high": None, "p": None, "method": "x"}
    said = [" ".join(line.split()) for line in terminal.after(result).splitlines()]
    assert said[0] == "Protocol chexzero on stores/a:test: 500 studies (668 images) of 500 patients."
    for line in (
        "value 95 % interval valid resamples chance positives negatives",
        "auroc/Edema 0.760 0.710 to 0.810 997 0.500 7 489",
        "recall/10 0.400 n/a 900 0.010 - -",
        "pairs/all: 4,000",
        f"auroc/Fracture is undefined: {WHY}",
        "auroc/Edema +0.021 -0.004 to +0.046 < 0.001 DeLong",
        "auroc/Fracture n/a n/a - DeLong",
        "far +1,234 -1e+04 to n/a - x",
        "note: nodule has 7 positives: its interval is wide",
    ):
        assert line in said, line
    assert not [line for line in said if "ynthetic" in line]
    drawn = terminal.after(result | {"synthetic": True}).splitlines()[-1]
    assert drawn == "Synthetic data: drawn phantoms, not patients. No value here says anything about people."
