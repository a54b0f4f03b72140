"""Configs: every shipped one resolved as golden text, and every mistake of a person as one line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ml_collections import ConfigDict

from hybridclip_jax import build, config, main
from hybridclip_jax.config import add_eval, default
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import Field

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
UPDATE = "HYBRIDCLIP_UPDATE_GOLDEN"
ARGUMENTS = {"demo_towers": ("image", "text")}
SHIPPED = [
    f"{path.stem}:{argument}" if argument else path.stem
    for path in sorted((ROOT / "configs").glob("*.py"))
    if path.stem != "__init__"
    for argument in ARGUMENTS.get(path.stem, ("",))
]


def load_shipped(name: str) -> ConfigDict:
    stem, colon, argument = name.partition(":")
    return config.load(f"{ROOT / 'configs' / stem}.py{colon}{argument}")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"config_{name.replace(':', '_')}.json"
    text = config.to_json(load_shipped(name))
    if os.environ.get(UPDATE):
        path.write_text(text)
    wanted = path.read_text() if path.exists() else ""
    diff = "".join(difflib.unified_diff(wanted.splitlines(True), text.splitlines(True), "golden", "resolved", n=0))
    assert not diff, (
        f"configs/{name} no longer resolves to {path.relative_to(ROOT)}:\n{diff}\n"
        f"If this config was meant to change, or a field was added with a default that leaves old runs as they were, "
        f"run the tests once with {UPDATE}=1 and review the difference with the change. If you only meant to move "
        "code, a default has moved with it: mend the code."
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_builds_and_opens_with_its_command(name: str) -> None:
    built = build.model(load_shipped(name))
    assert built.optimizer.trainable
    head = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name.split(':')[0]}.py").read_text()))
    assert head
    assert re.search(r"python -m hybridclip_jax\.main --config=|bash launch/", head)


def test_the_recipe_is_the_published_one() -> None:
    """Value by value: the golden file would follow any mistake."""
    recipe = load_shipped("hybrid_cxr")
    wanted = {
        "model.image.arch": "dinov3_vitb16",
        "model.text.arch": "clip_text_b",
        "model.text.context": 512,
        "model.embed_dim": 512,
        "model.temperature": 0.07,
        "data.image_size": 224,
        "data.crop": "random",
        "data.flip": True,
        "data.sampler": "shuffle",
        "data.mean": (0.48145466, 0.4578275, 0.40821073),
        "data.std": (0.26862954, 0.26130258, 0.27577711),
        "steps": 25_000,
        "batch_size": 64,
        "eval_every": 500,
        "objective": "contrastive",
        "optim.name": "sgd",
        "optim.learning_rate": 1e-4,
        "optim.momentum": 0.9,
        "optim.weight_decay": 0.0,
    }
    assert {field: config.get(recipe, field) for field in wanted} == wanted


def test_json_is_stable_and_complete() -> None:
    text = config.to_json(default())
    assert text == config.to_json(default())
    body = json.loads(text)
    assert body["data"]["mean"] == list(config.CLIP_MEAN)
    assert list(body) == sorted(default().keys())


# --- flags


@pytest.fixture
def plain(tmp_path: Path) -> str:
    return write(tmp_path, "    return c\n")


def write(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    head = "from hybridclip_jax.config import add_eval, default\n\n\ndef get_config():\n    c = default()\n"
    path.write_text(head + body)
    return str(path)


def refusal(path: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    message = " ".join(str(caught.value).split())
    assert "Traceback" not in message
    assert len(message) < 600, "one line that a person reads"
    return message


def test_overrides_reach_their_fields_as_their_types(plain: str) -> None:
    found = config.load(
        plain,
        [
            "--config.optim.learning_rate=1",
            "--config.steps=30",
            "--noconfig.data.flip",
            "--config.data.train=a folder/store:train",
            "--config.data.mean=(0.5, 0.5, 0.25)",
            "--config.optim.groups=(('.*', 1.0, 0.0),)",
        ],
    )
    assert found.optim.learning_rate == 1.0
    assert type(found.optim.learning_rate) is float
    assert found.steps == 30
    assert found.data.flip is False
    assert found.data.train == "a folder/store:train"
    assert found.data.mean == (0.5, 0.5, 0.25)
    assert found.optim.groups == ((".*", 1.0, 0.0),)
    assert config.load(plain).steps == default().steps, "one load leaves the next as it was"


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.optim.learning_rat=1", "config.optim.learning_rat: no such field; did you mean learning_rate?"),
        ("--config.optm.learning_rate=1", "config.optm: no such field; did you mean optim?"),
        ("--config.model.image.weight=x", "config.model.image.weight: no such field; did you mean weights?"),
        ("--config.zebra=1", "config.zebra: no such field; known: batch_size,"),
        ("--config.steps.more=1", "config.steps.more: no such field"),
        ("--noconfig.data.flop", "config.data.flop: no such field; did you mean flip?"),
        ("--config.evals.external.data=x", "config.evals.external: no such field; known: none"),
        ("--config.steps=many", "--config.steps=many"),
        ("--config.steps=1.5", "--config.steps=1.5"),
        ("--config.steps=", "--config.steps"),
        ("--config.steps", "--config.steps"),
        ("--noconfig.steps", "noconfig.steps"),
        ("--config.data.flip=maybe", "--config.data.flip=maybe"),
        ("--config.optim.learning_rate=fast", "--config.optim.learning_rate=fast"),
        ("--config.optim=3", "--config.optim=3"),
        ("--config.data.mean=(0.5,0.5)", "data.mean = (0.5, 0.5): must be 3 numbers"),
        ("--config.data.mean=('a','b','c')", "data.mean = ('a', 'b', 'c'): must be 3 numbers"),
        ("--config.data.std=(0.2,0.0,0.2)", "data.std = (0.2, 0.0, 0.2): must be above 0"),
        ("--config.model.logit_scale_range=(4.0,1.0)", "the lower end comes first"),
        ("--config.optim.groups=('.*',1.0,1.0)", "must be (regex, learning-rate factor, weight-decay factor)"),
        ("--config.optim.groups=(('.*',-1.0,1.0),)", "optim.groups: the factors of '.*' must be numbers of at least 0"),
        ("--config.optim.name=adam", "optim.name = 'adam': must be one of sgd, adamw, lion"),
        ("--config.optim.learning_rate=nan", "optim.learning_rate = nan: must be at least 0"),
        ("--config.optim.momentum=9", "optim.momentum = 9.0: must be below 1"),
        ("--config.model.temperature=0", "model.temperature = 0.0: must be above 0"),
        ("--config.model.temperature=nan", "model.temperature = nan: must be above 0"),
        ("--config.seed=-1", "seed = -1: must be at least 0"),
        (f"--config.seed={2**63}", "must be below 2**63"),
        ("--config.model.temperature=0.005", "model.logit_scale_range, 0.01 to 1"),
        ("--config.batch_size=1", "batch_size = 1: must be at least 2"),
        ("--config.data.image_size=4096", "data.image_size = 4096: must be at most 2048"),
        ("--config.select.patience=-1", "select.patience = -1: must be at least 0"),
        ("--config.select.keep=0", "select.keep = 0: must be at least 1"),
        ("--config.select.mode=highest", "select.mode = 'highest': must be one of max, min"),
        ("--config.data.image_size=225", "data.image_size = 225: must be a multiple of the patch, 16"),
    ],
)
def test_a_wrong_flag_is_named(plain: str, flag: str, says: str) -> None:
    assert says in refusal(plain, flag)


def test_every_bad_value_is_reported_at_once(plain: str) -> None:
    message = refusal(
        plain, "--config.steps=0", "--config.data.crop=rand", "--config.mesh.fsdp=0", "--config.model.temperature=-1"
    )
    for field in ("steps = 0", "data.crop = 'rand'", "mesh.fsdp = 0", "model.temperature = -1.0"):
        assert field in message


# --- files


def test_a_missing_file_is_named_and_the_forgotten_ending_too(tmp_path: Path, plain: str) -> None:
    assert refusal(str(tmp_path / "absent.py")) == f"--config: no such file: {tmp_path}/absent.py"
    assert refusal(plain.removesuffix(".py")).endswith(f"did you mean {plain}?")
    assert "no such file" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    c.stpes = 3\n    return c\n", 'line 6: AttributeError: Key "stpes" does not exist'),
        ("    c.stpes = 3\n    return c\n", 'Did you mean "steps" instead of "stpes"?'),
        ("    c.optim.learning_rat = 3\n    return c\n", 'Did you mean "learning_rate"'),
        ("    c.steps = 'ten'\n    return c\n", "line 6: TypeError: Could not override field 'steps'"),
        ("    c.steps = 10.5\n    return c\n", "line 6: TypeError: Could not override field 'steps'"),
        ("    c.steps = None\n    return c\n", "steps = None: must be a whole number"),
        ("    c.optim.groups = None\n    return c\n", "optim.groups = None: must be a tuple"),
        ("    c.unlock()\n    c.stpes = 3\n    return c\n", "stpes: no such field"),
        ("    add_eval(c, 'v', promts='x')\n    return c\n", 'Did you mean "prompts" instead of "promts"?'),
        ("    add_eval(c, 'v', data=3)\n    return c\n", "line 6: TypeError: Could not override field 'data'"),
        ("    add_eval(c, 'v', data='x')\n    return c\n", "select.metric is empty: name one, e.g. v/auroc/mean"),
        (
            "    add_eval(c, 'v')\n    c.select.metric = 'w/auroc/mean'\n    return c\n",
            "select.metric = 'w/auroc/mean': names no evaluation (known: v)",
        ),
        (
            "    add_eval(c, 'v')\n    c.select.metric = 'v'\n    return c\n",
            "select.metric = 'v': must be <evaluation>/<value>, e.g. v/auroc/mean",
        ),
        (
            "    add_eval(c, 'v')\n    c.select.metric = 'v/loss/mean'\n    return c\n",
            "select.mode = max: of v/loss/mean the lowest is best; use --config.select.mode=min",
        ),
        (
            "    add_eval(c, 'v')\n    c.select.metric, c.select.mode = 'v/auroc/mean', 'min'\n    return c\n",
            "select.mode = min: of v/auroc/mean the highest is best; use --config.select.mode=max",
        ),
        (
            "    add_eval(c, 'v')\n    c.select.metric, c.select.mode = 'v/recall_i2t/1', 'min'\n    return c\n",
            "select.mode = min: of v/recall_i2t/1 the highest is best; use --config.select.mode=max",
        ),
        (
            "    add_eval(c, 'v')\n    c.select.metric = 'v/sides/cosine'\n    return c\n",
            "select.mode = max: of v/sides/cosine the lowest is best; use --config.select.mode=min",
        ),
        (
            "    with c.evals.unlocked():\n        c.evals.v = 3\n    return c\n",
            "evals.v = 3: must be a group of fields; use hybridclip_jax.config.add_eval",
        ),
        ("    add_eval(c, 'v', protocol='chexnet')\n    return c\n", "evals.v.protocol = 'chexnet': must be one of "),
        ("    raise RuntimeError('first line\\nsecond')\n", "line 6: RuntimeError: first line second"),
        ("    import sys\n    sys.exit(3)\n", "line 7: SystemExit: 3"),
        ("    return {'steps': 3}\n", "get_config() must return a ConfigDict, not dict"),
        ("    c\n", "get_config() must return a ConfigDict, not NoneType"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, body: str, says: str) -> None:
    path = write(tmp_path, body)
    message = refusal(path)
    assert message.startswith(path)
    assert says in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import not_a_module\n", "line 1: ModuleNotFoundError: No module named 'not_a_module'"),
        ("x = 1\n", "defines no get_config()"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    return ConfigDict({'steps': 'x', 'optim': 3})\n",
            "optim = 3: must be a group of fields",
        ),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    message = refusal(str(path))
    assert message.startswith(str(path))
    assert says in message


def test_an_argument_goes_to_get_config_or_is_refused(plain: str) -> None:
    assert load_shipped("demo_towers:image").seed != load_shipped("demo_towers:text").seed
    assert "takes 0 positional arguments but 1 was given" in refusal(f"{plain}:image")
    assert "KeyError: elephant" in refusal(f"{ROOT}/configs/demo_towers.py:elephant")


def test_add_eval_refuses_misspelt_fields_and_fills_the_others() -> None:
    mine = default()
    add_eval(mine, "first", data="store:val")
    add_eval(mine, "second", data="other:val", prompts="templated")
    default_of = config.eval_defaults("chexzero")
    assert default_of.items() >= {"protocol": "chexzero", "unit": "image", "prompts": "chexzero"}.items()
    assert mine.evals.to_dict() == {
        "first": {**default_of, "data": "store:val"},
        "second": {**default_of, "data": "other:val", "prompts": "templated"},
    }
    with pytest.raises((AttributeError, KeyError), match="promts"):
        add_eval(mine, "third", promts="templated")
    with pytest.raises((AttributeError, KeyError), match="dta"):
        mine.evals.first.dta = "x"
    assert config.eval_defaults("chexzero")["data"] == "", "one config's evaluations leave the defaults as they were"


@dataclasses.dataclass(frozen=True)
class Other:
    """A protocol with one field of its own and one that chexzero has too."""

    FIELDS: ClassVar = {"prompts": Field("plain", ""), "sample": Field(0, "")}


def test_a_flag_may_change_the_protocol_and_then_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.EVALUATORS, "other", Other)  # type: ignore[arg-type]  # its fields alone are asked for
    path = write(tmp_path, EVAL_OF + "    c.select.metric = 'v/x/mean'\n    return c\n")
    flags = ["--config.evals.v.sample=3", "--config.evals.v.protocol=other"]
    assert config.load(path, flags).evals.v.to_dict() == {
        "protocol": "other",
        "data": "store:val",
        "unit": "study",
        "prompts": "mine.json",
        "sample": 3,
    }
    assert "config.evals.v.sample: no such field; known: " in refusal(path, flags[0])
    assert "evals.v.protocol = 'othre': must be one of " in refusal(path, "--config.evals.v.protocol=othre")
    assert "config.evals.w: no such field; known: v" in refusal(path, "--config.evals.w.protocol=other")


EVAL_OF = "    add_eval(c, 'v', data='store:val', unit='study', prompts='mine.json')\n"


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--config is missing"),
        (["--config=a.py"], "--workdir is missing"),
        (["--config="], "--config is missing"),
        (["--config=a.py", "--workdir"], "--workdir is missing"),
        (["--config=a.py", "--workdir=w", "--steps=3"], "--steps=3: not an option of main"),
        (["--config=a.py", "--workdir=w", "stray"], "stray: not an option of main"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        main.parse(arguments)


def test_flags_may_stand_in_any_order_and_with_a_space() -> None:
    wanted = ("a.py:x", Path("w"), ["--config.steps=3", "--noconfig.data.flip"])
    assert main.parse(["--config.steps=3", "--workdir", "w", "--noconfig.data.flip", "--config", "a.py:x"]) == wanted


def run_main(*arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "hybridclip_jax.main", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("mistake", ["misspelt flag", "misspelt field in the file", "missing file", "stray argument"])
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, tmp_path: Path) -> None:
    path = write(tmp_path, "    c.stpes = 3\n    return c\n" if "in the file" in mistake else "    return c\n")
    workdir = tmp_path / "run"
    arguments = {
        "misspelt flag": [f"--config={path}", "--config.optim.learning_rat=1e-3"],
        "misspelt field in the file": [f"--config={path}"],
        "missing file": [f"--config={tmp_path}/absent.py"],
        "stray argument": [f"--config={path}", "--optimizer=sgd"],
    }[mistake]
    result = run_main(*arguments, f"--workdir={workdir}")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not workdir.exists(), "nothing is written for a run that cannot begin"


def test_help_shows_an_example() -> None:
    result = run_main("--help")
    assert result.returncode == 0
    assert "example: python -m hybridclip_jax.main --config=" in result.stdout
