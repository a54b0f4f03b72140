"""Whole runs: what they write, that a killed one ends like one never killed, and how each fault ends."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from tripwire import Tripwire

import hybridclip_jax as hc
from hybridclip_jax import build, cli, logs, modelfolder, rundir, train
from hybridclip_jax import config as configs
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import RunStopped, UserError
from hybridclip_jax.evals import Evaluator

ROOT = Path(__file__).parents[1]
CONFIG = """
from hybridclip_jax.config import add_eval, default

def get_config():
    config = default()
    config.steps, config.eval_every, config.log_every, config.checkpoint.every = 8, 4, 2, 2
    config.batch_size = 16
    config.model.image.arch, config.model.text.arch = "dinov3_tiny32", "clip_text_tiny"
    config.model.text.context, config.model.embed_dim = 96, 32
    config.data.image_size, config.data.flip, config.data.sentences = 96, False, 3
    config.data.train = "{store}:train"
    config.optim.name, config.optim.learning_rate = "adamw", 1e-3
    add_eval(config, "bare", data="{store}:val")
    config.select.metric, config.select.keep = "bare/auroc/mean", 2
    return config
"""


@pytest.fixture(scope="module")
def config_file(phantom_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.py"
    path.write_text(CONFIG.format(store=phantom_store))
    return path


def run(config_file: Path, workdir: Path, *overrides: str) -> None:
    train.run(configs.load(str(config_file), [f"--config.{o}" for o in overrides]), workdir, "command")


def command(
    config_file: Path,
    workdir: Path,
    *overrides: str,
    main: Sequence[str] = ("-m", "hybridclip_jax.main"),
    environment: Mapping[str, str] = os.environ,
) -> subprocess.Popen[str]:
    arguments = [f"--config={config_file}", f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
    return subprocess.Popen(
        [sys.executable, *main, *arguments],
        cwd=ROOT,
        env={**environment, "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reproducible(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the values that measure time."""
    lines = logs.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not logs.is_time_metric(k)} for line in lines]


@pytest.fixture(scope="module")
def tripwire(tmp_path_factory: pytest.TempPathFactory) -> Tripwire:
    return Tripwire(tmp_path_factory.mktemp("tripwire"))


@pytest.fixture(scope="module")
def finished(config_file: Path, tripwire: Tripwire, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = command(config_file, workdir, environment=tripwire.environment)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return workdir


def test_a_run_leaves_what_scripts_rely_on(finished: Path) -> None:
    lines = logs.read_metrics(finished / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [
        (1, "train"), (2, "train"), (4, "train"), (4, "eval/bare"), (6, "train"), (8, "train"), (8, "eval/bare"),
    ]  # fmt: skip
    expected = {
        "loss", "loss_i2t", "loss_t2i", "logit_scale", "learning_rate", "grad_norm", "grad_norm/image",
        "grad_norm/text", "pairs_per_s", "step_ms", "input_wait_ms", "text_tokens", "truncated", "tflops", "mfu",
        "pf_days_model", "pf_days_capacity", "wall_s",
    }  # fmt: skip
    assert expected <= lines[0].keys()
    assert lines[-1]["auroc/n_labels"] == 8
    assert lines[0]["logit_scale"] == pytest.approx(np.log(1 / 0.07))
    best = json.loads((finished / "best.json").read_text())
    assert best.keys() >= {"step", "metric", "value", "interval", "runner_up", "why"}
    evaluated = {line["step"]: line["auroc/mean"] for line in lines if line["split"] == "eval/bare"}
    assert best["value"] == max(evaluated.values()) == evaluated[best["step"]]
    low, high = best["interval"]
    assert low < best["value"] < high
    assert best["fingerprint"] == modelfolder.stated_fingerprint(finished / "best")
    assert best["runner_up"].keys() == {"step", "value", "interval"}
    assert [one["step"] for one in best["kept"]] == [best["step"], best["runner_up"]["step"]]
    marks = {path.name: modelfolder.stated_fingerprint(path) for path in (finished / "kept").iterdir()}
    assert marks.keys() == {"step-4", "step-8"}
    assert modelfolder.stated_fingerprint(finished / "best") == marks[f"step-{best['step']}"]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["finished"] and summary["step"] == 8 and summary["synthetic"]
    assert summary["stopped_early"] is None
    assert summary["best"] == best
    assert summary["estimate"]["pf_days"] == pytest.approx(summary["pf_days_model"], rel=0.2)
    assert summary["estimate"]["hours"] is None, "a CPU's peak is unknown"
    assert 0 < summary["eval_share"]["flops"] < 1 and 0 < summary["eval_share"]["wall"] < 1
    described = summary["evaluations"]["bare"]
    assert (described["protocol"], described["unit"], described["images"]) == ("chexzero", "image", 44)
    assert "the checkpoint is chosen by bare/auroc/mean" in described["notes"][-1]
    assert json.loads((finished / "config.json").read_text())["batch_size"] == 16
    assert "synthetic" in (finished / "report.html").read_text()
    audit = json.loads((finished / "audit.json").read_text())
    assert [split["name"].rpartition(":")[2] for split in audit["splits"]] == ["train", "val"]
    assert (audit["pairs"][0]["patients"], audit["problems"]) == (0, [])
    assert any((finished / "tb").iterdir())


def test_a_run_asks_for_neither_tensorflow_nor_torch(finished: Path, tripwire: Tripwire) -> None:
    assert tripwire.tripped() == []


def test_the_chosen_model_loads_and_scores_as_in_training(finished: Path, phantom_store: Path) -> None:
    from hybridclip_jax.data.store import Store
    from hybridclip_jax.evals.metrics import auroc

    model = hc.load(finished)
    assert model.synthetic
    store = Store.open(f"{phantom_store}:val")
    images = model.encode_image(list(store.images(np.arange(len(store)))))
    positive, negative = model.encode_text(["cardiomegaly", "no cardiomegaly"])
    value, _ = auroc(images @ (positive - negative), store.labels["Cardiomegaly"])
    best = json.loads((finished / "best.json").read_text())
    lines = logs.read_metrics(finished / "metrics.jsonl")
    noted = next(line for line in lines if line["split"] == "eval/bare" and line["step"] == best["step"])
    assert value == pytest.approx(noted["auroc/Cardiomegaly"], abs=0.02)


def test_a_finished_run_run_again_changes_nothing(finished: Path, config_file: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    assert "not finished" not in (finished / "report.html").read_text()
    process = command(config_file, finished)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "already finished" in output
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert json.loads((finished / "summary.json").read_text())["finished"]
    assert "not finished" not in (finished / "report.html").read_text()


# main, which dies like by kill -9 when it is about to put in place the file or folder that its first argument names.
KILLED_BEFORE = """
import os, runpy, signal, sys
replace, last = os.replace, sys.argv.pop(1)
def put(source, target, **kwargs):
    if str(target).endswith(last):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **kwargs)
os.replace = put
runpy.run_module("hybridclip_jax.main", run_name="__main__", alter_sys=True)
"""
# One after another. The first attempt leaves no checkpoint; the second dies between a checkpoint and the model that is
# kept of the same step, the third, which begins by making good for that, between best/ and best.json.
MOMENTS = ("/checkpoints/2", "/kept/step-4", "/best.json")


def test_killed_anywhere_it_ends_like_a_run_never_killed(finished: Path, config_file: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    for moment in MOMENTS:
        process = command(config_file, workdir, main=("-c", KILLED_BEFORE, moment))
        _, errors = process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL, f"not killed before {moment}: {errors}"
    kill_after_step(6, command(config_file, workdir), workdir)
    process = command(config_file, workdir)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert reproducible(workdir) == reproducible(finished)
    assert json.loads((workdir / "best.json").read_text()) == json.loads((finished / "best.json").read_text())
    for folder in ("best", "kept/step-4", "kept/step-8"):
        modelfolder.load(workdir / folder)  # that its weights are those of the fingerprint
        assert modelfolder.stated_fingerprint(workdir / folder) == modelfolder.stated_fingerprint(finished / folder)
    attempts = json.loads((workdir / "attempts.json").read_text())["attempts"]
    assert len(attempts) >= len(MOMENTS)
    paths = [*workdir.iterdir(), *(workdir / "kept").iterdir()]
    assert not [path.name for path in paths if path.name.endswith((".partial", ".old", ".tmp"))]


def kill_after_step(step: int, process: subprocess.Popen[str], workdir: Path) -> None:
    """Kills from outside, wherever the run then is: past its end too, on a machine that is that fast."""
    while process.poll() is None:
        lines = logs.read_metrics(workdir / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            process.kill()
        time.sleep(0.01)
    process.communicate()


def test_a_model_of_a_step_that_is_taken_again_goes(finished: Path, config_file: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    best = json.loads((workdir / "best.json").read_text())
    (workdir / "best.json").write_text(json.dumps({**best, "step": 8}))
    (workdir / "best" / "stale").touch()
    before = json.loads((workdir / "summary.json").read_text())
    estimate = {"pf_days": 7.0, "hours": 3.0}  # as of the other devices of a first attempt
    (workdir / "summary.json").write_text(json.dumps({**before, "estimate": estimate}))
    for part in (workdir / "checkpoints" / "8").rglob("*"):
        if part.is_file():
            part.write_bytes(b"")
    run(config_file, workdir, "mesh.data=1")
    assert not (workdir / "best" / "stale").exists()
    assert json.loads((workdir / "best.json").read_text()) == json.loads((finished / "best.json").read_text())
    assert {path.name for path in (workdir / "kept").iterdir()} == {"step-4", "step-8"}
    assert json.loads((workdir / "summary.json").read_text())["estimate"] == estimate
    hc.load(workdir)


def test_a_run_that_gets_no_better_stops_early(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = train._Run._lines, list[int]()
    monkeypatch.setattr(train._Run, "_lines", lambda attempt: [reads.append(1), read(attempt)][1])
    workdir = tmp_path / "run"
    still = ["optim.learning_rate=0.0", "steps=40", "eval_every=2", "select.patience=2", "mesh.data=1"]
    still += ["data.image_size=32", "model.text.context=32"]
    run(config_file, workdir, *still)
    assert len(reads) == 1 + 3 + 1, "metrics.jsonl is read at the start, once each 2 steps, and at the end"
    says = "stopped early at step 6: 2 evaluations in a row gave no better bare/auroc/mean than step 2"
    output = capsys.readouterr().out
    assert output.count(says) == 2, "when it stops, and in the choice at the end"
    assert re.search(r"step 2  bare  auroc/mean 0\.\d{4} \[0\.\d{4}, 0\.\d{4}\]", output)
    assert re.search(r"Evaluation took \d+\.\d\d% of the run's FLOPs and \d+\.\d% of its wall time\.", output)
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["finished"], summary["step"], summary["exit"]) == (True, 6, None)
    assert summary["stopped_early"].startswith(says)
    best = json.loads((workdir / "best.json").read_text())
    assert best["step"] == 2 and says in best["why"]
    before = (workdir / "metrics.jsonl").read_bytes()
    run(config_file, workdir, *still)
    assert "already finished at step 6" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(workdir / "checkpoints" / "6")  # as after a kill between the last line and its checkpoint
    run(config_file, workdir, *still)
    assert "resuming at step 4" in capsys.readouterr().out
    assert json.loads((workdir / "best.json").read_text()) == best
    assert json.loads((workdir / "summary.json").read_text())["step"] == 6
    run(config_file, workdir, *still, "select.patience=3")
    assert "resuming at step 6" in capsys.readouterr().out
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["finished"], summary["step"]) == (True, 8)
    assert summary["stopped_early"].endswith("(select.patience = 3)")


def test_an_evaluation_that_does_not_choose_says_what_it_shares_with_the_one_that_does(
    config_file: Path, phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, at_chance = list[str](), Evaluator.at_chance
    monkeypatch.setattr(Evaluator, "at_chance", lambda one: [asked.append(one.name), at_chance(one)][1])
    path = tmp_path / "several.py"
    other = tmp_path / "other"
    arguments = ["--count", "12", "--seed", "9", "--train-share", "0", "--val-share", "1", "--out", str(other)]
    parsed = cli.parse(["prepare", "--format", "phantom", *arguments])
    assert not parsed.run(parsed)
    more = f'    add_eval(config, "again", protocol="retrieval-index", data="{phantom_store}:val")\n'
    more += f'    add_eval(config, "other", data="{other}")\n    return config\n'
    path.write_text(config_file.read_text().replace("    return config\n", more))
    job = build.job(configs.load(str(path)))
    assert "the checkpoint is chosen by bare/auroc/mean" in job.notes["bare"][0]
    assert re.match(r"shares \d+ patients and 44 images with .*:val, on which", job.notes["again"][0])
    assert job.notes["other"] == [
        "the checkpoint is not chosen by it, nor on any of its patients (bare/auroc/mean chooses)"
    ]
    assert len(job.stores) == 3, "a store that two evaluations read is opened once"
    assert asked == ["bare"], "what a model at chance scores costs an evaluation: only the one that chooses is asked"


def test_weights_that_changed_since_the_run_began_are_refused(config_file: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        run(config_file, tmp_path / f"run{seed}", "mesh.data=1", "steps=2", f"seed={seed}")
    tower = tmp_path / "tower"
    modelfolder.extract(tmp_path / "run1" / "best", "text", tower)
    weights = f"model.text.weights={tower}"
    run(config_file, tmp_path / "run", "mesh.data=1", "steps=2", weights)
    modelfolder.extract(tmp_path / "run2" / "best", "text", tower)
    with pytest.raises(UserError, match=f"{tower}: changed since this run began"):
        run(config_file, tmp_path / "run", "mesh.data=1", "steps=2", weights)


def test_devices_without_enough_memory_are_one_line(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build.job

    def job(config: Any) -> build.Job:
        def step(*_: Any) -> Any:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes.")

        return dataclasses.replace(made(config), step=step)

    monkeypatch.setattr(build, "job", job)
    with pytest.raises(UserError, match=r"batch_size = 16: the devices have not enough memory; lower it"):
        run(config_file, tmp_path / "run", "mesh.data=1")
    monkeypatch.undo()
    run(config_file, tmp_path / "run", "mesh.data=1", "batch_size=8", "steps=1")


def test_towers_that_start_at_random_are_warned_of(finished: Path) -> None:
    warnings = json.loads((finished / "summary.json").read_text())["warnings"]
    assert warnings == [
        f"model.{tower}.weights is empty: the {tower} tower starts at random, not from a pretrained one"
        for tower in ("image", "text")
    ]
    assert "the text tower starts at random" in (finished / "report.html").read_text()


def test_two_attempts_at_once_are_refused(finished: Path, config_file: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with (finished / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="this run is going on already"):
            run(config_file, finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_spoken_of(
    finished: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    (workdir / "checkpoints" / "8" / "manifest.json").write_text("{}")
    run(config_file, workdir, "mesh.data=1")
    output = capsys.readouterr().out
    assert "warning: checkpoint 8 is damaged" in output
    assert "resuming at step 6" in output
    assert reproducible(workdir) == reproducible(finished)


def test_another_seed_is_another_run(finished: Path, config_file: Path, tmp_path: Path) -> None:
    run(config_file, tmp_path / "other", "seed=1", "steps=4", "mesh.data=1")
    assert reproducible(tmp_path / "other")[0]["loss"] != reproducible(finished)[0]["loss"]


def test_eight_devices_log_the_losses_of_one(finished: Path, config_file: Path, tmp_path: Path) -> None:
    run(config_file, tmp_path / "eight")
    losses = [[line["loss"] for line in reproducible(d) if "loss" in line] for d in (finished, tmp_path / "eight")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=missing", "missing"),
        ("data.train={store}", "train"),
        ("data.train={store}:tarin", "tarin"),
        ("batch_size=4096", "4096.* records"),
        ("batch_size=12", "12 does not divide among 8 devices.* one of 1, 2, 3, 4, 6$"),
        ("evals.bare.data={store}:train", "patients and .* images are in "),
        ("evals.bare.data=", "evals.bare.data is empty"),
        ("evals.bare.protocol=magic", "chexzero"),
        ("select.metric=bare/auroc/maen", "did you mean auroc/mean"),
        ("select.metric=bare/auroc/n_labels", "n_labels: measures no model; name another, e.g. bare/auroc/mean$"),
        ("model.image.weights=nowhere", "nowhere"),
        ("compute.attention=cudnn", "NVIDIA"),
        ("mesh.data=3", "does not divide"),
        ("mesh.data=16", "8 devices"),
    ],
)
def test_faults_end_before_the_first_step(
    override: str, message: str, config_file: Path, phantom_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(config_file, tmp_path / "run", override.format(store=phantom_store))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()  # the corrected command may use the folder


def test_an_evaluation_on_images_that_are_trained_on_is_refused_unless_it_is_meant(
    config_file: Path, phantom_store: Path, tmp_path: Path
) -> None:
    """The images of another namespace: no id tells, the pixels do."""
    images, rows = tmp_path / "images", []
    images.mkdir()
    store = Store.open(f"{phantom_store}:train")
    for row in range(12):
        PIL.Image.fromarray(store.image(row)[..., 0]).save(images / f"{row}.png")
        rows.append(f"{row}.png,No nodule.,p{row},{row % 2}\n")
    (images / "table.csv").write_text("image,text,patient,Nodule\n" + "".join(rows))
    other = tmp_path / "other"
    parsed = cli.parse(["prepare", "--format", "csv", "--source", str(images), "--out", str(other)])
    assert not parsed.run(parsed)
    says = r"evals\.bare\.data = .*other: 12 images are in .*:train as well; .*data\.allow_overlap=True"
    with pytest.raises(UserError, match=says):
        run(config_file, tmp_path / "run", f"evals.bare.data={other}")
    overrides = [f"--config.evals.bare.data={other}", "--config.data.allow_overlap=True"]
    job = build.job(configs.load(str(config_file), overrides))
    (warning,) = (warning for warning in job.warnings if "allow_overlap" in warning)
    assert "12 images are trained on (data.allow_overlap is on)" in warning


def test_where_no_patients_are_known_none_is_shared_and_it_is_said(config_file: Path, tmp_path: Path) -> None:
    for part, count in (("train", 16), ("test", 4)):
        (tmp_path / part).mkdir()
        lines = [f"{n}.png,No nodule {n}.,{n % 2}\n" for n in range(count)]  # files of the same names
        (tmp_path / f"{part}.csv").write_text("image,text,Nodule\n" + "".join(lines))
        for n in range(count):
            noise = np.random.default_rng([count, n]).integers(0, 255, (24, 24), np.uint8)
            PIL.Image.fromarray(noise).save(tmp_path / part / f"{n}.png")
        flags = ["--source", str(tmp_path / f"{part}.csv"), "--images", str(tmp_path / part)]
        parsed = cli.parse(["prepare", "--format", "csv", *flags, "--out", str(tmp_path / f"{part}-store")])
        assert not parsed.run(parsed)
    a, b = tmp_path / "train-store", tmp_path / "test-store"
    job = build.job(configs.load(str(config_file), [f"--config.data.train={a}", f"--config.evals.bare.data={b}"]))
    says = f"against {a}: patients not checked: not comparable by id: no patients are known of {b}:all and {a}:all"
    assert any("evals.bare.data" in warning and says in warning for warning in job.warnings)


def test_a_store_on_which_the_metric_is_undefined_is_refused(config_file: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    arguments = ["--count", "1", "--seed", "9", "--train-share", "0", "--val-share", "1", "--out", str(one)]
    parsed = cli.parse(["prepare", "--format", "phantom", *arguments])
    parsed.run(parsed)
    with pytest.raises(UserError, match="select.metric = bare/auroc/mean: undefined on that store"):
        run(config_file, tmp_path / "run", f"evals.bare.data={one}")


def test_stores_prepared_differently_are_refused(config_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "stretched"
    arguments = ["prepare", "--format", "phantom", "--seed", "6", "--count", "80", "--resize", "stretch"]
    parsed = cli.parse([*arguments, "--out", str(other)])
    assert not parsed.run(parsed)
    with pytest.raises(UserError, match=r"evals\.bare: .*: prepared with resize = stretch, but .* with pad"):
        run(config_file, tmp_path / "run", f"evals.bare.data={other}:val")


def test_another_config_in_the_same_folder_is_refused(finished: Path, config_file: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.learning_rate = 0\.001.*0\.5.*another --workdir"):
        run(config_file, finished, "optim.learning_rate=0.5")


def test_a_config_that_never_took_a_step_may_be_mended_in_place(tmp_path: Path) -> None:
    claim = lambda rate: rundir.claimed(tmp_path, json.dumps({"optim": {"learning_rate": rate}}))  # noqa: E731
    with pytest.raises(MemoryError), claim(1.0):
        (tmp_path / "metrics.jsonl").touch()
        raise MemoryError("at the first step")
    with claim(2.0):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"holds a run with optim\.learning_rate = 2\.0"), claim(3.0):
        pass


def test_three_non_finite_steps_in_a_row_end_the_run(config_file: Path, tmp_path: Path) -> None:
    process = command(config_file, tmp_path / "run", "optim.name=sgd", "optim.learning_rate=1e38")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 3
    assert re.fullmatch(r"error: step 3: 3 steps in a row without finite.*\(here: the update\).*\n", errors)
    assert "3 steps in a row" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_at_chance_is_told_so_and_can_be_stopped(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHANCE_WINDOW", 100)
    stuck = ["steps=101", "eval_every=100", "checkpoint.every=100", "log_every=5", "optim.learning_rate=0.0"]
    stuck += ["data.image_size=32", "model.text.context=32", "mesh.data=1"]
    run(config_file, tmp_path / "warned", *stuck)
    assert "is at chance (ln 16 = 2.773)" in capsys.readouterr().out
    with pytest.raises(RunStopped, match="is at chance"):
        run(config_file, tmp_path / "stopped", *stuck, "watchdog.at_chance=stop")


def test_flip_with_texts_that_name_sides_is_warned_of(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config_file, tmp_path / "flip", "data.flip=True", "steps=1", "mesh.data=1")
    assert re.search(r"warning: data.flip is on and \d+% of the texts name left or right", capsys.readouterr().out)
