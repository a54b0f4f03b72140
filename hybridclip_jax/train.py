"""The loop: build, restore, step, log, evaluate, save. One loop for every objective."""

from __future__ import annotations

import collections
import math
import platform
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from hybridclip_jax import accounting, build, chance, logs, modelfolder, report, rundir, selection, sharding
from hybridclip_jax import config as configs
from hybridclip_jax.build import Job
from hybridclip_jax.checkpoint import Checkpoints
from hybridclip_jax.data import audit
from hybridclip_jax.data.loader import Batch
from hybridclip_jax.errors import RunStopped, UserError
from hybridclip_jax.evals.encode import Work
from hybridclip_jax.state import TrainState

# A step is handed to the device while this many batches behind it are already on their way.
AHEAD = 2
# So many steps in a row without a finite loss and gradient end the run.
NONFINITE_LIMIT = 3
BEST = "best.json"
# The watchdog judges the logged losses of this many steps.
CHANCE_WINDOW = 500


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
        self.trained = job.model.optimizer.trainable

    def go(self) -> None:
        state, start = self._restore()
        if start == self.config.steps:
            print(f"{self.workdir}: already finished at step {start:,}; give another --workdir to train anew")
        else:
            self._announce(start)
        self.writer = logs.MetricsWriter(self.workdir, start or None)
        self.bar = logs.Progress(self.config.steps, "train", "step", initial=start)
        try:
            self._write_audit()
            self._write_summary(start, finished=start == self.config.steps)
            if start:
                self._mend_best(start, state)
            if start < self.config.steps:
                state = self._train(state, start)
            self._finish()
        except RunStopped as stopped:
            self._stop(str(stopped))
            raise
        finally:
            self.bar.close()
            self.writer.close()

    # --- start

    def _restore(self) -> tuple[TrainState, int]:
        saved, step = self.checkpoints.steps(), self.checkpoints.newest_verified()
        for damaged in (n for n in saved if step is None or n > step):
            print(f"warning: checkpoint {damaged:,} is damaged and not used; kept as checkpoints/damaged-{damaged}")
        if step is None:
            if saved:
                print("warning: no checkpoint can be used: starting anew at step 0")
            self._drop_best_after(0)
            return build.fresh_state(self.job), 0
        state, notes = self.checkpoints.restore(step, build.restore_target(self.job))
        for name, fingerprint in self._fingerprints().items():
            if notes["inputs"].get(name) != fingerprint:
                raise UserError(f"{name}: changed since this run began; use another --workdir")
        self.meter.load_state(notes["meter"])
        self._drop_best_after(step)
        return state, step

    def _fingerprints(self) -> dict[str, str]:
        """Of every store and folder of weights: others' values in one metrics.jsonl would not compare."""
        stores = [self.job.store, *(evaluator.store for evaluator in self.job.evaluators.values())]
        weights = {self.config.model[tower].weights: loaded.fingerprint for tower, loaded in self.job.weights.items()}
        return {store.spec: store.fingerprint for store in stores} | weights

    def _drop_best_after(self, step: int) -> None:
        """A model of a step that is taken again must not outlive it: the same step may turn out otherwise."""
        if (self._held_step() or 0) > step:
            (self.workdir / BEST).unlink()
            shutil.rmtree(self.workdir / "best", ignore_errors=True)

    def _mend_best(self, step: int, state: TrainState) -> None:
        """A kill may have come between a checkpoint and the best/ of the same step."""
        best = self._choice(step)
        if best is not None and best["step"] == step != self._held_step():
            self._keep(best, step, state)

    def _announce(self, start: int) -> None:
        job, config = self.job, self.config
        print(logs.parameter_table(job.abstract.params, self.trained.__contains__))
        every = parameter_overview.get_parameter_overview(job.abstract.params, include_stats=False, max_lines=None)
        rundir.write_whole(self.workdir / "parameters.txt", every + "\n")
        rows = [["train", job.store.spec, len(job.store), len(job.store.patient_set)]]
        rows += [
            [f"eval {name}", e.store.spec, len(e.store), len(e.store.patient_set)] for name, e in job.evaluators.items()
        ]
        print("\n" + logs.table(["data", "store", "records", "patients"], rows))
        mesh = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items())
        print(f"\n{len(self.devices)} x {self.devices[0].device_kind}, mesh {mesh}, {config.compute.dtype}")
        print(self._prediction(start))
        if job.synthetic:
            print("synthetic data: phantoms, not patients; no figure of this run says anything about real images")
        for warning in job.warnings:
            print(f"warning: {warning}")
        if start:
            print(f"resuming at step {start:,}")

    def _write_audit(self) -> None:
        """Without near copies, which take minutes to hours: `hybridclip doctor` looks for those."""
        stores = [self.job.store, *(evaluator.store for evaluator in self.job.evaluators.values())]
        distinct = {(str(store.path.resolve()), store.split): store for store in stores}
        rundir.write_json(self.workdir / "audit.json", audit.examine(list(distinct.values())))

    def _prediction(self, start: int) -> str:
        widths = [self.job.stream.batch(start + i).tokens.shape[1] for i in range(3)]
        flops = self._flops(int(np.median(widths))) * (self.config.steps - start)
        text = f"{self.config.steps - start:,} steps to go, about {accounting.pf_days(flops):.2g} PF-days"
        if self.meter.peak.flops:
            hours = accounting.hours(flops, self.meter.peak.flops, len(self.devices))
            return f"{text}, {hours:.1f} h at {accounting.ASSUMED_USE:.0%} use of the peak"
        return f"{text}; hours unknown: {self.meter.peak.why}"

    # --- the loop

    def _train(self, state: TrainState, start: int) -> TrainState:
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
            self.meter.add(self._flops(width), seconds)
            if log:
                self._refuse_nonfinite(*pending)
                pending = None
                self._log(step, metrics, host, window)
                window = _Window()
            else:
                self.bar.update(step, self.bar.suffix)
            self._milestones(step, state)
        return state

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

    def _flops(self, text_width: int) -> int:
        spec = self.job.model.spec
        return accounting.step_flops(
            spec.image_arch,
            spec.text_arch,
            embed_dim=spec.embed_dim,
            image_size=self.config.data.image_size,
            text_tokens=text_width,
            batch_size=self.config.batch_size,
            trainable=self.trained.__contains__,
        ).total

    # --- evaluation, choice, checkpoint

    def _milestones(self, step: int, state: TrainState) -> None:
        last = step == self.config.steps
        best = None
        if self.job.evaluators and (last or step % self.config.eval_every == 0):
            self._evaluate(step, state)
            best = self._choice(step)
        at_chance = self._at_chance(step) if step % self.config.eval_every == 0 else ""
        stop = at_chance and not last and self.config.watchdog.at_chance == "stop"
        # With each new best: were it lost to a kill, best/ would hold a step that is taken again.
        new_best = best is not None and best["step"] == step
        if last or stop or new_best or step % self.config.checkpoint.every == 0:
            self._save(step, state)
        if best is not None:
            self._keep(best, step, state)
        if stop:
            raise RunStopped(f"{at_chance}; watchdog.at_chance = stop")
        if at_chance:
            self.bar.line(f"warning: {at_chance}")

    def _evaluate(self, step: int, state: TrainState) -> None:
        began = time.perf_counter()
        for name, evaluator in self.job.evaluators.items():
            started = time.perf_counter()
            values = evaluator.run(self.job.encode, state.arrays)
            mark = {"synthetic": True} if evaluator.store.synthetic else {}
            self.writer.write(step, f"eval/{name}", {**values, "eval_s": time.perf_counter() - started, **mark})
            mean = values.get("auroc/mean")
            self.bar.line(f"step {step:,}  {name}  mean AUROC {'undefined' if mean is None else f'{mean:.4f}'}")
        self.meter.add_eval(self._eval_flops(), time.perf_counter() - began)

    def _eval_flops(self) -> int:
        """Of what the encoders have run since this was last asked."""
        spec, work = self.job.model.spec, self.job.encode.work
        total = accounting.image_flops(
            spec.image_arch, embed_dim=spec.embed_dim, image_size=self.config.data.image_size, images=work.images
        )
        for width, texts in work.texts.items():
            total += accounting.text_flops(spec.text_arch, embed_dim=spec.embed_dim, text_tokens=width, texts=texts)
        self.job.encode.work = Work()
        return total

    def _choice(self, step: int) -> dict[str, Any] | None:
        """The best of the evaluated steps whose parameters are at hand: this one, and that of best/."""
        metric, mode = self.config.select.metric, self.config.select.mode
        values = selection.history(logs.read_metrics(self.workdir / logs.METRICS_FILE), metric)
        at_hand = {step, self._held_step()}
        best = selection.choose(values, metric, mode)
        if best is not None and best["step"] not in at_hand:  # lost with a checkpoint that was damaged
            best = selection.choose([pair for pair in values if pair[0] in at_hand], metric, mode)
        return best

    def _held_step(self) -> int | None:
        """The step whose parameters best/ holds: best.json is written after it."""
        best = rundir.read_json(self.workdir / BEST)
        step = best.get("step") if isinstance(best, dict) else None
        return step if isinstance(step, int) else None

    def _keep(self, best: dict[str, Any], step: int, state: TrainState) -> None:
        if best["step"] == step:
            modelfolder.save(self.workdir / "best", jax.device_get(state.arrays), build.card(self.job))
        rundir.write_json(self.workdir / BEST, {**best, "synthetic": self.job.synthetic})

    def _at_chance(self, step: int) -> str:
        """What to say of the last steps' losses; empty where there is nothing to say, or not yet."""
        batch = self.config.batch_size
        losses = [
            line["loss"]
            for line in logs.read_metrics(self.workdir / logs.METRICS_FILE)
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
        self._write_summary(step, finished=step == self.config.steps)

    # --- end

    def _write_summary(self, step: int, *, finished: bool, stopped: str | None = None) -> None:
        lines = logs.read_metrics(self.workdir / logs.METRICS_FILE) if step else []
        rates = [line["pairs_per_s"] for line in lines if line["split"] == "train" and line.get("pairs_per_s")]
        summary = {
            "step": step,
            "steps": self.config.steps,
            "finished": finished,
            "exit": stopped,
            "wall_s": lines[-1]["wall_s"] if lines else 0.0,
            "pairs_per_s": float(np.median(rates)) if rates else None,
            **self.meter.summary(),
            "parameters": logs.tower_counts(self.job.abstract.params, self.trained.__contains__),
            "devices": {
                "kind": self.devices[0].device_kind,
                "count": len(self.devices),
                "mesh": dict(self.job.mesh.shape),
            },
            "data": {
                "train": _describe(self.job.store),
                "evals": {name: _describe(e.store) for name, e in self.job.evaluators.items()},
            },
            "versions": {"python": platform.python_version(), **_versions()},
            "command": self.command,
            "synthetic": self.job.synthetic,
            "warnings": list(self.job.warnings),
            "best": rundir.read_json(self.workdir / BEST),
        }
        rundir.write_json(self.workdir / "summary.json", summary)

    def _stop(self, why: str) -> None:
        """Leaves the report of a run that cannot go on: that is when somebody wants to see its curves."""
        self.bar.close()
        reached = max(line["step"] for line in logs.read_metrics(self.workdir / logs.METRICS_FILE))
        self._write_summary(reached, finished=False, stopped=why)
        report.render(self.workdir)

    def _finish(self) -> None:
        self.bar.close()
        report.render(self.workdir)
        lines = logs.read_metrics(self.workdir / logs.METRICS_FILE)
        best = rundir.read_json(self.workdir / BEST)
        print("\n" + report.end_table(best or {}, lines, self.workdir))


class _Window:
    """Training time since the last logged line: wall seconds, seconds waited for input, steps."""

    def __init__(self) -> None:
        self.seconds = self.waited = 0.0
        self.steps = 0

    def add(self, seconds: float, waited: float) -> None:
        self.seconds, self.waited, self.steps = self.seconds + seconds, self.waited + waited, self.steps + 1


def _describe(store: Any) -> dict[str, Any]:
    return {
        "spec": store.spec,
        "records": len(store),
        "patients": len(store.patient_set),
        "synthetic": store.synthetic,
        "fingerprint": store.fingerprint,
    }


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {name: metadata.version(name) for name in names}
