"""The page of an evaluation: true to the files, escaped, whole; and how values are read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report_files import NASTY, WHY, Page, make_evaluation

from hybridclip_jax import selection
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS, Preparation
from hybridclip_jax.report import evaluation, shapes
from hybridclip_jax.report.charts import roc_chart
from hybridclip_jax.report.fields import fault
from hybridclip_jax.report.scores import scores
from hybridclip_jax.report.values import COUNTS, Value, headline, kind_title, read, rest_title
from hybridclip_jax.report.words import moment


def page_of(out: Path, *, unverified: bool = False) -> Page:
    return Page(evaluation.render(out, unverified=unverified).read_text(encoding="utf-8"))


def change(path: Path, field: str, value: Any) -> None:
    body = node = json.loads(path.read_text())
    *before, last = field.split(".")
    for key in before:
        node = node[key]
    node[last] = value
    path.write_text(json.dumps(body))


# --- an evaluation


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    text = page_of(make_evaluation(tmp_path / "result")).text
    for said in (
        "result Protocol chexzero on stores/a:test: 500 studies (668 images) of 500 patients.",
        "this store chose the step: its value is optimistic",
        "0.820 AUROC, mean of the five competition labels, 0.770 to 0.870",
        "2 models, their mean",
        "The values are of the mean of these models' scores.",
        "runs/b/best 20 0123456789ab 0.821 0.822",
        "Chosen: step 30 has the highest val/auroc/mean.",
        "training no patient is shared with stores/a:train",
        "selection not checked: no run",
        "this store with these runs 1 time before (chexzero 1), last 2026-11-20 10:00",
        "Edema 0.760 0.710 to 0.810 997 7 of 496",
        "mean of 5 0.800 0.750 to 0.850 995",
        f"Fracture n/a {WHY} 7 of 496",
        "mean of the five competition labels 0.410 0.350 to 0.460",
        "auroc/Edema +0.021 -0.004 to +0.046 < 0.001 0.760 0.739 DeLong",
        f"auroc/Fracture n/a {WHY} n/a n/a DeLong",
        "Chance: 0.5. Area under the ROC curve.",
        "Intervals and two-sided p are not corrected for the 2 comparisons in this table.",
        "AUROC 0.760; 7 positive, 489 negative",
        "Edema positive sign of Edema",
        "negative no Edema",
        "sha256 of the file: abababababab...",
        "positive, score 0.610, row 1,234",
        "negative, score 0.610, row 1,234",
        "devices.kind cpu",
        "jax 0.10.2",
        "time 12",
        "hybridclip evaluate --model runs/a",
    ):
        assert said in text, said
    assert "Synthetic" not in text
    assert "Synthetic data" in page_of(make_evaluation(tmp_path / "phantoms", synthetic=True)).text


def test_what_is_synthetic_is_named(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "out")
    for i in range(2):
        change(out / "metrics.json", "synthetic", True)
        body = json.loads((out / "metrics.json").read_text())
        body["models"][i]["synthetic"] = True
        (out / "metrics.json").write_text(json.dumps(body))
        text = page_of(out).text
        said = f"Synthetic model: {i + 1} of the 3 models were made with drawn phantoms, not patients. No"
        assert said in text
        assert "Synthetic data" not in text
    change(out / "metrics.json", "evaluation.synthetic", True)
    assert "Synthetic data: drawn phantoms, not patients. No number" in page_of(out).text


def test_thresholds_are_said_beside_what_they_decide(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "out")
    said = "The threshold of each label is the one with the largest MCC on stores/a:val."
    assert said not in page_of(out).text
    change(out / "metrics.json", "evaluation.validation", {"data": "stores/a:val"})
    assert page_of(out).text.count(f"Correlation of calls and truth. {said}") == 1


def test_the_page_holds_its_pictures_and_nothing_else_is_loaded_or_run(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "<b>out", note=NASTY)
    body = json.loads((out / "metrics.json").read_text())
    body |= {"command": NASTY, "versions": {NASTY: NASTY}, "checks": {NASTY: NASTY}, "machine": {NASTY: [NASTY]}}
    body["evaluation"] |= {"notes": [NASTY], "more": {NASTY: NASTY}, "prompts": {"labels": {NASTY: {NASTY: [NASTY]}}}}
    body["values"] |= {f"auroc/{NASTY}": 0.5, f"auroc_lo/{NASTY}": 0.4, f"auroc_hi/{NASTY}": 0.6}
    (out / "metrics.json").write_text(json.dumps(body))
    html = evaluation.render(out).read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.count("<script>alert('x')</script>") >= 9, "shown as the text it is"
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    sources = [attributes["src"] or "" for _, attributes in page.elements if "src" in attributes]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "style")], tag
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.endswith("; img-src data:")
    (out / "examples.json").unlink()
    assert "img-src" not in evaluation.render(out).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "url", ["http://evil.example/a.png", "data:text/html;base64,AAAA", "data:image/png;base64,<b>"]
)
def test_a_picture_from_elsewhere_is_refused(tmp_path: Path, url: str) -> None:
    out = make_evaluation(tmp_path / "out")
    change(out / "examples.json", "labels.Edema.misses", [{"url": url, "score": 0.5, "truth": 0, "source_row": 1}])
    said = r"examples\.json: labels\.Edema\.misses\[0\]\.url is .*; it must be an image as a data: URL; delete it"
    with pytest.raises(UserError, match=said):
        evaluation.render(out)


def test_an_evaluation_of_one_model_alone_has_a_page(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "out")
    body = json.loads((out / "metrics.json").read_text())
    least = {"evaluation": {"protocol": "loss", "data": "stores/a:test"}, "models": body["models"][:1], "values": {}}
    (out / "metrics.json").write_text(json.dumps(least))
    (out / "examples.json").unlink()
    text = page_of(out).text
    assert "The model" in text
    assert "never before, as far as the runs' folders know" in text
    assert "The command was not recorded." in text


def fields_of(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON object, of a list those of its first item."""
    inner = body.items() if isinstance(body, dict) else enumerate(body[:1]) if isinstance(body, list) else ()
    return [*([path] if path else []), *(found for key, value in inner for found in fields_of(value, (*path, key)))]


@pytest.mark.parametrize("file", ["metrics.json", "examples.json"])
def test_nonsense_in_any_field_ends_in_a_page_or_in_one_line(tmp_path: Path, file: str) -> None:
    out = make_evaluation(tmp_path / "out")
    good = json.loads((out / file).read_text())
    if file == "metrics.json":
        good["curves"] = {"Edema": good["curves"]["Edema"]}
        good["values"] = {name: value for name, value in good["values"].items() if "Edema" in name or "Frac" in name}
        (out / "examples.json").unlink()
    refused = 0
    for path in fields_of(good):
        for value in ("absent", None, True, "x", "\udc00", -1, math.nan, 10**400, [["x"]], {"x": 1}):
            body = node = json.loads(json.dumps(good))
            for key in path[:-1]:
                node = node[key]
            if value == "absent" and isinstance(node, dict):
                del node[path[-1]]
            else:
                node[path[-1]] = value
            (out / file).write_text(json.dumps(body))
            try:
                evaluation.render(out)
            except UserError as error:
                assert str(error).startswith(f"{out / file}: "), (path, value)
                assert "\n" not in str(error), (path, value)
                refused += 1
    assert refused > 50


def test_a_folder_without_an_evaluation_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no evaluation's folder \(no metrics\.json\); give the --out"):
        evaluation.render(tmp_path)


# --- values


def test_what_stands_beside_a_value_is_read_with_it() -> None:
    line = {
        "step": 3,
        "eval_s": 1.5,
        "recall_i2t/10": 0.4,
        "recall_i2t_lo/10": 0.3,
        "recall_i2t_hi/10": 0.5,
        "recall_i2t_resamples/10": 990,
        "recall_i2t_chance/10": 0.01,
        "auroc_why/Edema": "none",
        "why_not/x": 7,
        "backwards/bare": 2,
        "backwards_labels/bare": "Edema, Nodule",
        "f1/Edema": 0.3,
        "f1_interval_why/Edema": "all units are of one patient",
    }
    assert shapes.values_fault(line) == ""
    assert read(line) == [
        Value("recall_i2t", "10", 0.4, 0.3, 0.5, 990, 0.01),
        Value("auroc", "Edema", None, chance=0.5, why="none"),
        Value("why_not", "x", 7),
        Value("backwards", "bare", 2, why="Edema, Nodule"),
        Value("f1", "Edema", 0.3, why="all units are of one patient"),
    ]


def test_the_headline_is_the_summary_or_what_is_sure() -> None:
    count, sure = Value("f1", "a", 7), Value("f1", "b", 0.2, 0.1, 0.3, 1000)
    weighted, mean = Value("f1", "weighted", 0.15, resamples=1000), Value("accuracy", "mean", None, resamples=0)
    assert headline([count, sure, weighted, mean]) == [mean, weighted]
    assert headline([count, sure, weighted]) == [sure, weighted]
    assert headline([count]) == [count]
    assert headline([Value("auroc", "a", 0.5), Value("auroc", "mean", 0.6)]) == [Value("auroc", "mean", 0.6)]
    assert headline([]) == []


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("auroc", "AUROC"),
        ("recall_i2t", "recall, image to text"),
        ("median_rank_t2i", "median rank, text to image"),
        ("negation_cosine", "negation cosine"),
        ("probe_auroc@0.1", "AUROC of a linear probe, fitted on 0.1 of the training patients"),
    ],
)
def test_kinds_are_said_in_words(kind: str, title: str) -> None:
    assert kind_title(kind) == title


NEED_MORE = {"linear-probe", "plip-linear", "plip-zeroshot", "chexpert5x200-gloria", "chexpert5x200-cxrclip"}


@pytest.mark.parametrize("protocol", sorted(EVALUATORS.keys() - NEED_MORE))
def test_what_an_evaluator_says_of_itself_can_be_shown(protocol: str, phantom_store: Path) -> None:
    entry = {"protocol": protocol, "data": f"{phantom_store}:train"}
    evaluator = EVALUATORS[protocol]("name", entry, Preparation(Tokenizer(), 77, 32))
    info, values = json.loads(json.dumps(evaluator.describe())), evaluator.at_chance()
    assert fault(info, shapes.DESCRIPTION) == ""
    assert shapes.values_fault(values) == ""
    text = Page(scores(values, info)).text
    assert "No published result stands beside drawn phantoms." in text
    scored = evaluator.score(evaluator.blank())
    assert headline(read(scored))[0].name == selection.headline(scored), "main and the report show the same"
    shown = [rest_title(value, None) for value in read(values) if value.rest != COUNTS]
    assert shown and all(title in text for title in shown)


def test_a_roc_curve_stands_where_its_points_put_it() -> None:
    svg = roc_chart([0.0, 0.25, 1.0], [0.0, 1.0, 1.0], title="t")
    (path,) = re.findall(r'd="M([^"]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in point.split()] for point in path.split("L"))
    assert math.isclose(x1 - x0, (x2 - x0) / 4, abs_tol=0.11)
    assert y1 == y2 < y0
    chance = re.search(r'x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)" class="reference"', svg)
    assert chance is not None
    assert [float(value) for value in chance.groups()] == [x0, x2, y0, y2]


@pytest.mark.parametrize("when", ["2026-11-20T10:00:07+00:00", "2026-11-20T10:00:07.012345+00:00"])
def test_a_moment_is_said_to_the_second(when: str) -> None:
    assert moment(when) == "2026-11-20 10:00:07\N{NO-BREAK SPACE}UTC"
