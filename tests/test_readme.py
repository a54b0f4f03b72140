"""What README.md shows can be typed: its commands parse, its stores are prepared, its prompt file is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hybridclip_jax import cli, config
from hybridclip_jax.evals import prompt_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str = "", text: str = README) -> list[str]:
    return [body for found, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if found == language]


def commands(text: str = README) -> list[list[str]]:
    """The words of each command in the plain blocks, comments left out, lines that go on joined."""
    lines = [line for block in blocks(text=text) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "hybridclip"], ids=" ".join)
def test_a_command_parses(words: list[str]) -> None:
    assert cli.parse(words[1:]).command == words[1]


def test_the_quick_start_prepares_what_it_uses_and_tests_on_no_store_that_chose() -> None:
    (start,) = re.findall(r"## On your own data\n(.*?)\n## ", README, re.S)
    words = [word for command in commands(start) for word in command]
    prepared = {words[i + 1] for i, word in enumerate(words) if word == "--out" and words[i + 1].startswith("stores/")}
    assert set(re.findall(r"stores/\w+", start)) == prepared
    (train,) = [command for command in commands(start) if "hybridclip_jax.main" in command]
    overrides = [word for word in train if word.startswith("--config.")]
    resolved = config.load(str(ROOT / "configs/hybrid_cxr.py"), overrides)
    chosen = resolved.evals[resolved.select.metric.split("/")[0]].data
    (evaluate,) = [cli.parse(command[1:]) for command in commands(start) if command[1] == "evaluate"]
    assert evaluate.data not in {chosen, resolved.data.train}
    assert chosen != resolved.data.train


def test_the_prompt_file_is_one(tmp_path: Path) -> None:
    (body,) = blocks("json")
    path = tmp_path / "mine.json"
    path.write_text(body, encoding="utf-8")
    prompts = prompt_file.load(str(path))
    assert prompts.pair("Pleural_Effusion").negative == ("no pleural effusion", "there is no pleural effusion")
    assert prompts.pair("No Finding").positive == ("normal chest",)
