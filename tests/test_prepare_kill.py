"""Killed with signal 9 at random moments, interrupted, out of disk: the rerun goes on and ends with the same bytes."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError

ROOT = Path(__file__).parents[1]
ROWS = 200
# Files of 64 pictures, so that kills fall around the sealing of files too. The second word limits the size of a file.
CALL = """
import argparse, resource, signal, sys
from hybridclip_jax.commands import prepare
from hybridclip_jax.data import store_writer
from hybridclip_jax.errors import run_or_exit
store_writer.SHARD_RECORDS = 64
signal.signal(signal.SIGINT, signal.default_int_handler)  # of a background job it is ignored
if sys.argv[1] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
parser = argparse.ArgumentParser()
prepare.add_arguments(parser)
sys.exit(run_or_exit(lambda: prepare.run(parser.parse_args(sys.argv[2:]))))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 200 rows, every seventh image broken or missing."""
    folder = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0)
    for n in range(20):
        PIL.Image.fromarray(noise.integers(0, 255, (600 + n, 500), dtype=np.uint8)).save(folder / f"p{n}.png")
    (folder / "cut.png").write_bytes((folder / "p0.png").read_bytes()[:5000])
    for n in range(ROWS):
        if n % 7 == 3:
            (folder / f"{n}.png").symlink_to(("cut.png", "none.png")[n % 2])
        else:
            os.link(folder / f"p{n % 20}.png", folder / f"{n}.png")
    rows = [f"{n}.png,Report {n}.,p{n % 90}" for n in range(ROWS)]
    (folder / "t.csv").write_text("\n".join(["image,text,patient", *rows]) + "\n")
    return folder / "t.csv"


def start(source: Path, out: Path, encoding: str, largest_file: int = 0) -> subprocess.Popen[str]:
    flags = ["--format", "csv", "--source", source, "--out", out, "--encoding", encoding, "--max-skipped", "0.5"]
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(largest_file), *map(str, flags)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complaint = process.communicate(timeout=120)
    return process.returncode, said, complaint


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The store of an encoding by a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def made(encoding: str) -> Path:
        code, said, complaint = finish(start(source, folder / encoding, encoding))
        assert (code, complaint) == (0, "")
        assert "going on" not in said
        return folder / encoding

    return made


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


def images_done(partial: Path) -> int:
    """Whole lines of the journal that speak of an image."""
    try:
        lines = (partial / "journal.jsonl").read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return 0
    return sum(line[9:10] == b"[" for line in lines)  # behind the checksum of the line


def kill_9(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any_in_group(process.pid):  # its workers must not wait for their next task forever
        assert time.monotonic() < deadline
        time.sleep(0.02)


def any_in_group(group: int) -> bool:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def killed_at_random(source: Path, out: Path, undisturbed: Path, moments: int) -> None:
    """Kills so often, at moments that lie anywhere between the start and the end, and lets the last attempt finish."""
    draw = random.Random(moments)
    partial = out.with_name(out.name + ".partial")
    # The first falls into the start; the others follow further images, each some time after them.
    goals = [0, *sorted(draw.sample(range(1, ROWS - 64), moments - 1))]
    for goal in goals:
        before = images_done(partial)
        process = start(source, out, undisturbed.name)
        deadline = time.monotonic() + 60
        while images_done(partial) < goal:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.random() * (0.02 if goal else 0.5))
        kill_9(process)
        assert not out.exists()
        assert images_done(partial) >= max(before, goal)
    with pytest.raises(UserError, match="no such store"):
        Store.open(str(out))
    with pytest.raises(UserError, match="is not a store"):
        Store.open(str(partial))
    before = images_done(partial)
    code, said, complaint = finish(start(source, out, undisturbed.name))
    assert (code, complaint) == (0, "")
    behind = re.search(r"going on behind (\d+) of 200 images", said)
    assert behind
    assert int(behind[1]) == before  # nothing that was done is done again
    assert contents(out) == contents(undisturbed)
    assert sorted(os.listdir(out.parent)) == [out.name]


def test_killed_twice(source: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    killed_at_random(source, tmp_path / "s", undisturbed("jpeg"), moments=2)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_killed_at_ten_random_moments(
    source: Path, undisturbed: Callable[[str], Path], tmp_path: Path, encoding: str
) -> None:
    killed_at_random(source, tmp_path / "s", undisturbed(encoding), moments=10)


def test_ctrl_c_and_a_full_disk_keep_what_was_done(
    source: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    out, partial = tmp_path / "s", tmp_path / "s.partial"
    for goal in (0, 20):  # while the workers start, and while they work
        process = start(source, out, "raw")
        while not partial.exists() or images_done(partial) < goal:
            assert process.poll() is None
            time.sleep(0.01)
        if not goal:
            time.sleep(0.2)  # into the start of the workers, which takes longer than this
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to the workers too
        code, said, complaint = finish(process)
        assert (code, complaint) == (130, "error: interrupted\n")
    assert f"what is done is kept in {partial}" in said
    first = images_done(partial)
    assert first >= 20
    # No file may become larger than 12 pictures, of 64 that belong into it.
    code, said, complaint = finish(start(source, out, "raw", largest_file=12 * 320 * 320))
    assert code == 4
    assert re.fullmatch(r"error: [^\n]+ cannot write the store: [^\n]+; what is done is kept in [^\n]+\n", complaint)
    assert images_done(partial) >= first
    code, said, complaint = finish(start(source, out, "raw"))
    assert (code, complaint) == (0, "")
    assert contents(out) == contents(undisturbed("raw"))
