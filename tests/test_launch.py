"""The scripts of launch/: they parse, make an environment once, run every check, start one training."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridclip_jax import cli, config

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "train.slurm", ROOT / ".ci" / "run"]

# An interpreter that records how it was called; the scripts take any through HYBRIDCLIP_PYTHON.
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$RECORD"
[[ "$*" != *"${FAIL_ON:-nothing at all}"* ]]
"""


@pytest.fixture
def recorder(tmp_path: Path) -> dict[str, str]:
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    browser = tmp_path / "bin" / "chromium"  # there already, so that test.sh installs nothing
    browser.parent.mkdir()
    browser.symlink_to("/bin/true")
    path = f"{browser.parent}{os.pathsep}{os.environ['PATH']}"
    return {"HYBRIDCLIP_PYTHON": str(python), "RECORD": str(tmp_path / "record"), "PATH": path}


def run(script: Path, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    drop = ("HYBRIDCLIP_PYTHON", "HYBRIDCLIP_VENV", "CONFIG", "WORKDIR")
    base = {name: value for name, value in os.environ.items() if name not in drop}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=base | env, capture_output=True, text=True, timeout=60, check=False)


def recorded(env: dict[str, str]) -> list[str]:
    return Path(env["RECORD"]).read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_hold_no_place_of_one_machine(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert re.search(r"(?<![\w.])/(work|home|root|tmp|opt|mnt)/|https?://", text) is None
    if script.name != "venv.sh":
        assert "set -euo pipefail" in text
        assert os.access(script, os.X_OK)


def test_every_check_runs_and_a_failed_one_fails_the_whole(tmp_path: Path, recorder: dict[str, str]) -> None:
    script = ROOT / "launch" / "test.sh"
    done = run(script, "-k", "tokenizer or store", cwd=tmp_path, **recorder)
    assert done.returncode == 0, done.stderr
    assert recorded(recorder) == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
        "-m pytest -n 2 --dist loadfile -m not slow -k tokenizer or store",
    ]
    Path(recorder["RECORD"]).unlink()
    done = run(script, "--slow", cwd=tmp_path, FAIL_ON="ruff check", **recorder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: ruff"
    assert recorded(recorder)[-1] == "-m pytest -n 2 --dist loadfile"  # the others still ran


@pytest.mark.parametrize(("flags", "name"), [((), "demo"), (("--short",), "demo_short")])
def test_the_demo_prepares_once_trains_each_time_and_evaluates_on_test_patients_once(
    tmp_path: Path, recorder: dict[str, str], flags: tuple[str, ...], name: str
) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    script = tmp_path / "launch" / "demo.sh"
    done = run(script, *flags, "--config.seed=5", cwd=tmp_path, **recorder)
    assert done.returncode == 0, done.stderr
    assert f"runs/{name}/report.html" in done.stdout
    assert f"runs/{name}/test/report.html" in done.stdout
    for made in (tmp_path / "stores" / name / "manifest.json", tmp_path / "runs" / name / "test" / "report.html"):
        made.parent.mkdir(parents=True)
        made.touch()
    run(script, *flags, "--config.seed=5", cwd=tmp_path, **recorder)
    prepare, train, evaluate, report, again, report_again = recorded(recorder)
    assert re.fullmatch(
        rf"-m hybridclip_jax.cli prepare --format phantom --seed 1 --count \d+ --out stores/{name}", prepare
    )
    assert train == again
    assert report == report_again == f"-m hybridclip_jax.cli report runs/{name}", "the run's page lists the evaluation"
    assert train.startswith(f"-m hybridclip_jax.main --config=configs/demo.py --workdir=runs/{name}")
    assert train.endswith(" --config.seed=5")
    # What the demo is started with is a config, and every store that it names is the one that was prepared.
    overrides = re.findall(r"--config\.\S+", train)
    resolved = config.load(str(ROOT / "configs" / "demo.py"), overrides)
    used = [resolved.data.train, *(entry.data for entry in resolved.evals.values())]
    assert {spec.split(":")[0] for spec in used} == {f"stores/{name}"}
    words = cli.parse(evaluate.split()[2:])
    assert (words.command, words.data, words.model) == ("evaluate", f"stores/{name}:test", [Path(f"runs/{name}")])
    assert words.data not in used, "the test patients neither train nor choose"


def test_a_demo_that_fails_says_so(tmp_path: Path, recorder: dict[str, str]) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    done = run(tmp_path / "launch" / "demo.sh", cwd=tmp_path, FAIL_ON="hybridclip_jax.main", **recorder)
    assert done.returncode == 1
    assert "report.html" not in done.stdout


def test_training_is_one_process_with_the_given_config(tmp_path: Path, recorder: dict[str, str]) -> None:
    script = ROOT / "launch" / "train.slurm"
    wanted = "-m hybridclip_jax.main --config=configs/a.py --workdir=runs/a"
    # SLURM runs a copy from its spool folder, in the folder where the job was submitted.
    spool = tmp_path / "slurm_script"
    spool.write_text(script.read_text())
    submit = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"} | recorder
    done = run(spool, "configs/a.py", "runs/a", "--config.steps=3", cwd=tmp_path, **submit)
    assert done.returncode == 0, done.stderr
    assert "job 7 on " in done.stdout
    by_name = {"CONFIG": "configs/a.py", "WORKDIR": "runs/a"} | submit
    assert run(spool, cwd=tmp_path, **by_name).returncode == 0
    assert run(spool, "--config.seed=1", cwd=tmp_path, **by_name).returncode == 0
    assert recorded(recorder) == [f"{wanted} --config.steps=3", wanted, f"{wanted} --config.seed=1"]


def test_train_slurm_says_what_is_missing(tmp_path: Path, recorder: dict[str, str]) -> None:
    script = ROOT / "launch" / "train.slurm"
    for arguments in ((), ("configs/a.py",)):
        done = run(script, *arguments, cwd=tmp_path, **recorder)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: sbatch launch/train.slurm CONFIG WORKDIR")
    done = run(script, "c", "w", cwd=tmp_path)
    assert done.returncode == 2
    assert "no interpreter at" in done.stderr
    assert not Path(recorder["RECORD"]).exists()


def test_train_slurm_asks_for_one_whole_node(tmp_path: Path) -> None:
    text = (ROOT / "launch" / "train.slurm").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert (asked["nodes"], asked["ntasks"]) == ("1", "1")
    assert "exclusive" in asked
    before_code = text[: text.index("set -euo pipefail")]
    assert text.count("\n#SBATCH") == before_code.count("\n#SBATCH")  # sbatch stops reading at the first command


def test_the_environment_is_made_once_and_again_when_requirements_change(tmp_path: Path) -> None:
    """`use_python` in a tiny project of its own, so that nothing is fetched."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "requirements.txt").write_text("")
    (project / "pyproject.toml").write_text('[project]\nname = "tiny"\nversion = "1"\n')
    pip_calls = tmp_path / "calls"
    script = project / "go.sh"
    script.write_text(
        f"""set -euo pipefail
source {ROOT}/launch/venv.sh
mkdir -p .venv/bin
if [[ ! -e .venv/bin/python ]]; then
  printf '#!/usr/bin/env bash\\necho "$*" >>{pip_calls}\\n' >.venv/bin/python
  chmod +x .venv/bin/python
fi
use_python "$1"
echo "$PYTHON"
"""
    )

    def calls() -> list[str]:
        return pip_calls.read_text().splitlines() if pip_calls.exists() else []

    for extras, count in (("", 1), ("", 1), ("[dev]", 2), ("[dev]", 2), ("", 2)):
        done = run(script, extras, cwd=project)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(project / ".venv/bin/python")
        assert len(calls()) == count
    assert calls()[1] == "-m pip install --quiet --disable-pip-version-check --editable .[dev]"
    (project / "requirements.txt").write_text("numpy\n")
    run(script, "", cwd=project)
    assert len(calls()) == 3
    done = run(script, "", cwd=project, HYBRIDCLIP_PYTHON=sys.executable)
    assert done.stdout.splitlines()[-1] == sys.executable
    assert len(calls()) == 3
