"""What a run keeps of its models, whatever moment it is killed at."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridclip_jax import modelfolder
from hybridclip_jax.errors import StorageError
from hybridclip_jax.keeping import Keeper
from hybridclip_jax.selection import Rule

CARD = modelfolder.Card("dual", {}, {}, {}, {}, "", synthetic=True)
CHECKPOINT_EVERY = 3


class Killed(BaseException):
    """Not an Exception: nothing of the program may catch it."""


def rule(keep: int, mode: str = "max") -> Rule:
    return Rule("v/auroc/mean", mode, patience=0, keep=keep, store="s:val")


class Run:
    """The order of events in train.py: the evaluation's line, the checkpoint, what is kept. Here each step has one."""

    def __init__(self, workdir: Path, scores: Sequence[float | None], keep: int) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self.workdir, self.scores, self.keep = workdir, list(scores), keep
        self.checkpoint = 0

    def lines(self, step: int) -> list[dict[str, Any]]:
        return [{"step": n, "split": "eval/v", "auroc/mean": self.scores[n - 1]} for n in range(1, step + 1)]

    def attempt(self) -> None:
        keeper = Keeper(self.workdir, rule(self.keep), CARD)
        start = self.checkpoint
        keeper.forget_after(start)
        if start and (choice := keeper.choice(self.lines(start), start)):
            keeper.keep(choice, start, arrays(start))
        for step in range(start + 1, len(self.scores) + 1):
            choice = keeper.choice(self.lines(step), step)
            if (choice and choice.new) or step % CHECKPOINT_EVERY == 0 or step == len(self.scores):
                self.checkpoint = step
            if choice:
                keeper.keep(choice, step, arrays(step))


def arrays(step: int) -> dict[str, np.ndarray]:
    return {"logit_scale": np.full((3,), step, np.float32)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_of(workdir: Path) -> dict[str, int]:
    """Folder -> the step whose parameters it holds."""
    folders = [workdir / "best", *(workdir / "kept").glob("*")]
    return {
        str(path.relative_to(workdir)): int(modelfolder.load(path)[0]["logit_scale"][0])
        for path in folders
        if path.is_dir()
    }


SCORES = (0.5, 0.7, 0.6, None, 0.65, 0.7, 0.8, 0.6)


def test_the_best_few_stay_with_the_chosen_one_among_them(tmp_path: Path) -> None:
    run = Run(tmp_path, SCORES, keep=3)
    run.attempt()
    assert steps_of(tmp_path) == {"best": 7, "kept/step-7": 7, "kept/step-2": 2, "kept/step-6": 6}
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["step"], best["synthetic"]) == (7, True)
    assert best["kept"] == [
        {"step": 7, "value": 0.8, "folder": "kept/step-7"},
        {"step": 2, "value": 0.7, "folder": "kept/step-2"},
        {"step": 6, "value": 0.7, "folder": "kept/step-6"},
    ]


def test_one_model_is_kept_in_best_alone(tmp_path: Path) -> None:
    Run(tmp_path, SCORES, keep=1).attempt()
    assert steps_of(tmp_path) == {"best": 7}
    assert not (tmp_path / "kept").exists()
    assert json.loads((tmp_path / "best.json").read_text())["kept"] == []


def killer(at: int, put: Callable[..., None], *, before: bool) -> Callable[..., None]:
    """os.replace that dies around its call number `at`."""
    calls = iter(range(10_000))

    def replace(*arguments: Any, **keywords: Any) -> None:
        now = next(calls) == at
        if now and before:
            raise Killed
        put(*arguments, **keywords)
        if now:
            raise Killed

    return replace


class KeepsBeforeItSaves(Run):
    """The mutation: the order of events is what the run rests on."""

    def attempt(self) -> None:
        keeper = Keeper(self.workdir, rule(self.keep), CARD)
        keeper.forget_after(self.checkpoint)
        for step in range(self.checkpoint + 1, len(self.scores) + 1):
            if choice := keeper.choice(self.lines(step), step):
                keeper.keep(choice, step, arrays(step))
            if step % CHECKPOINT_EVERY == 0:
                self.checkpoint = step


def faults(folder: Path, kind: type[Run], keep: int, before: bool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Moments to be killed at (and once more on the way back) after which a run keeps other than its best.

    Steps that are taken again turn out worse: what was removed for them is missed.
    """
    put, wrong = os.replace, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for moment in range(100):
        run, killed = kind(folder / str(moment), (0.5, 0.6, 0.55, 0.7, 0.65), keep), []
        for at in (moment, moment % 3):
            monkeypatch.setattr(os, "replace", killer(at, put, before=before))
            try:
                run.attempt()
            except Killed:
                killed.append(at)
            monkeypatch.setattr(os, "replace", put)
            late = run.checkpoint
            run.scores = [value - 0.3 * (n > late) for n, value in enumerate(run.scores, start=1)]
        run.attempt()
        best = sorted(range(1, 6), key=lambda n: -run.scores[n - 1])[:keep]
        wanted = {"best": best[0]} | ({f"kept/step-{n}": n for n in best} if keep > 1 else {})
        stray = [name for name in os.listdir(run.workdir / "kept") if "." in name] if keep > 1 else []
        said = json.loads((run.workdir / "best.json").read_text())
        if steps_of(run.workdir) != wanted or stray or said["step"] != best[0]:
            wrong.append(moment)
        if moment not in killed:  # past the last move of a run
            assert moment > 8 * keep
            return wrong
    raise AssertionError("a run has an end")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_at_any_moment_it_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, before: bool
) -> None:
    assert faults(tmp_path, Run, keep, before, monkeypatch) == []


def test_what_is_kept_before_it_is_saved_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(tmp_path, KeepsBeforeItSaves, 2, True, monkeypatch)


def test_with_a_damaged_checkpoint_the_best_of_what_is_left_is_chosen(tmp_path: Path) -> None:
    """Step 6 was the best; its checkpoint is lost, and so is its model. The kept ones before it are not."""
    run = Run(tmp_path, (0.5, 0.7, 0.6, 0.65, 0.6, 0.8), keep=3)
    run.attempt()
    assert steps_of(tmp_path) == {"best": 6, "kept/step-6": 6, "kept/step-2": 2, "kept/step-4": 4}
    keeper = Keeper(tmp_path, rule(3), CARD)
    keeper.forget_after(4)
    choice = keeper.choice(run.lines(4), 4)
    assert choice is not None
    keeper.keep(choice, 4, arrays(4))
    assert steps_of(tmp_path) == {"best": 2, "kept/step-2": 2, "kept/step-4": 4}
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["step"], [one["step"] for one in best["kept"]]) == (2, [2, 4])


@pytest.mark.parametrize("before", [True, False])
def test_whatever_a_kill_leaves_a_shell_pattern_names_whole_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """`evaluate --model runs/x/kept/*` would take a half or a discarded model for one of the ensemble."""
    put, left = os.replace, set[str]()
    for moment in range(100):
        run = Run(tmp_path / str(moment), (0.5, 0.6, 0.7), keep=2)
        monkeypatch.setattr(os, "replace", killer(moment, put, before=before))
        try:
            run.attempt()
            break
        except Killed:
            named = glob.glob(f"{run.workdir}/kept/*")
            assert {Path(one).name for one in named} <= {"step-1", "step-2", "step-3"}
            for one in named:
                modelfolder.load(one)
            left |= {name.rpartition(".")[2] for name in os.listdir(run.workdir / "kept") if name.startswith(".")}
    assert left == ({"partial"} if before else {"old"}), "nothing was left: the test has tested nothing"


def test_what_a_kill_left_goes_with_the_next_model_that_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, (0.5, 0.6), keep=2)
    run.attempt()
    for left in ("kept/.step-1.old", "kept/.step-9.partial", ".best.old", ".best.partial"):
        shutil.copytree(tmp_path / "best", tmp_path / left)
    run.attempt()
    assert sorted(os.listdir(tmp_path)) == ["best", "best.json", "kept"]
    assert sorted(os.listdir(tmp_path / "kept")) == ["step-1", "step-2"]


def test_killed_between_the_old_best_and_the_new_it_has_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best.json then tells of a model that is in no folder of that name."""
    run, put = Run(tmp_path, (0.5, 0.6), keep=1), os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "best" and (tmp_path / ".best.old").exists():
            raise Killed
        put(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        run.attempt()
    monkeypatch.setattr(os, "replace", put)
    assert not (tmp_path / "best").exists()
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1
    run.attempt()
    assert steps_of(tmp_path) == {"best": 2}
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_best_that_was_lost_is_made_again_of_what_there_is(tmp_path: Path, keep: int) -> None:
    run = Run(tmp_path, (0.5, 0.7, 0.6), keep)
    run.attempt()
    shutil.rmtree(tmp_path / "best")
    run.attempt()
    best = json.loads((tmp_path / "best.json").read_text())
    held = steps_of(tmp_path)
    assert held["best"] == best["step"] == (2 if keep == 2 else 3)
    gone = "step 2 (0.7000) is better, but its model is gone"
    assert (gone in best["why"]) == (keep == 1)


def test_best_json_names_the_weights_and_tells_others_by_them(tmp_path: Path) -> None:
    run = Run(tmp_path, (0.5, 0.7, 0.6), keep=1)
    run.attempt()
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["fingerprint"] == modelfolder.stated_fingerprint(tmp_path / "best")
    keeper = Keeper(tmp_path, rule(1), CARD)
    assert keeper.held() == {2}
    modelfolder.save(tmp_path / "best", arrays(3), CARD)  # as a kill before best.json leaves it
    assert keeper.held() == set()


def test_best_shares_its_bytes_with_the_kept_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path / "linked", (0.5, 0.7), keep=2).attempt()
    assert same_file(tmp_path / "linked")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    Run(tmp_path / "copied", (0.5, 0.7), keep=2).attempt()
    assert not same_file(tmp_path / "copied")
    assert contents(tmp_path / "copied") == contents(tmp_path / "linked")


def same_file(workdir: Path) -> bool:
    return (workdir / "best" / modelfolder.WEIGHTS).samefile(workdir / "kept" / "step-2" / modelfolder.WEIGHTS)


def test_with_one_model_kept_its_loss_leaves_the_choice_to_what_comes(tmp_path: Path) -> None:
    run = Run(tmp_path, (0.5, 0.7), keep=1)
    run.attempt()
    keeper = Keeper(tmp_path, rule(1), CARD)
    keeper.forget_after(1)
    assert not (tmp_path / "best").exists() and not (tmp_path / "best.json").exists()
    choice = keeper.choice([*run.lines(1), {"step": 3, "split": "eval/v", "auroc/mean": 0.4}], 3)
    assert choice is not None
    assert (choice.body["step"], choice.new) == (3, True), "step 1 is better, and gone"
    assert choice.body["why"] == (
        "step 3 has the highest v/auroc/mean (0.4000) on s:val of the models that are left; step 1 (0.5000) is better, "
        "but its model is gone: lost with a damaged checkpoint, or removed"
    )


def test_an_evaluation_without_a_value_keeps_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, (None, None), keep=2)
    run.attempt()
    assert contents(tmp_path) == {}
    assert Keeper(tmp_path, rule(2), CARD).best() is None


def test_the_reason_of_an_early_stop_stands_in_the_sentence(tmp_path: Path) -> None:
    choice = Keeper(tmp_path, rule(1), CARD).choice(Run(tmp_path, (0.5,), 1).lines(1), 1, "stopped early at step 1: x")
    assert choice is not None
    assert choice.body["why"] == "step 1 has the only v/auroc/mean (0.5000), on s:val; stopped early at step 1: x"


def test_a_folder_that_cannot_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path, (0.5,), keep=2).attempt()

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"best: cannot be removed: Permission denied"):
        Keeper(tmp_path, rule(2), CARD).forget_after(0)
