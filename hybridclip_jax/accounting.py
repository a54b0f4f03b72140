"""What a run costs: FLOPs of the shapes really run, PF-days of work done, PF-days of machine time used.

B batch, T text tokens, E embedding. Matrix products and convolutions alone count,
one multiply-add as 2 FLOPs; biases, norms, softmax and other elementwise work do not, nor does recomputation
(remat, flash attention): these are *model* FLOPs. A PF-day is 1e15 operations a second for a day, 8.64e19
(OpenAI, "AI and Compute"). XLA's `cost_analysis` cannot stand in: it counts a scanned body once.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybridclip_jax.peaks import peak
from hybridclip_jax.rundir import write_json
from hybridclip_jax.tally import Tally, Trainable

PF_DAY = 1e15 * 86_400
# The use of peak that "AI and Compute" assumes where none was measured.
ASSUMED_USE = 0.33


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over the whole batch: `forward`, and `total` with the backward pass really done."""

    forward: int
    total: int


def _image(tally: Tally, arch: Any, embed_dim: int, image_size: int, batch: int) -> bool:
    needs = tally.tower("image", arch, batch=batch, image_size=image_size)
    flops = 2 * batch * arch.pooled_width * embed_dim
    return tally.linear("image_projection", flops, needs, bias=arch.projection_bias)


def _text(tally: Tally, arch: Any, embed_dim: int, tokens: int, batch: int) -> bool:
    needs = tally.tower("text", arch, batch=batch, tokens=tokens)
    return tally.linear("text_projection", 2 * batch * arch.width * embed_dim, needs, bias=False)


def step_flops(
    image_arch: Any,
    text_arch: Any,
    *,
    embed_dim: int,
    image_size: int,
    text_tokens: int,
    batch_size: int,
    trainable: Trainable,
) -> StepFlops:
    """FLOPs of one training step: both towers, their projections of the pooled token, and the B x B logits.

    `text_tokens` is the padded length T of this batch, `batch_size` the global batch. `trainable` is asked
    with flat parameter names such as `image/blocks/0/attn/q/kernel`. The result depends on the shapes and on
    what trains alone, so its sum over steps is a function of the step.
    """
    tally = Tally(trainable)
    image = _image(tally, image_arch, embed_dim, image_size, batch_size)
    text = _text(tally, text_arch, embed_dim, text_tokens, batch_size)
    tally.product(2 * batch_size * batch_size * embed_dim, image, text)
    return StepFlops(tally.forward, tally.forward + tally.backward)


def encode_flops(
    image_arch: Any, text_arch: Any, *, embed_dim: int, image_size: int, images: int, texts: Mapping[int, int]
) -> int:
    """FLOPs of encoding without gradients, as an evaluation does: `images`, and {padded length T: texts}.

    Rows that fill up a batch count, as they are computed too.
    """
    tally = Tally(lambda name: False)
    _image(tally, image_arch, embed_dim, image_size, images)
    for tokens, count in texts.items():
        _text(tally, text_arch, embed_dim, tokens, count)
    return tally.forward


def of_step(config: Any, model: Any, text_tokens: int) -> StepFlops:
    """`step_flops` of the model of a config (`build.Model`), whose texts are padded to `text_tokens`."""
    return step_flops(
        model.spec.image_arch,
        model.spec.text_arch,
        embed_dim=model.spec.embed_dim,
        image_size=config.data.image_size,
        text_tokens=text_tokens,
        batch_size=config.batch_size,
        trainable=model.optimizer.trainable.__contains__,
    )


def of_encoding(config: Any, model: Any, images: int, texts: Mapping[int, int]) -> int:
    """`encode_flops` of the model of a config (`build.Model`): `images`, and {padded length: texts}."""
    return encode_flops(
        model.spec.image_arch,
        model.spec.text_arch,
        embed_dim=model.spec.embed_dim,
        image_size=config.data.image_size,
        images=images,
        texts=texts,
    )


def pf_days(flops: float) -> float:
    """FLOPs -> PF-days, FLOPs / 8.64e19."""
    return flops / PF_DAY


def hours(flops: float, peak_flops: float, devices: int, use: float = ASSUMED_USE) -> float:
    """Hours that `flops` take on `devices` at the share `use` of their peak."""
    return flops / (peak_flops * devices * use) / 3600


class Meter:
    """Keeps two books of a run: the work done, and the machine time used.

    Work is a function of the step: it is part of the checkpoint (`state_dict`, `load_state`), so a step that
    is replayed after a kill counts once, and `pf_days_model` is the same to the last bit. Capacity, peak x
    devices x time, is what was spent: it runs from the meter's construction through compilation, evaluation
    and stalls, and is kept in `ledger`, one entry per attempt, written by each `window` (a kill loses at most
    one window).
    """

    def __init__(
        self,
        device_kind: str,
        devices: int,
        dtype: str,
        *,
        precision: str | None = None,
        ledger: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ledger` None (tests, processes other than the first) keeps the time of this attempt only."""
        self.peak = peak(device_kind, dtype, precision)
        self.devices = devices
        self._clock, self._started, self._ledger = clock, clock(), ledger
        self._earlier = _read_ledger(ledger)
        self._entry = {"device": device_kind, "devices": devices, "units": self.peak.why}
        self.train_flops = self.eval_flops = 0
        self.train_s = self.eval_s = 0.0
        self._window_flops, self._window_s = 0, 0.0

    def add(self, flops: int, seconds: float) -> None:
        """Training work: FLOPs of one or more steps and the wall seconds they took."""
        self.train_flops += flops
        self.train_s += seconds
        self._window_flops += flops
        self._window_s += seconds

    def add_eval(self, flops: int, seconds: float) -> None:
        """Evaluation work, kept apart from `pf_days_model`; its time is capacity like any other."""
        self.eval_flops += flops
        self.eval_s += seconds

    def attempts(self) -> list[dict[str, Any]]:
        """Every attempt of the run, this one last: its devices, peak FLOP/s of one or None, its seconds."""
        times = {"seconds": self._clock() - self._started, "train_s": self.train_s, "eval_s": self.eval_s}
        return [*self._earlier, {**self._entry, "peak_flops": self.peak.flops, **times}]

    def capacity(self) -> tuple[float | None, str]:
        """(PF-days that the devices of all attempts could have done, "") or (None, why it is not known)."""
        total = 0.0
        for attempt in self.attempts():
            if attempt["peak_flops"] is None:
                return None, attempt["units"]
            total += attempt["peak_flops"] * attempt["devices"] * attempt["seconds"]
        return pf_days(total), ""

    def window(self) -> dict[str, float | None]:
        """The values of a train line; begins a new window and writes the ledger.

        `tflops` is the achieved rate of all devices together and `mfu` its share of their peak, both over the
        training seconds since the last call; the PF-days count from the beginning of the run. Raises
        StorageError where the ledger cannot be written.
        """
        rate = self._window_flops / self._window_s if self._window_s > 0 else None
        self._window_flops, self._window_s = 0, 0.0
        mfu = None
        if rate is not None and self.peak.flops is not None:
            mfu = rate / (self.peak.flops * self.devices)
        self._write()
        return {
            "tflops": None if rate is None else rate / 1e12,
            "mfu": mfu,
            "pf_days_model": pf_days(self.train_flops),
            "pf_days_capacity": self.capacity()[0],
        }

    def summary(self) -> dict[str, Any]:
        """The run as a whole. `mfu` is pf_days_model / pf_days_capacity.

        Start-up, evaluation and replayed steps are in the capacity alone: it is below the windows' `mfu`.
        `eval_share` is evaluation's part of the run's FLOPs and of the wall time of all attempts, None of nothing.
        """
        capacity, why = self.capacity()
        model, attempts = pf_days(self.train_flops), self.attempts()
        eval_s = sum(a["eval_s"] for a in attempts)
        self._write()
        return {
            "pf_days_model": model,
            "pf_days_eval": pf_days(self.eval_flops),
            "pf_days_capacity": capacity,
            "mfu": model / capacity if capacity else None,
            "why_no_capacity": why or None,
            "peak_units": self.peak.why,
            "attempts": len(attempts),
            "train_s": sum(a["train_s"] for a in attempts),
            "eval_s": eval_s,
            "eval_share": {
                "flops": _share(self.eval_flops, self.train_flops + self.eval_flops),
                "wall": _share(eval_s, sum(a["seconds"] for a in attempts)),
            },
            "device_hours": sum(a["devices"] * a["seconds"] for a in attempts) / 3600,
        }

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint of this step holds: whole numbers, so that nothing is lost by rounding."""
        return {"train_flops": self.train_flops, "eval_flops": self.eval_flops}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Continues the work book from a checkpoint."""
        self.train_flops, self.eval_flops = int(state["train_flops"]), int(state["eval_flops"])

    def _write(self) -> None:
        if self._ledger is not None:
            write_json(self._ledger, {"attempts": self.attempts()})


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _read_ledger(ledger: Path | None) -> list[dict[str, Any]]:
    if ledger is None or not ledger.exists():
        return []
    unreadable: dict[str, Any] = {"device": "", "devices": 0, "units": f"{ledger.name} is damaged"}
    unreadable |= {"peak_flops": None, "seconds": 0.0, "train_s": 0.0, "eval_s": 0.0}
    try:
        attempts = json.loads(ledger.read_text())["attempts"]
        complete = all(unreadable.keys() <= attempt.keys() for attempt in attempts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        complete = False
    # Time that cannot be read back is not zero: such a run has no known capacity, and goes on.
    return attempts if complete else [unreadable]
