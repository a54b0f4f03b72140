"""The page and the closing table: true to the files, escaped, whole at phone and desktop widths."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report_files import CHANCE, NASTY, WHY, Page, make_run

from hybridclip_jax.commands import report as command
from hybridclip_jax.errors import StorageError, UserError, run_or_exit
from hybridclip_jax.logs import read_metrics
from hybridclip_jax.report import end_table, render
from hybridclip_jax.report.audit import share
from hybridclip_jax.report.charts import Series, bar_chart, line_chart, thin, ticks


def page_of(workdir: Path) -> Page:
    return Page(render(workdir).read_text(encoding="utf-8"))


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "run-a")).text
    for said in (
        "run-a",
        "chance: ln 64 = 4.159",
        "chance: 0.5",
        "chosen: 30",
        "Step 30: val/auroc/mean = 0.7000, interval 0.610 to 0.790.",
        "The highest of 4 evaluations.",
        "Kept, the best first: steps 30 (0.700).",
        "Evaluations at step 30",
        "cardiomegaly 0.800",
        "nodule 0.610 0.510 to 0.710 998 7 of 496",
        "mean of 2 0.700 0.650 to 0.750",
        "10 0.300 0.050 to 0.450",
        "Chance: 0.25.",
        "Protocol chexzero on stores/a:other: 500 studies (668 images) of 500 patients.",
        "nodule has 7 positives: its interval is wide",
        "nodule negative no nodule",
        "PF-days against the estimate 0.0043 of 0.005 (86%)",
        "wall time by the estimate 1 h 30 min",
        "evaluation, of the time of all attempts 25.0% evaluation, of all FLOPs 1.2%",
        "Used more than once: stores/a:test 2 times.",
        "mean of 2 0.700",
        "12,345 678",
        "PF-days of model work 0.0043",
        "PF-days of device capacity used 0.0129",
        "33.3%",
        "5 min 37 s",
        "320.5 (median)",
        "213 ms (median)",
        "85,660,416 0",
        "jax 0.10.2",
        "data.mean [0.48, 0.46, 0.41]",
        "python -m hybridclip_jax.main --config=configs/demo.py --workdir=runs/a",
    ):
        assert said in text, said
    assert "not finished" not in text
    assert "at chance:" not in text


def test_an_estimate_that_was_not_made_is_not_compared_with(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    set_field(workdir, "summary.json", ("estimate", "hours"), None)
    assert "wall time by the estimate not known" in page_of(workdir).text
    set_field(workdir, "summary.json", ("estimate",), None)
    assert "PF-days against the estimate not recorded" in page_of(workdir).text


def test_a_use_of_an_ensemble_names_the_steps_of_all_its_members(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    set_field(workdir, "evaluated.jsonl", ("steps",), [30, 2000, None, 30])
    assert "2026-11-20 10:00 30, 2,000 chexzero stores/a:test auroc/mean 0.720" in page_of(workdir).text


def test_an_early_stop_and_a_choice_without_a_reason_are_said(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    assert "Runner-up" not in page_of(workdir).text, "the reason names it"
    set_field(workdir, "best.json", ("why",), None)
    set_field(workdir, "summary.json", ("stopped_early",), "stopped early at step 40: no better val/auroc/mean")
    text = page_of(workdir).text
    assert "No reason was recorded. Stopped early at step 40: no better val/auroc/mean." in text
    early = "the best; stopped early at step 40: no better val/auroc/mean"
    set_field(workdir, "best.json", ("why",), early)
    assert page_of(workdir).text.lower().count("stopped early") == 1, "the reason says it"
    set_field(workdir, "best.json", ("why",), None)
    text = page_of(workdir).text
    assert "Runner-up: step 40, 0.6900, interval 0.600 to 0.780." in text


def test_an_undefined_auroc_is_shown_with_its_reason_and_never_as_a_number(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "run")).text
    assert text.count(f"pleural effusion left n/a {WHY}") == 2, "once for each evaluation"


def test_everything_is_escaped_and_nothing_is_loaded_or_run(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "<b>run & co", label=NASTY)
    for file in ("config.json", "best.json", "summary.json"):
        content = json.loads((workdir / file).read_text())
        content |= {"why": NASTY, "command": NASTY, "exit": NASTY, "finished": False}
        content["versions"] = {NASTY: NASTY}
        content["note"] = {NASTY: [NASTY]}
        (workdir / file).write_text(json.dumps(content))
    metrics = workdir / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"eval/other"', json.dumps(f"eval/{NASTY}")))
    html = render(workdir).read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.count("<script>alert('x')</script>") >= 8, "shown as the text it is"
    assert "<b>run & co" in page.text
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "img", "link", "iframe", "object", "embed", "b>run", "base", "form"}
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "href", "style")], tag
    assert not re.search(r"url\(|@import|src=\"", re.sub(r"&[a-z0-9#]+;", "", html.split("</style>")[0]))
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_synthetic_data_is_said_wherever_a_file_says_it(tmp_path: Path) -> None:
    banner = "Synthetic data: drawn phantoms, not patients."
    assert banner in page_of(make_run(tmp_path / "phantoms")).text
    real = make_run(tmp_path / "real", synthetic=False)
    assert "Synthetic" not in page_of(real).text
    config = json.loads((real / "config.json").read_text())
    config["evals"]["val"]["synthetic"] = True
    (real / "config.json").write_text(json.dumps(config))
    assert banner in page_of(real).text


@pytest.mark.parametrize(("loss", "stuck"), [(4.164, True), (4.15, True), (4.0, False)])
def test_a_loss_at_chance_is_said_aloud(tmp_path: Path, loss: float, stuck: bool) -> None:
    text = page_of(make_run(tmp_path / "run", loss=loss)).text
    assert ("The loss is at chance" in text) is stuck


def test_a_run_without_summary_or_choice_still_has_a_page(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", finished=False)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "split": "tr')
    (workdir / "summary.json").write_text('{"step": 20, "finished": false, "exit": "asked to stop"}')
    assert "This run is not finished: step 40 of 40: asked to stop." in page_of(workdir).text
    (workdir / "summary.json").unlink()
    text = page_of(workdir).text
    assert "This run is not finished: step 40 of 40." in text
    assert "No step has been chosen yet" in text
    assert "Evaluations at step 40" in text
    assert "The command was not recorded" in text


def audit_of(*names: str) -> dict[str, Any]:
    """What the page shows of an audit of splits with three copies and a shared text."""
    where = {"record": 4, "source_row": 5}
    split = {
        "records": 200,
        "studies": 150,
        "patients": 90,
        "patients_known": True,
        "tokens": {"median": 61.0, "beyond": {"77": 30, "128": 0}},
        "images": {"distinct": 197, "constant": [where], "duplicates": [[where] * 3, [where] * 2]},
        "texts": {"without": 0, "studies_with_a_repeated_text": 12},
        "near_copies": None,
    }
    pair = {
        "a": names[0],
        "b": names[-1],
        "patients": None,
        "studies": None,
        "ids_why": "not comparable by id: different namespaces",
        "images": 0,
        "images_why": None,
        "texts": 7,
        "near_copies": None,
    }
    return {"splits": [split | {"name": name} for name in names], "pairs": [pair], "problems": []}


def test_the_audit_of_a_run_is_in_its_page(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    assert "repeated text" not in page_of(workdir).text
    (workdir / "audit.json").write_text(json.dumps(audit_of("stores/a:train", "stores/b:val")))
    text = page_of(workdir).text
    assert "stores/a:train 200 150 90 3 1 not looked for 0 12 61 15.0% 0%" in text
    both = "stores/a:train and stores/b:val"
    assert f"{both} not comparable not comparable 0 not looked for 7" in text
    assert f"not comparable by id: different namespaces: {both}." in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"splits": {}}, "splits is {}; it must be a list"),
        ({"splits": [{"name": 3}]}, "splits[0].name is 3; it must be text"),
        ({"problems": None}, "problems is null; it must be a list of texts"),
    ],
)
def test_a_damaged_audit_is_the_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    workdir = make_run(tmp_path / "run")
    (workdir / "audit.json").write_text(json.dumps(audit_of("a", "b") | change))
    assert f"audit.json: {said}; restore it, or delete it" in refusal(workdir, capsys)


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 9, "0%"), (9, 9, "100%"), (1, 9999, "0.1%"), (9998, 9999, "99.9%"), (1, 8, "12.5%"), (0, 0, "0%")],
)
def test_a_share_is_0_or_100_only_where_it_is(part: int, whole: int, shown: str) -> None:
    assert share(part, whole) == shown


def test_bars_stand_as_high_as_their_counts() -> None:
    svg = bar_chart([0, 16, 32], [10, 0, 5], title="t", x_label="tokens")
    heights = numbers(r"v-?([\d.]+)h", svg)
    assert heights[0] == 2 * heights[2] > heights[1] == 0
    assert "<title>0 to 15: 10</title>" in svg
    assert "<title>32 and more: 5</title>" in svg
    assert "<svg" in bar_chart([0, 1], [0, 0], title="t", x_label="x"), "no records, no division by zero"


def test_rendering_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    first = render(workdir).read_bytes()
    assert render(workdir).read_bytes() == first
    files = {"config.json", "evaluated.jsonl", "metrics.jsonl", "best.json", "summary.json", "report.html", "tb"}
    assert {path.name for path in workdir.iterdir()} == files


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "not a run's folder"),
        ("metrics.jsonl", None, "no such file; give the --workdir of a run"),
        ("metrics.jsonl", "", "no step is logged yet; let the run reach its first logged step"),
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "{}", "config.json: steps is missing; restore it, or train anew in another --workdir"),
        ("best.json", "[]", "best.json: holds no JSON object"),
        ("best.json", "{}", "best.json: step is missing; restore it, or delete it"),
        ("best.json", "\x00" * 80, "best.json: not JSON"),
        ("summary.json", "null", "summary.json: holds no JSON object"),
        ("summary.json", "9" * 5000, "summary.json: not JSON"),
    ],
)
def test_a_folder_without_a_run_is_the_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, said: str
) -> None:
    workdir = make_run(tmp_path / "run")
    if content is None:
        (workdir / file).unlink()
    else:
        (workdir / file).write_text(content)
    assert said in refusal(workdir, capsys)


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def refusal(workdir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of a run that it refuses."""
    assert run_or_exit(lambda: command.run(arguments(workdir))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


ABSENT = object()


def set_field(workdir: Path, file: str, path: tuple[Any, ...], value: Any) -> None:
    """Gives one field of a run's file another value, or takes it away; in metrics.jsonl, of its last line."""
    *before, last = (workdir / file).read_text().splitlines()
    body = node = json.loads(last)
    for key in path[:-1]:
        node = node[key]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    (workdir / file).write_text("\n".join([*before, json.dumps(body), ""]))


SLIPS = [
    ("config.json", "batch_size", "64", 'batch_size is "64"; it must be a whole number from 1 to 1e+100'),
    ("config.json", "batch_size", 0, "batch_size is 0; it must be a whole number"),
    ("config.json", "steps", 40.5, "steps is 40.5; it must be a whole number"),
    ("config.json", "steps", 10**400, "steps is 1000000"),
    ("config.json", "model", ["image"], 'model is ["image"]; it must be an object'),
    ("config.json", "model.image", "dinov3", 'model.image is "dinov3"; it must be an object'),
    ("config.json", "model.text.arch", ABSENT, "model.text.arch is missing"),
    ("config.json", "data", None, "data is null; it must be an object"),
    ("config.json", "evals", [], "evals is []; it must be an object"),
    ("config.json", "evals.val", "stores/a", 'evals.val is "stores/a"; it must be an object'),
    ("config.json", "note", "\ud83d", "holds half a character"),
    ("best.json", "step", "30", 'step is "30"; it must be a whole number'),
    ("best.json", "step", True, "step is true; it must be a whole number"),
    ("best.json", "value", ABSENT, "value is missing"),
    ("best.json", "value", "high", 'value is "high"; it must be a number'),
    ("best.json", "interval", [0.1], "interval is [0.1]; it must be two numbers"),
    ("best.json", "runner_up", "step 40", 'runner_up is "step 40"; it must be an object'),
    ("best.json", "runner_up.step", None, "runner_up.step is null; it must be a whole number"),
    ("best.json", "why", ["x" * 99], 'why is ["xxxxx'),
    ("summary.json", "step", [40], "step is [40]; it must be a whole number"),
    ("summary.json", "finished", "yes", 'finished is "yes"; it must be true or false'),
    ("summary.json", "wall_s", "5 min", 'wall_s is "5 min"; it must be a number'),
    ("summary.json", "devices", ["H200"], 'devices is ["H200"]; it must be an object'),
    ("summary.json", "versions", "0.10", 'versions is "0.10"; it must be an object'),
    ("summary.json", "parameters.image", 7, "parameters.image is 7; it must be an object"),
    ("summary.json", "data.train.synthetic", [], "data.train.synthetic is []; it must be true or false"),
    ("summary.json", "data.evals", [1], "data.evals is [1]; it must be an object"),
    ("summary.json", "command", ["python"], 'command is ["python"]; it must be text'),
    ("metrics.jsonl", "step", "40", 'the line of step "40", split "eval/other": step is "40"; it must be a whole'),
    ("metrics.jsonl", "step", -3, 'the line of step -3, split "eval/other": step is -3; it must be a whole'),
    ("metrics.jsonl", "split", ["train"], 'split ["train"]: split is ["train"]; it must be text'),
    ("metrics.jsonl", "auroc/mean", "0.7", 'auroc/mean is "0.7"; it must be a number'),
    ("metrics.jsonl", "auroc_why/nodule", {}, "auroc_why/nodule is {}; it must be text"),
    ("metrics.jsonl", "wall_s", 1e300, "wall_s is 1e+300; it must be a number, at most 1e+100; delete that line"),
]


@pytest.mark.parametrize(("file", "field", "value", "said"), SLIPS)
def test_a_slip_of_the_hand_is_named_by_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, field: str, value: Any, said: str
) -> None:
    workdir = make_run(tmp_path / "run")
    set_field(workdir, file, tuple(field.split(".")), value)
    error = refusal(workdir, capsys)
    assert error.startswith(f"error: {workdir / file}: ")
    assert said in error
    assert len(error) < len(str(workdir)) + 250


def fields_of(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON object, those that hold others too."""
    inner = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [*([path] if path else []), *(found for key, value in inner for found in fields_of(value, (*path, key)))]


@pytest.mark.parametrize("file", ["config.json", "best.json", "summary.json", "evaluated.jsonl", "metrics.jsonl"])
def test_nonsense_in_any_field_ends_in_a_page_or_in_one_line(tmp_path: Path, file: str) -> None:
    workdir = make_run(tmp_path / "run")
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[-4:]))  # the last step's: a page is made some thousand times
    good = (workdir / file).read_text()
    refused = 0
    for path in fields_of(json.loads(good.splitlines()[-1])):
        for value in (ABSENT, None, True, "x", "\udc00", -1, math.nan, 10**400, [["x"]], {"x": 1}):
            if file == "metrics.jsonl" and value is ABSENT:
                continue  # a last line without its step or split is a torn one, which every reader passes over
            set_field(workdir, file, path, value)
            try:
                render(workdir)
            except UserError as error:
                assert re.match(rf"{re.escape(str(workdir / file))}( line \d+)?: ", str(error)), (path, value)
                assert "\n" not in str(error), (path, value)
                refused += 1
            (workdir / file).write_text(good)
    assert refused > 20


def test_a_use_that_a_crash_tore_is_passed_over_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    uses = workdir / "evaluated.jsonl"
    uses.write_text('{"when": "2026-11' + uses.read_text())
    text = page_of(workdir).text
    assert "2026-11-20 10:00 30 chexzero stores/a:test auroc/mean 0.720" in text
    assert "Used more than once" not in text
    uses.write_text(uses.read_text() + '{"when": 3}\n')
    with pytest.raises(UserError, match=r"evaluated\.jsonl line 3: when is 3; it must be text; delete that line"):
        render(workdir)


def test_what_the_report_does_not_draw_may_be_anything(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    page = render(workdir).read_bytes()
    for name, value in (("synthetic", True), ("threshold_why/nodule", "none"), ("confusion", [[1, 2], [3, 4]])):
        set_field(workdir, "metrics.jsonl", (name,), value)
        set_field(workdir, "summary.json", (name,), value)
        set_field(workdir, "best.json", (name,), value)
    assert render(workdir).read_bytes() == page


def test_a_run_whose_only_line_is_of_step_0_has_a_page(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run", finished=False)
    (workdir / "metrics.jsonl").write_text('{"step": 0, "split": "train", "loss": 4.0}\n')
    assert "step 0 of 40" in page_of(workdir).text


def test_a_page_that_cannot_be_written_is_the_disks_error(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    (workdir / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"run/report\.html: cannot be written: Is a directory"):
        render(workdir)


def test_the_command_writes_one_page_for_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    command.run(arguments(*runs, "--out", tmp_path / "both.html"))
    pages = [*(run / "report.html" for run in runs), tmp_path / "both.html"]
    assert capsys.readouterr().out.split() == [str(page) for page in pages]
    assert all(page.stat().st_size > 10_000 for page in pages)
    with pytest.raises(UserError, match=r"none: not a run's folder"):
        render(tmp_path / "none")


def numbers(pattern: str, svg: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, svg)]


def test_chance_and_the_chosen_step_stand_where_the_values_put_them() -> None:
    points = [(0.0, 4.0), (10.0, CHANCE), (20.0, 3.0), (30.0, 2.0)]
    svg = line_chart([Series("loss", points)], title="t", reference=(CHANCE, "chance"), mark=(20, "chosen"))
    xs, ys = numbers(r'cx="([\d.]+)"', svg), numbers(r'cy="([\d.]+)"', svg)
    assert numbers(r'y1="([\d.]+)" y2="[\d.]+" class="reference"', svg) == [ys[1]]
    assert numbers(r'x1="([\d.]+)" x2="[\d.]+" y1="[\d.]+" y2="[\d.]+" class="mark"', svg) == [xs[2]]
    assert ys[1] < ys[0] < ys[2] < ys[3], "higher values stand higher (SVG's y grows downwards)"
    assert math.isclose(ys[3] - ys[2], ys[2] - ys[0], abs_tol=0.11), "equal steps of y are equal heights"
    ticks_at = dict(
        zip(
            numbers(r'text-anchor="end">([\d.]+)<', svg),
            numbers(r'y="([\d.]+)" text-anchor="end">[\d.]+<', svg),
            strict=True,
        )
    )
    assert math.isclose(ticks_at[3.0] - 4, ys[2], abs_tol=0.11), "the tick of 3 stands at the value 3"


def test_an_interval_is_a_band_between_its_ends_and_stays_in_view() -> None:
    points = [(1.0, 0.6), (2.0, 0.7)]
    svg = line_chart([Series("s", points, band=[(1.0, 0.5, 0.8), (2.0, 0.65, 0.9)])], title="t")
    (band,) = re.findall(r'class="band main"><path d="M([^"]+)z"', svg)
    corners = [tuple(map(float, corner.split())) for corner in band.split("L")]
    (x1, y1), (x2, y2) = zip(numbers(r'cx="([\d.]+)"', svg), numbers(r'cy="([\d.]+)"', svg), strict=True)
    per_unit = (y1 - y2) / 0.1
    assert [x for x, _ in corners] == [x1, x2, x2, x1]
    for (_, y), end in zip(corners, (0.8, 0.9, 0.65, 0.5), strict=True):
        assert math.isclose(y, y1 - per_unit * (end - 0.6), abs_tol=0.5)
        assert 22 < y < 240, "inside the frame"


def test_a_missing_value_breaks_the_curve_and_a_lone_point_stays_visible() -> None:
    gap = line_chart([Series("s", [(1, 1.0), (2, None), (3, 2.0), (4, 3.0)], "label")], title="t")
    assert gap.count("<circle") == 1, "the point before the gap has no neighbour to draw a line to"
    assert re.search(r'd="M[\d. ]+M[\d. ]+L[\d. ]+"', gap)
    assert "no finite value was logged" in line_chart([Series("s", [(1, None)])], title="t")
    flat = line_chart([Series("s", [(0, 0.0)])], title="t")
    assert "nan" not in flat.lower()


def test_thinning_keeps_the_mean_and_says_how_many() -> None:
    points = [(float(x), float(x % 7)) for x in range(3000)]
    thinned, k = thin(points)
    assert (k, len(thinned)) == (10, 300)
    assert math.isclose(sum(y or 0 for _, y in thinned) * k, sum(y for _, y in points))
    assert thin([(0.0, None)] * 600)[0][0][1] is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.41, 0.93), (2.0, 4.16), (0, 25_000), (4.1639, 4.1641)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_the_closing_table_names_the_choice_the_undefined_and_the_places(tmp_path: Path) -> None:
    workdir = make_run(tmp_path / "run")
    best = json.loads((workdir / "best.json").read_text())
    said = end_table(best, read_metrics(workdir / "metrics.jsonl"), Path("runs/a"))
    lines = [" ".join(line.split()) for line in said.split("\n")]
    assert lines[:2] == ["AUROC at step 30", "label val other"]
    assert "cardiomegaly 0.800 0.800" in lines
    assert "pleural effusion left n/a n/a" in lines
    assert f"val: pleural effusion left has no AUROC: {WHY}" in lines
    assert "mean 0.700 0.700 (0.650 to 0.750)" in lines
    assert "pairs at step 30: recall_i2t/10 0.300 (0.050 to 0.450)" in lines
    assert "Chosen: step 30, val/auroc/mean = 0.7000. the highest of 4 evaluations" in lines
    assert "model runs/a/best/" in lines
    assert "report runs/a/report.html" in lines

    unchosen = end_table({}, read_metrics(workdir / "metrics.jsonl"))
    assert unchosen.startswith("AUROC at step 40")
    assert "No step was chosen." in unchosen
    assert "best/" not in unchosen
    assert "AUROC" not in end_table({}, [{"step": 1, "split": "train", "loss": 4.0}])
