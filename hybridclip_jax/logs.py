"""What a run tells: metrics.jsonl and TensorBoard events for machines, a bar and plain tables for people."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from hybridclip_jax import rundir
from hybridclip_jax.errors import StorageError, UserError

METRICS_FILE = rundir.METRICS
TOWERS = ("image", "image_projection", "text", "text_projection", "logit_scale")


def is_time_metric(name: str) -> bool:
    """True where a value measures time or rate, so that equal runs may differ in it; others must agree."""
    return name.endswith(("_s", "_ms", "_per_s")) or name in {"tflops", "mfu", "pf_days_capacity"}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, one dict each, in file order.

    A last line that a kill left torn is dropped; a line written again for the same (step, split) replaces the
    earlier one. Raises UserError where the file is missing or an earlier line is damaged.
    """
    path = Path(path)
    try:
        raw = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; give the --workdir of a run that has logged a step") from None
    last = max((i for i, text in enumerate(raw) if text.strip()), default=-1)
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for i, text in enumerate(raw[: last + 1]):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            key = (int(line["step"]), str(line["split"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            if i == last:
                break
            raise UserError(f"{path} line {i + 1}: not a metrics record; delete that line") from None
        lines[key] = line
    return list(lines.values())


class MetricsWriter:
    """Writes `workdir/metrics.jsonl`, one object a line, and TensorBoard events in `workdir/tb`.

    `resume_step` None begins both anew. A number keeps the lines with step <= resume_step and drops later
    ones (atomically: a kill leaves the old file or the new one), so that replayed steps do not appear twice.
    `wall_s` counts the seconds of every attempt whose lines were kept. Raises StorageError where the disk
    refuses.
    """

    def __init__(self, workdir: Path, resume_step: int | None) -> None:
        self.path = Path(workdir) / METRICS_FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept: list[dict[str, Any]] = []
            if resume_step is not None and self.path.exists():
                kept = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
            _replace(self.path, "".join(map(_dump, kept)))
            self._file = self.path.open("a", encoding="utf-8")
            self._events = _Events(self.path.parent / "tb", 0 if resume_step is None else resume_step + 1)
        except OSError as error:
            raise self._refused(error) from error
        self._start = time.monotonic() - max((line.get("wall_s") or 0.0 for line in kept), default=0.0)

    def write(self, step: int, split: str, values: Mapping[str, float | str | None]) -> None:
        """Appends one line {"step", "split", "wall_s", **values} and flushes it.

        Numbers (also zero-dimensional arrays) are written so that they read back equal to the last bit; NaN
        and infinities become null. Strings (`auroc_why/...`) go to metrics.jsonl alone.
        """
        line: dict[str, Any] = {"step": int(step), "split": split}
        line["wall_s"] = round(time.monotonic() - self._start, 3)
        line.update((name, _plain(value)) for name, value in values.items())
        try:
            self._file.write(_dump(line))
            self._file.flush()
            numbers = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
            self._events.write(line["step"], {f"{split}/{name}": value for name, value in numbers.items()})
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Returns when the lines written so far are on the disk. Raises StorageError where it refuses."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        self._file.close()
        self._events.close()

    def _refused(self, error: OSError) -> StorageError:
        why = error.strerror or type(error).__name__
        return StorageError(f"{self.path}: cannot be written ({why}); free space or fix rights, then run again")


class _Events:
    """A TensorBoard event file in `folder`; what older files hold at `purge_step` and later is withdrawn.

    One event a line, written in the caller's thread: SummaryWriter's queue costs 1.3 ms for 20 scalars, and a
    kill loses what waits in it.
    """

    FLUSH_S = 2.0

    def __init__(self, folder: Path, purge_step: int) -> None:
        # Imported here: tables and bars are used where tensorboardX is not installed (benchmark machines).
        with _hidden("torch"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names; two attempts may share a second.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))
        self._writer.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        summary = self._summary(value=values)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > self.FLUSH_S:  # a flush also syncs the disk: not every line
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """tensorboardX tries to import torch and does without: seconds, and memory, that a run has no use for."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # as the import system spells "not to be found"
    try:
        yield
    finally:
        del sys.modules[module]


def _plain(value: Any) -> float | int | str | None:
    if value is None or isinstance(value, (str, int)):
        return value
    number = value.item() if hasattr(value, "item") else float(value)
    return number if isinstance(number, int) or math.isfinite(number) else None


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Progress:
    """One bar on a terminal: done/total, rate, time left, a suffix. Silent where `stream` is no terminal.

    `unit` is what is counted, in the singular ("step", "image"). The rate is that of the last 30 seconds,
    because a compilation at the start would spoil it for long. `stream` is stderr unless given.
    """

    WINDOW_S, REDRAW_S = 30.0, 0.1

    def __init__(self, total: int, label: str, unit: str, initial: int = 0, stream: TextIO | None = None) -> None:
        self.total, self.label, self.unit, self.done, self.suffix = total, label, unit, initial, ""
        self.stream = sys.stderr if stream is None else stream
        self.active = self.stream.isatty()
        self._marks = deque([(time.monotonic(), initial)])
        self._drawn = -math.inf
        self._draw()

    def update(self, done: int, suffix: str = "") -> None:
        """Sets the count to `done` (not by how much it grew); redraws at most ten times a second."""
        self.done, self.suffix = done, suffix
        now = time.monotonic()
        if not self.active or now - self._drawn < self.REDRAW_S:
            return
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] > self.WINDOW_S:
            self._marks.popleft()
        self._draw()

    def line(self, text: str) -> None:
        """Prints a whole line on stdout, above the bar where there is one."""
        if self.active:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
        print(text, flush=True)
        self._draw()

    def close(self) -> None:
        """Leaves the last state on its own line; later calls do nothing."""
        if self.active:
            self._draw()
            self.stream.write("\n")
            self.stream.flush()
        self.active = False

    def _draw(self) -> None:
        if not self.active:
            return
        self._drawn = time.monotonic()
        share = min(max(self.done / self.total, 0.0), 1.0) if self.total else 1.0
        bar = "#" * int(20 * share)
        text = f"{self.label} [{bar:<20}] {self.done:,}/{self.total:,}"
        (since, before), (now, count) = self._marks[0], self._marks[-1]
        if count > before and now > since:
            rate = (count - before) / (now - since)
            shown = f"{rate:,.1f} {self.unit}s/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self.unit}"
            text += f"  {shown}  {duration((self.total - self.done) / rate)} left"
        if self.suffix:
            text += f"  {self.suffix}"
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            columns = 80
        self.stream.write("\r" + text[: columns - 1] + "\x1b[K")
        self.stream.flush()


class Bars:
    """One bar after the other, each begun when its label is told of first. A total may grow. Counts `unit`s."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Progress | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.label != label:
            self.close()
            self._bar = Progress(total, label, self._unit, initial=done)
        self._bar.total = total
        self._bar.update(done)

    def close(self) -> None:
        """Leaves the last bar as it is, on its own line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 6 min 05 s, 3 h 20 min, 2 d 04 h."""
    s = max(round(seconds), 0)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600:02d} h"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned plain text: a column whose cells are all numbers stands right. No trailing newline."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [bool(cells) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = [list(headers), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").rstrip("%") or "x")
    except ValueError:
        return cell in ("-", "n/a")
    return True


class ArrayLike(Protocol):
    """Anything with a shape and a dtype: arrays, jax.ShapeDtypeStruct."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def tower_counts(params: Mapping[str, ArrayLike], trainable: Callable[[str], bool]) -> dict[str, dict[str, int]]:
    """{tower: {"count", "trainable"}} of a flat dict of arrays or shapes, in the order of TOWERS."""
    present = {name.split("/")[0] for name in params}
    towers = [t for t in TOWERS if t in present] + sorted(present.difference(TOWERS))
    counts = {tower: {"count": 0, "trainable": 0} for tower in towers}
    for name, leaf in params.items():
        tower = counts[name.split("/")[0]]
        tower["count"] += math.prod(leaf.shape)
        tower["trainable"] += math.prod(leaf.shape) * trainable(name)
    return counts


def parameter_table(params: Mapping[str, ArrayLike], trainable: Callable[[str], bool]) -> str:
    """Per tower: parameters, how many train, dtype; then a sentence that says what trains and what is frozen.

    `params` is the flat dict of arrays (or of shapes); `trainable` says of a name whether it trains.
    """
    counts = tower_counts(params, trainable)
    rows: list[list[object]] = []
    for tower, count in counts.items():
        dtypes = sorted({str(leaf.dtype) for name, leaf in params.items() if name.split("/")[0] == tower})
        rows.append([tower, f"{count['count']:,}", f"{count['trainable']:,}", ", ".join(dtypes)])
    totals = (sum(count[kind] for count in counts.values()) for kind in ("count", "trainable"))
    rows.append(["total", *(f"{total:,}" for total in totals), ""])
    words = _what_trains(params, list(counts), trainable)
    return table(["tower", "parameters", "trainable", "dtype"], rows) + f"\n{words}"


def _what_trains(params: Mapping[str, ArrayLike], towers: Sequence[str], trainable: Callable[[str], bool]) -> str:
    whole: dict[bool, list[str]] = {True: [], False: []}
    mixed: list[str] = []
    for tower in towers:
        flags = {name: trainable(name) for name in params if name.split("/")[0] == tower}
        if len(set(flags.values())) == 1:
            whole[next(iter(flags.values()))].append(tower)
        else:
            mixed.append(f"{tower} trains in part ({_parts(flags)})")
    if not whole[False] and not mixed:
        return "Everything trains; nothing is frozen."
    if not whole[True] and not mixed:
        return "Everything is frozen; nothing trains."
    clauses = [f"{_listed(whole[True])} train{'s' if len(whole[True]) == 1 else ''}"] if whole[True] else []
    clauses += mixed
    if whole[False]:
        clauses.append(f"{_listed(whole[False])} {'is' if len(whole[False]) == 1 else 'are'} frozen")
    return "; ".join(clauses) + "."


def _parts(flags: Mapping[str, bool]) -> str:
    """`blocks 10-11 and norm trained, blocks 0-9 and patch_embed frozen`, from one tower's names."""
    parts: dict[str, set[bool]] = {}
    for name, flag in flags.items():
        path = name.split("/")
        part = f"block {path[2]}" if path[1] == "blocks" else path[1]
        parts.setdefault(part, set()).add(flag)
    said = []
    for state, verb in (({True}, "trained"), ({False}, "frozen"), ({True, False}, "trained in part")):
        chosen = [part for part, seen in parts.items() if seen == state]
        blocks = sorted(int(part.split()[1]) for part in chosen if part.startswith("block "))
        others = [part for part in chosen if not part.startswith("block ")]
        listed = ([f"blocks {_ranges(blocks)}"] if blocks else []) + others
        if listed:
            said.append(f"{_listed(listed)} {verb}")
    return ", ".join(said)


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
