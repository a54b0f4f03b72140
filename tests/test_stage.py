"""Copies on a local disk: made once, compared, waited for, used again, and never part of what a run is."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hybridclip_jax import build, logs, rundir
from hybridclip_jax import config as configs
from hybridclip_jax.commands import prepare as command
from hybridclip_jax.data import stage
from hybridclip_jax.data.locks import release_lock, take_lock
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import StorageError, UserError, run_or_exit


@pytest.fixture
def own(phantom_store: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    shutil.copytree(phantom_store, tmp_path / "own")
    return tmp_path / "own"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_copy_is_whole_and_found_again(phantom_store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    told: list[tuple[int, int]] = []
    folder = tmp_path / "deep" / "node"
    copy = stage.stage(phantom_store, folder, progress=lambda done, total: told.append((done, total)), say=said.append)
    assert copy.name == Store.open(f"{phantom_store}:train").fingerprint
    assert contents(copy) == contents(phantom_store)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert told[-1][0] == told[-1][1] > 0
    times = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert stage.stage(phantom_store, folder, say=said.append) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == times
    assert said == [f"{phantom_store}: copied to {copy}", f"{phantom_store}: read from its copy in {copy}"]
    assert os.listdir(folder) == [copy.name]


def test_a_staged_store_is_the_same_store(phantom_store: Path, tmp_path: Path) -> None:
    spec = f"{phantom_store}:val"
    plain, staged = stage.open_staged(spec, ""), stage.open_staged(spec, str(tmp_path / "node"))
    assert (staged.spec, staged.fingerprint, staged.ids) == (spec, plain.fingerprint, plain.ids)
    assert staged.path.parent == tmp_path / "node"
    np.testing.assert_array_equal(staged.image(3), plain.image(3))
    with pytest.raises(UserError, match=f"{phantom_store} has no split 'x'"):
        stage.open_staged(f"{phantom_store}:x", str(tmp_path / "node"))


def test_a_copy_that_lost_files_or_was_broken_off_is_made_again(phantom_store: Path, tmp_path: Path) -> None:
    copy = stage.stage(phantom_store, tmp_path)
    for name in ("table.parquet", "manifest.json"):
        (copy / name).unlink()
        assert stage.stage(phantom_store, tmp_path) == copy
        assert contents(copy) == contents(phantom_store)
    (copy / "table.parquet").write_bytes(b"x")
    copy.rename(copy.with_name(copy.name + ".partial"))
    assert stage.stage(phantom_store, tmp_path) == copy
    assert contents(copy) == contents(phantom_store)
    assert os.listdir(tmp_path) == [copy.name]


def test_a_damaged_store_is_not_copied(own: Path, tmp_path: Path) -> None:
    images = own / "images-00000.npy"
    data = bytearray(images.read_bytes())
    data[5000] ^= 1
    images.write_bytes(data)
    with pytest.raises(UserError, match=r"images-00000.npy is damaged \(sha256\)"):
        stage.stage(own, tmp_path / "node")
    assert os.listdir(tmp_path / "node") == []
    images.unlink()
    with pytest.raises(StorageError, match="cannot be copied to .*node: No such file"):
        stage.stage(own, tmp_path / "node")


def test_a_manifest_that_names_files_elsewhere_is_refused(own: Path, tmp_path: Path) -> None:
    manifest = own / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"skipped.jsonl"', '"../skipped.jsonl"'))
    with pytest.raises(UserError, match="is not as prepare writes it"):
        stage.stage(own, tmp_path / "node")


def test_no_room_is_said_before_anything_is_copied(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nothing)
    with pytest.raises(StorageError, match=r"has 0.0 GB free and .* takes 0.0 GB: make room"):
        stage.stage(phantom_store, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be(phantom_store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be copied to"):
        stage.stage(phantom_store, tmp_path / "file" / "node")


def test_variables_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_DISK", str(tmp_path))
    assert stage.expanded("$JOB_DISK/stores", "x") == tmp_path / "stores"
    assert stage.expanded("${JOB_DISK}", "x") == tmp_path
    monkeypatch.delenv("JOB_DISK")
    for folder in ("$JOB_DISK", "${JOB_DISK}/stores"):
        with pytest.raises(UserError, match=r"data.stage_dir = .*JOB_DISK.* is not set here"):
            stage.expanded(folder, "data.stage_dir")


STAGE = """
import sys
import time
from pathlib import Path
from hybridclip_jax.data import stage
from hybridclip_jax.data.locks import release_lock, take_lock
stage.stage(Path(sys.argv[1]), Path(sys.argv[2]), say=print)
"""


def test_of_several_processes_one_copies(phantom_store: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", STAGE, str(phantom_store), str(tmp_path / "node")]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert said.count("copied to") == 1
    assert said.count("read from its copy") == 2
    assert len(os.listdir(tmp_path / "node")) == 1


def test_who_comes_while_another_copies_waits(phantom_store: Path, tmp_path: Path) -> None:
    lock = tmp_path / f"{Store.open(f'{phantom_store}:train').fingerprint}.lock"
    held = take_lock(lock, wait=False)
    words = [sys.executable, "-u", "-c", STAGE, str(phantom_store), str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "another process is copying it" in process.stdout.readline()
    assert os.listdir(tmp_path) == [lock.name]
    release_lock(lock, held)
    assert "copied to" in process.communicate(timeout=60)[0]


def command_of(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return run_or_exit(lambda: command.run(parser.parse_args([str(value) for value in arguments])))


def test_prepare_stages_what_it_made_or_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, node = tmp_path / "s", tmp_path / "node"
    arguments = ("--format", "phantom", "--count", 3, "--split", "all", "--out", out)
    assert command_of(*arguments, "--stage", node) == 0
    copy = next(node.iterdir())
    assert f"{out}: copied to {copy}" in capsys.readouterr().out
    assert contents(copy) == contents(out)
    assert command_of(*arguments, "--stage", tmp_path / "other") == 0
    assert "is a store already: it is staged as it is, and nothing is prepared" in capsys.readouterr().out
    assert contents(tmp_path / "other" / copy.name) == contents(out)
    assert command_of(*arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert command_of(*arguments, "--stage", "$NO_SUCH_DISK") == 2
    assert "--stage = $NO_SUCH_DISK: $NO_SUCH_DISK is not set here" in capsys.readouterr().err


def test_a_run_reads_the_copies_and_stays_the_same_run(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_DISK", str(tmp_path / "node"))
    config = configs.default()
    config.batch_size, config.steps = 16, 8
    config.model.image.arch, config.model.text.arch = "dinov3_tiny32", "clip_text_tiny"
    config.model.text.context, config.model.embed_dim = 96, 32
    config.data.image_size, config.data.train = 96, f"{phantom_store}:train"
    configs.add_eval(config, "bare", data=f"{phantom_store}:val")
    config.select.metric = "bare/auroc/mean"
    plain = build.job(config)
    before = configs.to_json(config)
    config.data.stage_dir = "$JOB_DISK"
    staged = build.job(config)
    copy = tmp_path / "node" / plain.store.fingerprint
    assert [staged.store.path, staged.evaluators["bare"].store.path] == [copy, copy]
    assert [staged.store.spec, staged.store.fingerprint] == [plain.store.spec, plain.store.fingerprint]
    first, other = plain.stream.batch(3), staged.stream.batch(3)
    np.testing.assert_array_equal(first.image, other.image)
    np.testing.assert_array_equal(first.tokens, other.tokens)
    # Another attempt of the run may be staged elsewhere, or not at all.
    workdir = tmp_path / "run"
    with rundir.claimed(workdir, before):
        (workdir / rundir.METRICS).write_text("{}\n")
        rundir.refuse_another(workdir, configs.to_json(config))
        config.data.image_size = 128
        with pytest.raises(UserError, match=r"data.image_size = 96, this config has 128;"):
            rundir.refuse_another(workdir, configs.to_json(config))


CONFIG = """
from hybridclip_jax.config import add_eval, default

def get_config():
    config = default()
    config.steps, config.eval_every, config.log_every, config.checkpoint.every = 16, 16, 2, 2
    config.batch_size = 16
    config.model.image.arch, config.model.text.arch = "dinov3_tiny32", "clip_text_tiny"
    config.model.text.context, config.model.embed_dim, config.data.image_size = 96, 32, 32
    config.data.train = "{store}:train"
    add_eval(config, "bare", data="{store}:val")
    config.select.metric = "bare/auroc/mean"
    return config
"""


@pytest.mark.slow
def test_a_run_goes_on_with_or_without_copies_to_equal_results(phantom_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.py"
    file.write_text(CONFIG.format(store=phantom_store))
    main = [sys.executable, "-m", "hybridclip_jax.main", f"--config={file}"]

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        words = [*main, f"--workdir={tmp_path / name}", *more]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "XLA_FLAGS": ""})

    def lines(name: str) -> list[dict[str, object]]:
        metrics = logs.read_metrics(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in line.items() if not logs.is_time_metric(k)} for line in metrics]

    assert start("plain").wait(timeout=250) == 0
    process = start("moved", f"--config.data.stage_dir={tmp_path / 'node'}")
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "moved" / "checkpoints").glob("[0-9]*"))) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() < 0
    assert len(os.listdir(tmp_path / "node")) == 1
    assert start("moved").wait(timeout=250) == 0
    assert lines("moved") == lines("plain")
