"""The models a run keeps: best/ and best.json, and the best few in kept/.

A checkpoint of a step is on the disk before its model is kept, and a model is put in place before another is removed
for it. So whatever moment a run is killed at, the models that its newest checkpoint calls for are there or can be made
of that checkpoint's own parameters, and `keep` at the start of the next attempt leaves what it would have left.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from hybridclip_jax import modelfolder, rundir, selection
from hybridclip_jax.errors import StorageError

BEST, KEPT = "best", "kept"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is kept at a step. body: best.json. steps: of the kept models, best first. new: this step is of them."""

    body: dict[str, Any]
    steps: tuple[int, ...]
    new: bool


class Keeper:
    """best/ holds the chosen model, kept/step-N/ the best `rule.keep` with it among them, where that is more than one.

    Methods raise StorageError where the disk refuses.
    """

    def __init__(self, workdir: Path, rule: selection.Rule, card: modelfolder.Card) -> None:
        self.workdir, self.rule, self.card = workdir, rule, card

    def held(self) -> set[int]:
        """The steps whose models are at hand. best.json is written after best/."""
        steps = {int(found[1]) for path in self._kept() if (found := re.fullmatch(r"step-(\d+)", path.name))}
        best = self._best_step()
        return steps if best is None else steps | {best}

    def forget_after(self, step: int) -> None:
        """A model of a step that is taken again must not outlive it: the same step may turn out otherwise."""
        if (self.best() or {}).get("step", 0) > step:
            (self.workdir / f"{BEST}.json").unlink()
            _remove(self.workdir / BEST)
        for late in self.held():
            if late > step:
                _remove(self._folder(late))

    def choice(self, lines: Sequence[Mapping[str, Any]], step: int, stopped: str = "") -> Choice | None:
        """Of the evaluated steps whose parameters are at hand: this one's, and those that are held.

        `stopped`: why the run ends early with this step. None where no value is defined.
        """
        values = selection.history(lines, self.rule.metric)
        at_hand = self.held() | {step}
        usable = [one for one in selection.ranked(values, self.rule.mode) if one.step in at_hand]
        best = selection.choose(values, self.rule, at_hand)
        if best is None:
            return None
        top = usable[: self.rule.keep]
        kept = [{"step": one.step, "value": one.value, "folder": f"{KEPT}/{_name(one.step)}"} for one in top]
        body = {**best, "kept": kept if self.rule.keep > 1 else [], "synthetic": self.card.synthetic}
        body["why"] += f"; {stopped}" if stopped else ""
        return Choice(body, tuple(one.step for one in top), any(one.step == step for one in top))

    def keep(self, choice: Choice, step: int, arrays: Mapping[str, jax.Array]) -> None:
        """Brings best/, best.json and kept/ to the choice. `arrays`: the parameters and statistics at `step`."""
        chosen = choice.body["step"]
        best = self.workdir / BEST
        if self.rule.keep > 1 and choice.new and not self._folder(step).exists():
            self._save(self._folder(step), arrays)
        if chosen != self._best_step():
            if self._folder(chosen).exists():
                modelfolder.link(self._folder(chosen), best)
            else:
                self._save(best, arrays)
        body = {**choice.body, "fingerprint": modelfolder.stated_fingerprint(best)}
        rundir.write_json(self.workdir / f"{BEST}.json", body)
        wanted = {_name(one) for one in choice.steps} if self.rule.keep > 1 else set()
        for path in self._kept():
            if path.name not in wanted:
                _remove(path)
        for path in modelfolder.temporary(best):
            shutil.rmtree(path, ignore_errors=True)

    def best(self) -> dict[str, Any] | None:
        """The body of best.json, where there is one."""
        body = rundir.read_json(self.workdir / f"{BEST}.json")
        return body if isinstance(body, dict) else None

    def _best_step(self) -> int | None:
        """The step whose model best/ holds; None where there is none, or another than best.json tells of."""
        body = self.best()
        if body is None or not (self.workdir / BEST / modelfolder.CARD).is_file():
            return None
        held = modelfolder.stated_fingerprint(self.workdir / BEST)
        return body["step"] if body.get("fingerprint", held) == held else None

    def _save(self, folder: Path, arrays: Mapping[str, Any]) -> None:
        modelfolder.save(folder, jax.device_get(dict(arrays)), self.card)

    def _kept(self) -> list[Path]:
        folder = self.workdir / KEPT
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _folder(self, step: int) -> Path:
        return self.workdir / KEPT / _name(step)


def _name(step: int) -> str:
    return f"step-{step}"


def _remove(folder: Path) -> None:
    """Renamed first: a kill then leaves no folder of that name without its files."""
    if folder.name.startswith("."):  # left by a kill
        shutil.rmtree(folder, ignore_errors=True)
        return
    _, gone = modelfolder.temporary(folder)
    try:
        if folder.exists():
            shutil.rmtree(gone, ignore_errors=True)
            folder.replace(gone)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be removed: {error.strerror}") from error
    shutil.rmtree(gone, ignore_errors=True)
