"""Checkpoints under everything that happens to them: flipped bits, kills, full disks, other devices, other models."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hybridclip_jax import checkpoint, optim, sharding
from hybridclip_jax.checkpoint import Checkpoints
from hybridclip_jax.config import default
from hybridclip_jax.errors import StorageError
from hybridclip_jax.state import TrainState

NOTES = {"train_store": "ab12", "meter": {"flops": 0.1 + 0.2, "seconds": [1.5, None]}}


def train_state(optimizer: str = "sgd", width: int = 16) -> TrainState:
    """A state in the middle of a run: momentum that is not zero, counters, float and integer leaves."""
    rng = np.random.default_rng(0)
    shapes = {"image/fc/kernel": (8, width), "image/fc/bias": (width,), "logit_scale": ()}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    config = default()
    config.optim.name = optimizer
    made = optim.make(config, params)
    opt = made.transform.init(params)
    for _ in range(2):
        updates, opt = made.transform.update(jax.tree.map(jnp.sin, params), opt, params)
        params = optax.apply_updates(params, updates)
    aux = {"objective": {}, "nonfinite": jnp.asarray([3, 1], jnp.int32)}
    return TrainState(jnp.asarray(9, jnp.int32), params, {"norm/mean": jnp.ones(3)}, opt, aux)


def on_one_device(tree: Any) -> Any:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the verified steps 5 and 9."""
    folder = tmp_path_factory.mktemp("template") / "checkpoints"
    run = Checkpoints(folder, keep=2)
    for step in (5, 9):
        run.save(step, train_state(), NOTES)
    return folder


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Checkpoints:
    shutil.copytree(template, tmp_path / "checkpoints")
    return Checkpoints(tmp_path / "checkpoints", keep=2)


# --- whole


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_was_saved_comes_back_to_the_last_bit(optimizer: str, tmp_path: Path) -> None:
    state = train_state(optimizer)
    run = Checkpoints(tmp_path / "new" / "checkpoints", keep=1)
    assert run.newest_verified() is None
    run.save(9, state, NOTES)
    assert run.newest_verified() == 9
    found, notes = run.restore(9, on_one_device(state))
    assert_same(found, state)
    assert notes == NOTES
    momentum = [leaf for leaf in jax.tree.leaves(found.opt) if leaf.ndim == 2]
    assert all(np.abs(leaf).max() > 0 for leaf in momentum)
    assert momentum


def test_values_that_are_not_finite_come_back_too(tmp_path: Path) -> None:
    values = {"x": jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, -0.0, 1e-42])}
    run = Checkpoints(tmp_path, keep=1)
    run.save(1, values, {})
    found, _ = run.restore(1, on_one_device(values))
    assert np.asarray(found["x"]).tobytes() == np.asarray(values["x"]).tobytes()


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_a_run_may_move_to_other_devices(before: int, after: int, tmp_path: Path) -> None:
    state = train_state()

    def placed(devices: int) -> Any:
        mesh = sharding.make_mesh(1, devices, devices, jax.devices())

        def place(leaf: Any) -> NamedSharding:
            split = leaf.ndim == 2 and leaf.shape[1] % devices == 0
            return NamedSharding(mesh, PartitionSpec(None, "fsdp") if split else PartitionSpec())

        return jax.tree.map(place, state)

    run = Checkpoints(tmp_path, keep=1)
    run.save(3, jax.device_put(state, placed(before)), {})
    like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, placed(after))
    found, _ = run.restore(3, like)
    assert_same(found, state)
    kernel = found.params["image/fc/kernel"]
    assert len(kernel.sharding.device_set) == after
    assert kernel.addressable_shards[0].data.shape == (8, 16 // after)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):  # as text, 10 comes before 2
        run.save(step, {"x": jnp.asarray(step)}, {})
    assert run.steps() == [2, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"], "nothing else is left behind"
    assert int(run.restore(10, on_one_device({"x": jnp.asarray(0)}))[0]["x"]) == 10


def test_a_step_can_be_written_again(run: Checkpoints) -> None:
    """A run that went back past a damaged step comes to it a second time."""
    run.save(9, {"x": jnp.asarray(1.0)}, {"again": True})
    assert run.newest_verified() == 9
    assert run.restore(9, on_one_device({"x": jnp.asarray(0.0)}))[1] == {"again": True}


# --- damaged


def flip(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_falls_back(run: Checkpoints) -> None:
    before = len(files_of(run.folder / "9")) if (run.folder / "9").exists() else 0
    assert run.newest_verified() == 5
    assert run.steps() == [5]
    assert len(files_of(run.folder / "damaged-9")) == before, "damage is kept for whoever wants to look"
    assert_same(run.restore(5, on_one_device(train_state()))[0], train_state())


def test_a_flipped_bit_in_any_file_is_noticed(run: Checkpoints) -> None:
    names = [path.relative_to(run.folder / "9") for path in files_of(run.folder / "9")]
    assert len(names) > 8
    for name in names:
        path = run.folder / "9" / name
        content = path.read_bytes()
        flip(path)
        assert run.newest_verified() == 5, name
        (run.folder / "damaged-9").rename(run.folder / "9")
        path.write_bytes(content)
    assert run.newest_verified() == 9


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(run: Checkpoints) -> None:
    """The notes too: a changed meter or store fingerprint would be believed."""
    path = run.folder / "9" / checkpoint.MANIFEST
    content = path.read_bytes()
    for place in range(0, len(content), 17):
        flip(path, place)
        assert run.newest_verified() == 5, content[place - 10 : place + 10]
        (run.folder / "damaged-9").rename(run.folder / "9")
        path.write_bytes(content)
    assert run.newest_verified() == 9


def empty_folder(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def truncate_largest(step: Path) -> None:
    largest = max(files_of(step), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a truncated file": truncate_largest,
    "an empty file": lambda step: os.truncate(files_of(step / "arrays")[0], 0),
    "a missing file": lambda step: files_of(step / "arrays")[-1].unlink(),
    "a file too many": lambda step: (step / "arrays" / "stray").write_text("x"),
    "no manifest": lambda step: (step / checkpoint.MANIFEST).unlink(),
    "an empty manifest": lambda step: (step / checkpoint.MANIFEST).write_text(""),
    "a manifest of something else": lambda step: (step / checkpoint.MANIFEST).write_text("[]"),
    "a manifest that is no text": lambda step: (step / checkpoint.MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "no arrays": lambda step: shutil.rmtree(step / "arrays"),
    "an empty folder": empty_folder,
    "another step under its name": lambda step: (shutil.rmtree(step), shutil.copytree(step.parent / "5", step)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_step_is_passed_over_and_kept(damage: str, run: Checkpoints) -> None:
    DAMAGE[damage](run.folder / "9")
    assert_falls_back(run)


def test_when_every_step_is_damaged_there_is_none(run: Checkpoints) -> None:
    for step in (5, 9):
        flip(run.folder / str(step) / checkpoint.MANIFEST)
    assert run.newest_verified() is None
    assert sorted(path.name for path in run.folder.iterdir()) == ["damaged-5", "damaged-9"]


def test_a_run_goes_on_after_damage(run: Checkpoints) -> None:
    for _ in range(2):
        flip(run.folder / "9" / checkpoint.MANIFEST)
        assert_falls_back(run)
        run.save(9, train_state(), NOTES)
        assert run.newest_verified() == 9


# --- interrupted


class Killed(BaseException):
    """Like a kill: nothing that handles errors sees it, so nothing is tidied up."""


@pytest.mark.parametrize("moment", ["arrays written", "manifest written"])
def test_a_stop_between_two_files_leaves_the_older_step(
    moment: str, run: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "arrays written":
            patch.setattr(checkpoint, "_write_durably", stop)
        else:
            patch.setattr(checkpoint.os, "replace", stop)
        with pytest.raises(Killed):
            run.save(12, train_state(), NOTES)
    assert (run.folder / "partial-12").exists()
    after = Checkpoints(run.folder, keep=2)
    assert after.newest_verified() == 9
    after.save(12, train_state(), NOTES)
    assert after.newest_verified() == 12
    assert sorted(path.name for path in run.folder.iterdir()) == ["12", "9"]


def child(script: str, folder: Path) -> subprocess.Popen[str]:
    head = (
        "import sys, numpy as np, jax.numpy as jnp\n"
        "from pathlib import Path\n"
        "from hybridclip_jax.checkpoint import Checkpoints\n"
        "from hybridclip_jax.errors import run_or_exit\n"
        "run = Checkpoints(Path(sys.argv[1]), keep=2)\n"
        "run.save(1, {'x': jnp.arange(4.0)}, {})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + script, str(folder)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9_in_the_middle_of_a_save(tmp_path: Path) -> None:
    process = child("run.save(2, {'x': np.random.default_rng(0).normal(size=8_000_000)}, {})\n", tmp_path)
    partial = tmp_path / "partial-2"
    until = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert partial.exists()
    assert not (tmp_path / "2").exists(), "killed too late to show anything"
    run = Checkpoints(tmp_path, keep=2)
    assert run.newest_verified() == 1
    found, _ = run.restore(1, on_one_device({"x": jnp.zeros(4)}))
    np.testing.assert_array_equal(found["x"], np.arange(4.0))
    run.save(2, {"x": jnp.ones(4)}, {})
    assert run.newest_verified() == 2


def test_a_full_disk_is_one_line_and_exit_code_4(tmp_path: Path) -> None:
    process = child(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "big = {'x': np.random.default_rng(0).normal(size=100_000)}\n"
        "sys.exit(run_or_exit(lambda: run.save(2, big, {})))\n",
        tmp_path,
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == StorageError.exit_code, errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith(f"error: {tmp_path}/2: the checkpoint could not be written: ")
    assert "File too large" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["1"], "the half-written step is taken away"
    assert Checkpoints(tmp_path, keep=2).newest_verified() == 1


def test_a_disk_too_small_is_found_before_anything_is_written(
    run: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100))
    with pytest.raises(StorageError, match=r"/12: the checkpoint could not be written: .* make room, then run again"):
        run.save(12, train_state(), NOTES)
    assert sorted(path.name for path in run.folder.iterdir()) == ["5", "9"]


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(StorageError, match=f"{tmp_path}/checkpoints: "):
        Checkpoints(tmp_path / "checkpoints", keep=1)


# --- another model

OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "another width": (
        lambda: train_state(width=24),
        "opt/0/trace/image/fc/bias is float32 (16,) in the checkpoint and float32 (24,) in this model",
    ),
    "another optimiser": (lambda: train_state("adamw"), "opt/0/count is nothing in the checkpoint and int32 ()"),
    "one parameter more": (
        lambda: with_params(lambda params: params | {"text/fc/kernel": jnp.zeros(3)}),
        "params/text/fc/kernel is nothing in the checkpoint and float32 (3,) in this model",
    ),
    "one parameter less": (
        lambda: with_params(lambda params: {n: v for n, v in params.items() if n != "logit_scale"}),
        "params/logit_scale is float32 () in the checkpoint and nothing in this model",
    ),
    "another precision": (
        lambda: with_params(lambda params: {n: v.astype(jnp.bfloat16) for n, v in params.items()}),
        "params/image/fc/bias is float32 (16,) in the checkpoint and bfloat16 (16,) in this model",
    ),
}


def with_params(change: Callable[[Any], Any]) -> TrainState:
    state = train_state()
    return TrainState(state.step, change(state.params), state.stats, state.opt, state.aux)


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_is_refused_by_the_name_of_what_differs(other: str, run: Checkpoints) -> None:
    make, says = OTHERS[other]
    with pytest.raises(StorageError) as caught:
        run.restore(9, on_one_device(make()))
    assert str(caught.value).startswith(f"{run.folder}/9: {says}")
    assert "\n" not in str(caught.value)
