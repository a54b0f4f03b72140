"""The A-B-A-B runner on real processes, the host benchmark, and the command's refusals."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridclip_jax.bench import BENCHES, runner
from hybridclip_jax.bench.runner import Bench
from hybridclip_jax.commands import bench as command
from hybridclip_jax.errors import RunStopped, UserError

# Prints 10, 20, 30 ... for a and 40, 80, 90 for b, by how often that arm has run in this folder.
COUNTING = """
import json, pathlib, sys
arm, folder = sys.argv[1], pathlib.Path(sys.argv[2])
(folder / "order").open("a").write(arm)
n = (folder / "order").read_text().count(arm)
speed = {"a": [10, 20, 30], "b": [40, 80, 90]}[arm][n - 1]
print("noise before the measurement")
print(json.dumps({"speed": speed, "only_" + arm: 1}))
"""


def counting(bench: Bench, arm: str, folder: Path, seconds: float) -> list[str]:
    return [sys.executable, "-c", COUNTING, arm, str(folder)]


def two_arms(prepared: list[Path]) -> Bench:
    return Bench("toy", "", ("a", "b"), prepared.append, lambda arm, folder, seconds: {})


def test_arms_alternate_and_ratios_pair_neighbours() -> None:
    prepared: list[Path] = []
    notes: list[str] = []
    result = runner.run(two_arms(prepared), rounds=3, seconds=1.0, note=notes.append, command=counting)
    assert [sample["arm"] for sample in result["samples"]] == list("ababab")
    assert [sample["round"] for sample in result["samples"]] == [1, 1, 2, 2, 3, 3]
    assert len(prepared) == 1
    assert not prepared[0].exists()
    assert len(notes) == 6
    assert result["summary"] == {
        "speed": {"a": {"median": 20, "min": 10, "max": 30}, "b": {"median": 80, "min": 40, "max": 90}}
    }
    assert result["ratio"] == {"speed": {"median": 4.0, "min": 3.0, "max": 4.0}}
    for sample in result["samples"]:
        assert sample["cpu_s"] > 0
        assert sample["cpu_per_wall"] == sample["cpu_s"] / sample["wall_s"]
        assert sample["load_before"] >= 0
    json.dumps(result, allow_nan=False)
    text = runner.render(result)
    assert "20 (10 to 30)" in text
    assert "4 (3 to 4)" in text
    assert "CPU per wall second" in text


def test_cpu_time_is_that_of_the_measured_process_alone() -> None:
    spin = "import time, json\nwhile time.process_time() < 0.5: pass\nprint(json.dumps({'x': 1}))"
    idle = "import json\nprint(json.dumps({'x': 1}))"
    result = runner.run(
        two_arms([]),
        rounds=1,
        seconds=1.0,
        command=lambda bench, arm, folder, seconds: [sys.executable, "-c", spin if arm == "a" else idle],
    )
    first, second = (sample["cpu_s"] for sample in result["samples"])
    assert first > 0.5
    assert second < 0.4


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise SystemExit('no such device')", "toy: a ended with code 1: no such device"),
        ("print('done')", "toy: a printed no measurement"),
        ("print([1])", "toy: a printed no measurement"),
        ("", "toy: a printed no measurement"),
    ],
)
def test_an_arm_without_a_measurement_ends_the_benchmark(script: str, message: str) -> None:
    with pytest.raises(RunStopped, match=message):
        runner.run(
            two_arms([]),
            rounds=1,
            seconds=1.0,
            command=lambda bench, arm, folder, seconds: [sys.executable, "-c", script],
        )


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def test_host_measures_the_real_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "host.json"
    command.run(arguments("host", "--rounds", "1", "--seconds", "0.2", "--out", str(out)))
    result = json.loads(out.read_text())
    assert result["arms"] == ["plain", "stream"]
    for rate in ("images_per_s", "jpegs_per_s"):
        assert all(sample["values"][rate] > 1 for sample in result["samples"])
        assert result["ratio"][rate]["median"] > 0
    assert "stream / plain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("step",), f"bench step: there is no such benchmark; available: {', '.join(BENCHES)}"),
        (("host", "--rounds", "0"), "--rounds 0: must be at least 1"),
        (("host", "--seconds", "nan"), "--seconds nan: must be above 0"),
        (("host", "--out", "no/such/folder/x.json"), "no such folder"),
    ],
)
def test_refusals_are_one_line(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        command.run(arguments(*argv))
    assert "\n" not in str(caught.value)


def test_the_runner_needs_little() -> None:
    """Benchmark machines have jax, flax, optax, orbax and numpy; the command must start without the rest."""
    absent = ["ml_collections", "grain", "clu", "PIL", "pyarrow", "absl", "tensorboardX", "torch", "ftfy"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); "
        "import hybridclip_jax.bench.runner, hybridclip_jax.commands.bench"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
