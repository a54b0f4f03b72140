"""The loop: build, restore, step, log, evaluate, save. One loop for every objective."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybridclip_jax import accounting, announce, build, chance, logs, report, rundir, selection, sharding, summary
from hybridclip_jax import config as configs
from hybridclip_jax.build import Job
from hybridclip_jax.checkpoint import Checkpoints
from hybridclip_jax.data.loader import Batch
from hybridclip_jax.errors import RunStopped, UserError
from hybridclip_jax.evals.encode import Work
from hybridclip_jax.keeping import Choice, Keeper
from hybridclip_jax.state import TrainState

# A step is handed to the device while this many batches behind it are already on their way.
AHEAD = 2
# So many steps in a row without a finite loss and gradient end the run.
NONFINITE_LIMIT = 3
# The watchdog judges the logged losses of this many steps.
CHANCE_WINDOW = 500
SUMMARY = "summary.json"


def run(config: Any, workdir: Path, command: str) -> None:
    """Trains `config` in `workdir`, or goes on where an earlier attempt of the same config ended.

    Raises UserError before the first step, RunStopped when the run cannot go on, StorageError when the disk refuses.
    """
    text = configs.to_json(config)
    rundir.refuse_another(workdir, text)
    job = build.job(config)  # before the folder is claimed: a config with a fault must not hold it
    with rundir.claimed(workdir, text):
        try:
            _Run(job, workdir, command).go()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"batch_size = {config.batch_size}: the devices have not enough memory; lower it, or set "
                "--config.compute.remat=True, and give the same command again"
            ) from error


class _Run:
    """One attempt of one run."""

    def __init__(self, job: Job, workdir: Path, command: str) -> None:
        self.job, self.config, self.workdir, self.command = job, job.config, workdir, command
        self.devices = list(job.mesh.devices.flat)
        self.checkpoints = Checkpoints(workdir / rundir.CHECKPOINTS, self.config.checkpoint.keep)
        self.meter = accounting.Meter(
            self.devices[0].device_kind,
            len(self.devices),
            self.config.compute.dtype,
            precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]  # jax adds it at run time
            ledger=workdir / "attempts.json",
        )
        self.keeper = Keeper(workdir, job.rule, build.card(job)) if job.rule else None

    def go(self) -> None:
        state, start = self._restore()
        work = announce.work(self.job)
        earlier = rundir.read_json(self.workdir / SUMMARY) or {}
        # Of the first attempt: the devices of a later one have only a part of the work.
        self.estimate = earlier.get("estimate") or announce.estimate(self.meter, work)
        with contextlib.closing(logs.MetricsWriter(self.workdir, start or None)) as self.writer:
            lines = self._lines()
            early = self._stopped_early(start, lines)
            over = bool(early) or start == self.config.steps
            if over:
                print(f"{self.workdir}: already finished at step {start:,}; give another --workdir to train anew")
            else:
                announce.announce(self.job, self.meter, start, work)
            with contextlib.closing(logs.Progress(self.config.steps, "train", "step", initial=start)) as self.bar:
                announce.write_files(self.job, self.workdir)
                if start and self.keeper:
                    # A kill may have come between a checkpoint and what is kept of the same step.
                    self._keep(self.keeper.choice(lines, start, early), start, state)
                self._write_summary(start, lines, finished=over, early=early)
                try:
                    if not over:
                        self._train(state, start)
                except RunStopped as stopped:
                    self._stop(str(stopped))
                    raise
            self._finish()

    # --- start

    def _restore(self) -> tuple[TrainState, int]:
        saved, step = self.checkpoints.steps(), self.checkpoints.newest_verified()
        for damaged in (n for n in saved if step is None or n > step):
            print(f"warning: checkpoint {damaged:,} is damaged and not used; kept as checkpoints/damaged-{damaged}")
        if step is None:
            if saved:
                print("warning: no checkpoint can be used: starting anew at step 0")
            self._forget_after(0)
            return build.fresh_state(self.job), 0
        state, notes = self.checkpoints.restore(step, build.restore_target(self.job))
        for name, fingerprint in self._fingerprints().items():
            if notes["inputs"].get(name) != fingerprint:
                raise UserError(f"{name}: changed since this run began; use another --workdir")
        self.meter.load_state(notes["meter"])
        self._forget_after(step)
        return state, step

    def _fingerprints(self) -> dict[str, str]:
        """Of every store and folder of weights: others' values in one metrics.jsonl would not compare."""
        weights = {self.config.model[tower].weights: loaded.fingerprint for tower, loaded in self.job.weights.items()}
        return {store.spec: store.fingerprint for store in self.job.stores} | weights

    def _forget_after(self, step: int) -> None:
        if self.keeper:
            self.keeper.forget_after(step)

    # --- the loop

    def _train(self, state: TrainState, start: int) -> None:
        window = _Window()
        pending: tuple[int, dict[str, jax.Array]] | None = None
        batches = self._on_device(start)
        for step in range(start + 1, self.config.steps + 1):
            began = time.perf_counter()
            host, batch = next(batches)
            waited = time.perf_counter() - began
            state, metrics = self.job.step(state, batch)
            if pending:
                self._refuse_nonfinite(*pending)
            pending = (step, metrics)
            width = host.tokens.shape[1]
            log = step % self.config.log_every == 0 or step in (1, self.config.steps)
            if log:
                jax.block_until_ready(metrics["loss"])
            seconds = time.perf_counter() - began
            window.add(seconds, waited)
            self.meter.add(accounting.of_step(self.config, self.job.model, width).total, seconds)
            if log:
                self._refuse_nonfinite(*pending)
                pending = None
                self._log(step, metrics, host, window)
                window = _Window()
            else:
                self.bar.update(step, self.bar.suffix)
            if self._milestones(step, state):
                return

    def _on_device(self, start: int) -> Iterator[tuple[Batch, dict[str, jax.Array]]]:
        """Host batches with their device copies, `AHEAD` transfers under way before they are needed."""
        queue: collections.deque[tuple[Batch, dict[str, jax.Array]]] = collections.deque()
        for host in self.job.stream.iterate(start, self.config.steps):
            queue.append((host, sharding.to_global({"image": host.image, "tokens": host.tokens}, self.job.mesh)))
            if len(queue) > AHEAD:
                yield queue.popleft()
        yield from queue

    def _refuse_nonfinite(self, step: int, metrics: dict[str, jax.Array]) -> None:
        total, streak = np.asarray(metrics["nonfinite"]).tolist()
        if not streak:
            return
        if streak >= NONFINITE_LIMIT:
            norms = {name: float(v) for name, v in metrics.items() if name.startswith("grad_norm/")}
            parts = [name.split("/")[1] for name, norm in norms.items() if not math.isfinite(norm)]
            where = ", ".join(parts) or ("the loss" if not math.isfinite(float(metrics["loss"])) else "the update")
            raise RunStopped(
                f"step {step}: {streak} steps in a row without finite loss, gradients and update (here: {where}); "
                f"no such update was applied. Lower optim.learning_rate, or use compute.dtype=float32"
            )
        self.bar.line(f"step {step}: loss, gradients or update not finite; update skipped ({total} so far)")

    def _log(self, step: int, metrics: dict[str, jax.Array], host: Batch, window: _Window) -> None:
        values: dict[str, float | None] = {name: float(value) for name, value in metrics.items() if name != "nonfinite"}
        seconds = window.seconds / window.steps
        values |= {
            "nonfinite_steps": int(metrics["nonfinite"][0]),
            "pairs_per_s": self.config.batch_size / seconds,
            "step_ms": 1e3 * seconds,
            "input_wait_ms": 1e3 * window.waited / window.steps,
            "text_tokens": host.text_tokens,
            "truncated": host.truncated,
            **self.meter.window(),
        }
        self.writer.write(step, "train", values)
        rate = f"{values['pairs_per_s']:.1f} pairs/s"
        self.bar.update(step, f"loss {values['loss']:.3f}  {rate}")

    # --- evaluation, choice, checkpoint

    def _milestones(self, step: int, state: TrainState) -> str:
        """What falls due after a step. Returns why the run ends with it before its last; empty where it goes on."""
        last, at_chance, early, choice = step == self.config.steps, "", "", None
        due = last or step % self.config.eval_every == 0
        if self.keeper and due:
            self._evaluate(step, state)
        # Once a milestone: the file grows with the run.
        lines = self._lines() if due or step % self.config.checkpoint.every == 0 else []
        if self.keeper and due:
            early = self._stopped_early(step, lines)
            choice = self.keeper.choice(lines, step, early)
        if step % self.config.eval_every == 0:
            at_chance = self._at_chance(step, lines)
        stop = at_chance and not last and self.config.watchdog.at_chance == "stop"
        # With each model that is kept: were the checkpoint lost to a kill, its step would be taken again.
        new = choice is not None and choice.new
        save = last or stop or early or new or step % self.config.checkpoint.every == 0
        if save:
            self._save(step, state)
        self._keep(choice, step, state)
        if save:
            self._write_summary(step, lines, finished=last or bool(early), early=early)
        if stop:
            raise RunStopped(f"{at_chance}; watchdog.at_chance = stop")
        if at_chance:
            self.bar.line(f"warning: {at_chance}")
        if early:
            self.bar.line(early)
        return early

    def _evaluate(self, step: int, state: TrainState) -> None:
        began = time.perf_counter()
        for name, evaluator in self.job.evaluators.items():
            self.bar.update(step, f"evaluating {name}")
            started = time.perf_counter()
            values = evaluator.run(self.job.encode, state.arrays)
            mark = {"synthetic": True} if evaluator.store.synthetic else {}
            self.writer.write(step, f"eval/{name}", {**values, "eval_s": time.perf_counter() - started, **mark})
            chooser, _, key = self.config.select.metric.partition("/")
            shown = selection.shown(values, key if name == chooser else selection.headline(values))
            self.bar.line(f"step {step:,}  {name}  {shown}")
        self.meter.add_eval(self._eval_flops(), time.perf_counter() - began)

    def _eval_flops(self) -> int:
        """Of what the encoders have run since this was last asked."""
        work, self.job.encode.work = self.job.encode.work, Work()
        return accounting.of_encoding(self.config, self.job.model, work.images, work.texts)

    def _keep(self, choice: Choice | None, step: int, state: TrainState) -> None:
        if choice and self.keeper:
            self.keeper.keep(choice, step, state.arrays)

    def _lines(self) -> list[dict[str, Any]]:
        return logs.read_metrics(self.workdir / logs.METRICS_FILE)

    def _stopped_early(self, step: int, lines: list[dict[str, Any]]) -> str:
        """Why the run ends with this step; empty where it goes on, or where it is the last anyway."""
        if not self.job.rule or step in (0, self.config.steps):
            return ""
        return selection.stopped_early(lines, self.job.rule)

    def _at_chance(self, step: int, lines: list[dict[str, Any]]) -> str:
        """What to say of the last steps' losses; empty where there is nothing to say, or not yet."""
        batch = self.config.batch_size
        losses = [
            line["loss"]
            for line in lines
            if line["split"] == "train" and step - CHANCE_WINDOW < line["step"] <= step and line["loss"] is not None
        ]
        if step < CHANCE_WINDOW or not chance.reached(losses, batch):
            return ""
        return (
            f"step {step:,}: the mean loss of the last {CHANCE_WINDOW} steps, {np.mean(losses):.3f}, is at chance "
            f"(ln {batch} = {chance.loss(batch):.3f}): the model is learning nothing yet"
        )

    def _save(self, step: int, state: TrainState) -> None:
        notes = {"inputs": self._fingerprints(), "meter": self.meter.state_dict()}
        self.writer.sync()  # a resumed run keeps the lines up to its checkpoint, so they must outlive it
        self.checkpoints.save(step, state, notes)

    # --- end

    def _write_summary(
        self, step: int, lines: list[dict[str, Any]], *, finished: bool, early: str = "", stopped: str | None = None
    ) -> None:
        body = summary.body(
            self.job,
            self.meter,
            lines,
            step=step,
            finished=finished,
            stopped=stopped,
            stopped_early=early or None,
            best=self.keeper.best() if self.keeper else None,
            estimate=self.estimate,
            command=self.command,
        )
        rundir.write_json(self.workdir / SUMMARY, body)

    def _stop(self, why: str) -> None:
        """Leaves the report of a run that cannot go on: that is when somebody wants to see its curves."""
        lines = self._lines()
        self._write_summary(max(line["step"] for line in lines), lines, finished=False, stopped=why)
        report.render(self.workdir)

    def _finish(self) -> None:
        report.render(self.workdir)
        best = self.keeper.best() if self.keeper else None
        print("\n" + report.end_table(best or {}, self._lines(), self.workdir))
        if said := summary.eval_share(self.meter):
            print(said)


class _Window:
    """Training time since the last logged line: wall seconds, seconds waited for input, steps."""

    def __init__(self) -> None:
        self.seconds = self.waited = 0.0
        self.steps = 0

    def add(self, seconds: float, waited: float) -> None:
        self.seconds, self.waited, self.steps = self.seconds + seconds, self.waited + waited, self.steps + 1
