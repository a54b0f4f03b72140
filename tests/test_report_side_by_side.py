"""Several runs on one page, and the command that writes all pages."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_files import Page, make_evaluation, make_run

from hybridclip_jax.commands import report as command
from hybridclip_jax.errors import UserError
from hybridclip_jax.report import side_by_side
from hybridclip_jax.report.charts import run_style


def change(path: Path, field: str, value: Any) -> None:
    body = node = json.loads(path.read_text())
    *before, last = field.split(".")
    for key in before:
        node = node[key]
    node[last] = value
    path.write_text(json.dumps(body))


def two_runs(folder: Path) -> list[Path]:
    runs = [make_run(folder / "a"), make_run(folder / "b", loss=2.0, synthetic=False)]
    change(runs[1] / "config.json", "data.mean", [0.5, 0.5, 0.5])
    change(runs[1] / "config.json", "seed", 1)
    return runs


def test_runs_side_by_side_show_what_differs_and_what_came_of_it(tmp_path: Path) -> None:
    html = side_by_side.render(two_runs(tmp_path), tmp_path / "both.html").read_text(encoding="utf-8")
    text = Page(html).text
    for said in (
        "2 runs side by side a, b",
        "Synthetic data: drawn phantoms, not patients, in a.",
        "Settings that differ setting a b data.mean [0.48, 0.46, 0.41] [0.5, 0.5, 0.5] seed not set 1",
        "a synthetic phantoms val/ auroc/ mean 0.700 0.610 to 0.790 30 40",
        "other a b AUROC, cardiomegaly 0.800 0.800",
        "AUROC, mean 0.700 0.650 to 0.750 0.700 0.650 to 0.750",
        "recall, image to text, among the first 10 0.300 0.050 to 0.450",
    ):
        assert said in text, said
    assert "do not compare" not in text
    assert len(re.findall(r'class="curve run1"', html)) == 2 * 2, "loss and metric, each with its key"


def test_runs_that_do_not_compare_say_so(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    change(runs[1] / "config.json", "evals.val.data", "stores/b:val")
    change(runs[1] / "summary.json", "evaluations.other.store_fingerprint", "e" * 64)
    change(runs[1] / "config.json", "batch_size", 128)
    text = Page(side_by_side.page([side_by_side.Run.read(run) for run in runs])).text
    assert "Evaluation val is not of the same store in each run: its values do not compare." in text
    assert "Evaluation other is not of the same store in each run" in text
    assert "Evaluation pairs" not in text
    assert "The runs' batches differ, and so does the level of chance: the losses do not compare." in text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("protocol", "chexzero-compat", "protocol"),
        ("unit", "image", "unit"),
        ("set.split", "val", "split"),
        ("fields", {"prompts": "mine.json", "validation": "stores/a:val"}, "fields"),
        ("labels", {"nodule": {"positives": 7, "negatives": 489}}, "labels"),
        ("prompts.sha256", "cd" * 32, "prompts"),
        ("prompts", [{"sha256": "ab" * 32}, {"sha256": "cd" * 32}], "prompts"),
        ("fields", {"prompts": "a copy of the same file"}, ""),
        ("notes", [], ""),
        ("data", "/elsewhere/a:other", ""),
    ],
)
def test_evaluations_compare_only_where_all_that_shapes_a_value_is_the_same(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    runs = two_runs(tmp_path)
    change(runs[1] / "summary.json", f"evaluations.other.{field}", value)
    text = Page(side_by_side.page([side_by_side.Run.read(run) for run in runs])).text
    if said:
        assert f"Evaluation other is not of the same {said} in each run: its values do not compare." in text
    else:
        assert "do not compare" not in text


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run") for place in "ab"]
    text = Page(side_by_side.page([side_by_side.Run.read(run) for run in runs])).text
    assert f"{tmp_path}/a/run, {tmp_path}/b/run" in text
    assert "All 15 settings are the same." in text


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_command_takes_runs_and_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "a"), make_evaluation(tmp_path / "out")
    command.run(arguments(run, out, "--unverified"))
    assert capsys.readouterr().out.split() == [str(run / "report.html"), str(out / "report.html")]
    assert "CheXzero, ensemble" in Page((out / "report.html").read_text()).text
    with pytest.raises(UserError, match=r"--out x\.html: is for the page of several runs side by side; .* leave --out"):
        command.run(arguments(run, out, out, "--out", "x.html"))
    with pytest.raises(UserError, match="give the --workdir of a run, or the --out of an evaluation"):
        command.run(arguments(tmp_path))


def test_the_page_of_several_never_replaces_one_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    monkeypatch.chdir(runs[0])
    with pytest.raises(UserError, match=r"--out report\.html: is the page of one of them"):
        command.run(arguments(".", "../b"))
    for out in (tmp_path, tmp_path / "none" / "x.html"):
        with pytest.raises(UserError, match=f"--out {re.escape(str(out))}: name a file in a folder that exists"):
            command.run(arguments(*runs, "--out", out))
    config = (runs[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.json: must end in \.html"):
        command.run(arguments(*runs, "--out", runs[0] / "config.json"))
    assert (runs[0] / "config.json").read_bytes() == config
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    command.run(arguments("a", "b"))
    assert capsys.readouterr().out.split() == ["a/report.html", "b/report.html", "report.html"]


def test_a_folder_whose_name_is_no_utf8_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b\udcff")]
    out = make_evaluation(tmp_path / "out\udcff")
    command.run(arguments(*runs, out, "--out", tmp_path / "both.html"))
    assert r"b\udcff/report.html" in capsys.readouterr().out
    assert r"a, b\udcff" in Page((tmp_path / "both.html").read_text()).text


def test_more_runs_than_colours_are_told_apart() -> None:
    assert len({run_style(place) for place in range(12)}) == 12
