"""The shape of the code: imports point one way, heavy packages stay out, requirements say what they must."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tripwire import PACKAGES, Tripwire

from hybridclip_jax import cli

ROOT = Path(__file__).parents[1]
PACKAGE = "hybridclip_jax"

# Who must not import whom: layers <- models <- {objectives, evals} <- train <- commands, main, cli.
DOORS = ("commands", "main", "cli")
# What is asked of a finished model or a run's folder: above evals, beside train.
AFTER = ("build", "evaluation", "lineage", "held_out", "keeping", "summary", "inference", "embedding")
ABOVE_MODELS = ("objectives", "evals", "step", "build", "train", "report", "bench", *DOORS)
FORBIDDEN = {
    "models.layers": ("models.", "data", "config", *ABOVE_MODELS),
    "models": ("data", "config", *ABOVE_MODELS),
    "data": ("models", "config", *ABOVE_MODELS),
    "objectives": ("data", "config", "evals", "train", "report", "bench", *DOORS),
    "evals": ("models", "config", "objectives", "step", "train", "report", "bench", *AFTER, *DOORS),
    "evals.metrics": ("",),
    "accounting": ("models", "data", "config", *ABOVE_MODELS),
    "sharding": ("models", "data", "config", *ABOVE_MODELS),
    "state": ("models", "data", "config", *ABOVE_MODELS),
    "report": ("models", "data", "objectives", "evals", "step", "train", "bench", *AFTER, *DOORS),
    "train": ("bench", *DOORS),
    "": ("main", "cli", "commands"),
    "cli": (),
}
# Benchmark machines often have nothing else.
LIGHT = ("jax", "flax", "optax", "orbax", "numpy")
LIGHT_MODULES = ("models", "objectives", "state", "sharding", "optim", "rules", "step")


def modules(folder: str) -> dict[str, Path]:
    """Dotted name -> file, for every module under a top-level package of the checkout."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ALL = {**modules(PACKAGE), **modules("converters"), **modules("configs")}


def imports(name: str, path: Path, *, at_import_time: bool = False) -> set[str]:
    """Every module that a file imports, by its full name; `from a import b` gives a.b where that is a module.

    `at_import_time` leaves out what stands inside functions or under `if TYPE_CHECKING`.
    """
    found: set[str] = set()
    is_package = path.name == "__init__.py"

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in ALL else base)
        elif at_import_time and (
            isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def within(name: str, room: str) -> bool:
    """Whether a module lies in a room: "models" holds models and models.layers; "models." only the latter."""
    return room == "" or name == room or name.startswith(room.rstrip(".") + ".")


def test_the_package_is_there() -> None:
    assert len(ALL) > 30
    assert imports(f"{PACKAGE}.evals", ALL[f"{PACKAGE}.evals"]) >= {f"{PACKAGE}.evals.zero_shot"}


def test_every_room_that_is_named_is_there() -> None:
    """A room that was renamed would be forbidden to nobody."""
    named = {*FORBIDDEN, *itertools.chain.from_iterable(FORBIDDEN.values())}
    assert not {room for room in named if not any(within(name, f"{PACKAGE}.{room}".rstrip(".")) for name in ALL)}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room: str) -> None:
    bad = []
    for name, path in modules(PACKAGE).items():
        inner = name.removeprefix(PACKAGE).lstrip(".")
        if not within(inner, room) or (room == "" and within(inner, "cli")):
            continue
        for target in imports(name, path):
            if not within(target, PACKAGE) or target == PACKAGE:
                continue
            wanted = target.removeprefix(f"{PACKAGE}.")
            own = room != "" and within(wanted, room)
            if not own and any(within(wanted, other) for other in FORBIDDEN[room]):
                bad.append(f"{name} imports {target}")
    assert not bad, "\n".join(bad)


def test_package_never_imports_its_users() -> None:
    users = ("converters", "configs", "tests")
    bad = [
        f"{name} imports {target}"
        for name, path in modules(PACKAGE).items()
        for target in imports(name, path)
        if target.split(".")[0] in users
    ]
    assert not bad, "\n".join(bad)


def test_configs_import_only_the_config_module_and_each_other() -> None:
    allowed = ("__future__", "ml_collections", f"{PACKAGE}.config", "configs")
    bad = [
        f"{name} imports {target}"
        for name, path in modules("configs").items()
        for target in imports(name, path)
        if not any(within(target, other) for other in allowed)
    ]
    assert not bad, "\n".join(bad)


def test_no_import_cycles() -> None:
    graph = {
        name: {t for t in imports(name, path, at_import_time=True) if t in ALL and t != name and t != PACKAGE}
        for name, path in ALL.items()
    }
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"cycle among {sorted(left)}"


def test_torch_only_in_the_bench_peer_and_tensorflow_nowhere() -> None:
    for name, path in ALL.items():
        roots = {target.split(".")[0] for target in imports(name, path)}
        assert not roots & {"tensorflow", "tensorflow_io", "tensorboard"}, name
        assert "torch" not in roots or within(name, f"{PACKAGE}.bench"), name


def run_python(*arguments: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tripwire(tmp_path: Path) -> Tripwire:
    return Tripwire(tmp_path / "tripwire")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tripwire_notes_an_import_whose_failure_is_caught(package: str, tripwire: Tripwire, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(f"try:\n    import {package}.inner\nexcept ImportError:\n    pass\n")
    run_python(str(tmp_path / "asks.py"), environment=tripwire.environment)
    assert tripwire.tripped() == [f"{package} by {tmp_path / 'asks.py'}"]


@pytest.mark.parametrize("door", ["main", "cli", *(f"cli {name}" for name in cli.COMMANDS)])
def test_asking_for_help_brings_neither_tensorflow_nor_torch(door: str, tripwire: Tripwire) -> None:
    module, *command = door.split()
    said = run_python("-m", f"{PACKAGE}.{module}", *command, "--help", environment=tripwire.environment)
    assert "example" in said or door == "cli"
    assert not tripwire.tripped()


def test_importing_everything_brings_neither_tensorflow_nor_torch(tripwire: Tripwire) -> None:
    names = [
        name
        for name, path in ALL.items()
        if not name.endswith("__main__")
        and "torch" not in {target.split(".")[0] for target in imports(name, path, at_import_time=True)}
    ]
    assert len(names) > 30
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(run_python("-c", code, environment=tripwire.environment)))
    assert not tripwire.tripped()
    assert {PACKAGE, "jax", "flax"} <= loaded


def test_models_objectives_and_step_need_only_jax_flax_optax_orbax_numpy() -> None:
    light = [f"{PACKAGE}.{name}" for name in LIGHT_MODULES]
    own = {name for name in ALL if any(within(name, room) for room in light)}
    for name in own:
        for target in imports(name, ALL[name]):
            root = target.split(".")[0]
            assert root in (*LIGHT, PACKAGE) or root in sys.stdlib_module_names, f"{name} imports {target}"
    # absl is not blocked here: flax and orbax need it themselves. The names above show that we do not.
    blocked = (
        "clu",
        "ftfy",
        "grain",
        "ml_collections",
        "PIL",
        "pyarrow",
        "regex",
        "safetensors",
        "tensorboardX",
    )
    code = f"""
import sys, importlib

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Block())
for name in {light!r}: importlib.import_module(name)
"""
    run_python("-c", code)


def requirements() -> dict[str, str]:
    """Distribution -> version range."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    entries = [re.fullmatch(r"([\w-]+)(\S*)", line) for line in lines if line and not line.startswith("#")]
    assert all(entries)
    return {entry[1]: entry[2] for entry in entries if entry}


def test_requirements_name_the_ten_packages_of_the_project_with_ranges() -> None:
    framework = {"jax", "flax", "optax", "orbax-checkpoint", "clu", "ml_collections"}
    ten = framework | {"transformers", "tensorflow-datasets", "grain", "numpy"}
    named = requirements()
    assert ten <= named.keys()
    assert all(version.startswith(">=") for version in named.values())
    assert "tensorflow" not in named
    assert "torch" not in named


def test_every_package_that_is_imported_is_required() -> None:
    distribution = {
        "PIL": "pillow",
        "absl": "absl-py",
        "orbax": "orbax-checkpoint",
        "sklearn": "scikit-learn",
        "tensorflow_datasets": "tensorflow-datasets",
    }
    roots = set(
        itertools.chain.from_iterable(
            {target.split(".")[0] for target in imports(name, path)} for name, path in ALL.items()
        )
    )
    ours = {PACKAGE, "converters", "configs", "torch"}
    missing = {
        root
        for root in roots - set(sys.stdlib_module_names) - ours
        if distribution.get(root, root) not in requirements()
    }
    assert not missing


def test_project_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"hybridclip": f"{PACKAGE}.cli:main"}
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    extras = project["project"]["optional-dependencies"]
    assert extras["gpu"] == ["jax[cuda13]"]
    assert extras["gpu12"][0] == "jax[cuda12]"
    data = project["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT.joinpath(*package.split("."))
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
    shipped = {path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    covered = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert shipped == covered, "a file in the package that a wheel would leave out"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "Copyright (c) 2021 OpenAI" in (ROOT / "NOTICE").read_text()
