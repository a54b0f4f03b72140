"""metrics.jsonl through kills and resumes, TensorBoard events read back, the bar on a terminal, tables."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hybridclip_jax.errors import StorageError, UserError
from hybridclip_jax.logs import (
    MetricsWriter,
    Progress,
    duration,
    is_time_metric,
    parameter_table,
    read_metrics,
    table,
)


def lines_of(workdir: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_values_read_back_to_the_last_bit_and_undefined_ones_are_null(tmp_path: Path) -> None:
    exact = {
        "loss": 0.1 + 0.2,
        "tiny": 5e-324,
        "f32": np.float32(1) / np.float32(3),
        "jax": jnp.float32(4.159),
        "text_tokens": np.int64(2**53 + 1),
    }
    writer = MetricsWriter(tmp_path, None)
    writer.write(1, "train", exact)
    undefined = {"auroc/a": math.nan, "b": math.inf, "c": None, "d": np.float32("-inf")}
    writer.write(1, "eval/val", {**undefined, "auroc_why/a": "no positive image"})
    writer.close()
    train, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    assert list(train)[:3] == ["step", "split", "wall_s"]
    assert all(train[name] == float(value) for name, value in exact.items() if name != "text_tokens")
    assert train["text_tokens"] == 2**53 + 1
    assert all(evaluation[name] is None for name in undefined)
    assert evaluation["auroc_why/a"] == "no positive image"
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_resume_keeps_the_lines_up_to_its_step_and_drops_the_replayed_ones(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, None)
    for step in range(1, 7):
        writer.write(step, "train", {"loss": step / 7})
        if step % 2 == 0:
            writer.write(step, "eval/val", {"auroc/mean": step / 10})
    writer.close()
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()

    writer = MetricsWriter(tmp_path, 4)
    kept = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert kept == before[:6], "kept lines are the same bytes: steps 1-4, both splits"
    writer.write(5, "train", {"loss": 5 / 7})
    writer.close()
    keys = [(line["step"], line["split"]) for line in lines_of(tmp_path)]
    assert len(keys) == len(set(keys)) == 7
    assert not list(tmp_path.glob(".metrics*")), "no temporary file is left"

    MetricsWriter(tmp_path, None).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_wall_seconds_add_up_over_attempts(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "wall_s": 1000.5, "loss": 1.0}\n')
    writer = MetricsWriter(tmp_path, 1)
    writer.write(2, "train", {"loss": 0.5})
    writer.close()
    assert 1000.5 <= lines_of(tmp_path)[1]["wall_s"] < 1060  # type: ignore[operator]


def test_a_kill_between_the_new_file_and_its_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = MetricsWriter(tmp_path, None)
    for step in range(4):
        writer.write(step, "train", {"loss": 1.0})
    writer.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"No space left on device"):
        MetricsWriter(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_kill_9_leaves_whole_lines_and_a_torn_one_is_tolerated(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from hybridclip_jax.logs import MetricsWriter
        writer = MetricsWriter(Path(sys.argv[1]), None)
        step = 0
        while True:
            step += 1
            writer.write(step, "train", {"loss": step / 3})
            if step == 50:
                print("ready", flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    path = tmp_path / "metrics.jsonl"
    survived = read_metrics(path)
    assert [line["step"] for line in survived] == list(range(1, len(survived) + 1))
    assert len(survived) >= 50

    # The kernel may also have been stopped mid-write: every prefix of the file must read.
    whole = path.read_bytes().splitlines(keepends=True)[:3]
    for cut in range(1, len(whole[2])):
        path.write_bytes(b"".join(whole[:2]) + whole[2][:cut])
        assert len(read_metrics(path)) == (3 if cut == len(whole[2]) - 1 else 2)
    path.write_bytes(b"".join(whole[:2]) + whole[2][:10])
    writer = MetricsWriter(tmp_path, 3)
    writer.write(3, "train", {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3], "the torn line is gone, none is glued"


def test_damage_before_the_last_line_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 1e999, "split": "train"}\n{"step": 3, "split": "train"}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl line 2: .*delete that line"):
        read_metrics(path)
    path.write_text('{"step": 1, "split": "train"}\n{"st\n{"step": 3, "split": "train"}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl line 2: .*delete that line"):
        read_metrics(path)
    with pytest.raises(UserError, match=r"no such file"):
        read_metrics(tmp_path / "none" / "metrics.jsonl")


def test_read_metrics_gives_one_line_per_step_and_split(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "split": "train", "loss": 1}\n\n{"step": 1, "split": "eval/a"}\n'
        '{"step": 1, "split": "train", "loss": 2}\n'
    )
    assert [(line["split"], line.get("loss")) for line in read_metrics(path)] == [
        ("train", 2),
        ("eval/a", None),
    ]


def events_of(folder: Path) -> list[tuple[str, int, float]]:
    """Scalars of every event file, later files' purge applied, from the TFRecord frames themselves."""
    from tensorboardX.proto.event_pb2 import Event

    scalars: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (size,) = struct.unpack_from("<Q", raw, at)
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.HasField("session_log"):  # TensorBoard then withdraws that step and later ones
                scalars = [scalar for scalar in scalars if scalar[1] < event.step]
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return scalars


def test_tensorboard_events_read_back_with_replayed_steps_purged(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, None)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": step / 2, "skipped": None})
    writer.write(3, "eval/val", {"auroc/nodule": 0.5, "auroc_why/edema": "no positive image"})
    writer.close()
    writer = MetricsWriter(tmp_path, 2)
    writer.write(3, "train", {"loss": 9.0})
    writer.close()
    scalars = [scalar for scalar in events_of(tmp_path / "tb") if scalar[0] != "train/wall_s"]
    assert scalars == [("train/loss", 1, 0.5), ("train/loss", 2, 1.0), ("train/loss", 3, 9.0)]


BAR = """
    import time
    from hybridclip_jax.logs import Progress
    bar = Progress(200, "train", "step", initial=100)
    for done in range(101, 201):
        time.sleep(0.01)
        bar.update(done, suffix="loss 4.16")
        if done == 150:
            bar.line("step 150: mean AUROC 0.61")
    bar.close()
    bar.line("done")
"""


def run_on_terminal(program: str, columns: int) -> tuple[str, str]:
    """What the program writes to a terminal of that width on stderr, and to a pipe on stdout."""
    import fcntl
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = b""
    while select.select([master], [], [], 30)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux says EIO where the last writer closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    out = child.communicate(timeout=30)[0].decode()
    assert child.returncode == 0
    return seen.decode(), out


def test_the_bar_on_a_terminal_fits_and_says_what_is_left() -> None:
    err, out = run_on_terminal(BAR, 100)
    assert out == "step 150: mean AUROC 0.61\ndone\n", "lines go to stdout whole"
    draws = [frame.removesuffix("\x1b[K") for frame in re.split(r"\r|\n", err) if frame.strip("\x1b[K")]
    assert all(len(frame) < 100 for frame in draws)
    assert draws[0].startswith("train [##########          ] 100/200")
    assert re.search(r"\] 200/200  [\d.]+ steps/s  0 s left  loss 4.16$", draws[-1])
    assert any(re.search(r" 1\d\d/200  [\d.]+ steps/s  \d+ s left  loss 4.16$", frame) for frame in draws[1:-1])
    assert len(draws) < 40, "about ten draws a second, not one an update"

    narrow, _ = run_on_terminal(BAR, 30)
    assert all(len(f.removesuffix("\x1b[K")) < 30 for f in re.split(r"\r|\n", narrow))


def test_without_a_terminal_only_the_lines_are_printed() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(BAR)], capture_output=True, timeout=60)
    assert done.stderr == b""
    assert done.stdout == b"step 150: mean AUROC 0.61\ndone\n"


def test_an_empty_total_draws_nothing_wrong() -> None:
    bar = Progress(0, "prepare", "image")
    bar.update(0)
    bar.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (365, "6 min 05 s"), (12_000, "3 h 20 min"), (187_200, "2 d 04 h")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_table_aligns_numbers_right() -> None:
    assert table(["label", "auroc"], [["nodule", "0.9"], ["no finding", "-"]]).split("\n") == [
        "label       auroc",
        "----------  -----",
        "nodule        0.9",
        "no finding      -",
    ]
    assert table(["a", "b"], []).split("\n") == ["a  b", "-  -"]


def towers() -> dict[str, np.ndarray]:
    params = {f"image/blocks/{i}/attn/q/kernel": np.zeros((4, 4), np.float32) for i in range(12)}
    params["image/norm/scale"] = np.zeros(4, np.float32)
    params["image_projection/kernel"] = np.zeros((4, 2), np.float32)
    params["text/pos_embedding"] = np.zeros((3, 2), np.float16)
    params["text_projection/kernel"] = np.zeros((2, 2), np.float32)
    params["logit_scale"] = np.zeros((), np.float32)
    return params


def test_parameter_table_counts_each_tower_and_says_what_trains() -> None:
    rows = parameter_table(towers(), lambda name: True).split("\n")
    assert [row.split() for row in rows[2:8]] == [
        ["image", "196", "196", "float32"],
        ["image_projection", "8", "8", "float32"],
        ["text", "6", "6", "float16"],
        ["text_projection", "4", "4", "float32"],
        ["logit_scale", "1", "1", "float32"],
        ["total", "215", "215"],
    ]
    assert rows[-1] == "Everything trains; nothing is frozen."
    assert parameter_table(towers(), lambda name: False).endswith("\nEverything is frozen; nothing trains.")
    head = parameter_table(towers(), lambda name: name.startswith("image_projection"))
    assert head.endswith("\nimage_projection trains; image, text, text_projection and logit_scale are frozen.")
    frozen = re.compile(r"text|image/blocks/[0-9]/|image/norm")
    assert parameter_table(towers(), lambda name: not frozen.match(name)).endswith(
        "\nimage_projection and logit_scale train; image trains in part (blocks 10-11 trained, "
        "blocks 0-9 and norm frozen); text and text_projection are frozen."
    )


def test_time_metrics_are_those_that_may_differ_between_equal_runs() -> None:
    times = ["wall_s", "step_ms", "input_wait_ms", "pairs_per_s", "tflops", "mfu", "pf_days_capacity"]
    assert all(map(is_time_metric, times))
    fixed = [
        "step",
        "split",
        "loss",
        "loss_i2t",
        "grad_norm/text",
        "text_tokens",
        "truncated",
        "pf_days_model",
    ]
    assert not any(map(is_time_metric, [*fixed, "auroc/mean", "logit_scale", "learning_rate"]))
