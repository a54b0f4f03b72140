"""Prompt files: the shipped ones, what a file may hold, and the one line that each fault gets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import prompt_file
from hybridclip_jax.evals.prompt_file import Pair
from hybridclip_jax.evals.prompt_tokens import PromptTokens

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
SHIPPED = ("chexpert5x200", "chexzero", "plip", "templated")


def prompts_json(path: Path, **fields: Any) -> str:
    """A sound file with both sides; `fields` replaces its fields, or with None takes them out."""
    content = {"format": 1, "name": "t", "version": "1", "positive": ["{}"], "negative": ["no {}"], **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return str(path)


def test_prompts_are_lower_case_and_no_finding_has_its_own_pair() -> None:
    for name in ("chexzero", "templated"):
        prompts = prompt_file.load(name)
        for label in (*FIVE, "Support_Devices"):
            pair, shown = prompts.pair(label), label.lower().replace("_", " ")
            assert all(shown in text and f"no {shown}" not in text for text in pair.positive)
            assert all(f"no {shown}" in text for text in pair.negative)
            assert tuple(text.replace(f"no {shown}", shown) for text in pair.negative) == pair.positive
        pair = prompts.pair("No Finding")
        assert pair == prompts.pair("no_finding")
        assert not any("no no" in text for text in (*pair.positive, *pair.negative))
    assert prompt_file.load("chexzero").pair("Pleural Effusion") == prompt_file.Pair(
        ("pleural effusion",), ("no pleural effusion",)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, '"format": 1; .*chexzero.json is one'),
        ({"format": True}, '"format": 1'),
        ({"positive": ["{} \ud800"]}, r"holds '\\ud800', half of a surrogate pair"),
        ({"labels": {"\udfff": {"positive": ["a"], "negative": ["b"]}}}, r"holds '\\udfff', half of a surrogate pair"),
        ({"positive": []}, "positive must be a list of one or more non-empty strings; .*chexzero.json is an example"),
        ({"negative": ["no {}", " "]}, "negative must be a list of one or more non-empty strings"),
        ({"positive": ["a chest"]}, "'a chest' has no"),
        ({"name": 3}, "'name' must be a string"),
        ({"postive": ["{}"]}, "unknown field 'postive'"),
        ({"labels": {"No Finding": {"positive": ["normal"]}}}, "labels.No Finding.negative must be a list"),
        ({"labels": []}, "'labels' must be an object"),
        (
            {"negative": None, "labels": {"Edema": {"positive": ["wet"], "negative": ["dry"]}}},
            "negative must be a list",
        ),
        ({"positive": None}, "positive must be a list"),
        ({"positive": None, "negative": None}, "positive must be a list"),
        ({"labels": {"Edema": 3}}, "labels.Edema.positive must be a list"),
        (
            {"labels": {key: {"positive": ["a"], "negative": ["b"]} for key in ("No Finding", "no_finding")}},
            "there twice",
        ),
    ],
)
def test_a_bad_prompt_file_is_one_line_naming_the_file(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = prompts_json(tmp_path / "p.json", **fields)
    with pytest.raises(UserError, match=message) as caught:
        prompt_file.load(path)
    assert "p.json" in str(caught.value)


def test_a_missing_prompt_file_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"shipped sets \({', '.join(SHIPPED)}\)"):
        prompt_file.load("chexzeroo")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        prompt_file.load(str(tmp_path / "x.json"))
    (tmp_path / "twice.json").write_text('{"format": 1, "labels": {"A": {}, "B": {}, "A": {}}}')
    with pytest.raises(UserError, match=r"twice\.json: 'A' stands twice in one object"):
        prompt_file.load(str(tmp_path / "twice.json"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"deep\.json: not JSON"):
        prompt_file.load(str(tmp_path / "deep.json"))
    with pytest.raises(UserError, match="neither a file nor one of the shipped sets"):
        prompt_file.load("x" * 5000)


def test_every_sentence_of_a_file_is_described(tmp_path: Path) -> None:
    path = prompts_json(tmp_path / "p.json", labels={"No Finding": {"positive": ["normal"], "negative": ["not so"]}})
    assert prompt_file.load(path).describe(["Edema", "no_finding"]) == {
        "name": "t",
        "version": "1",
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "labels": {
            "Edema": {"positive": ("edema",), "negative": ("no edema",)},
            "no_finding": {"positive": ("normal",), "negative": ("not so",)},
        },
    }


def test_captions_have_no_negative_side(tmp_path: Path) -> None:
    path = prompts_json(tmp_path / "p.json", negative=None, labels={"ADI": {"positive": ["fat", "adipose tissue"]}})
    captions = prompt_file.load(path)
    assert not captions.has_negatives
    assert captions.pair("Debris") == Pair(("debris",), ())
    assert captions.pair("ADI") == Pair(("fat", "adipose tissue"), ())
    both = prompt_file.load("chexzero")
    assert both.has_negatives
    alone = both.positives()
    assert not alone.has_negatives
    assert alone.pair("No Finding") == Pair(both.pair("No Finding").positive, ())
    assert alone.sha256 == both.sha256


def test_a_file_without_templates_knows_its_own_labels_alone(tmp_path: Path) -> None:
    labels = {"Edema": {"positive": ["wet lungs"]}}
    path = prompts_json(tmp_path / "p.json", positive=None, negative=None, labels=labels)
    assert prompt_file.load(path).pair("edema").positive == ("wet lungs",)
    with pytest.raises(UserError, match=r"p\.json: has no prompts for the label 'Fracture'.*it has 'edema'"):
        prompt_file.load(path).pair("Fracture")


def test_templates_from_python_are_held_to_the_same_rules() -> None:
    assert prompt_file.given(["some {}"], ["no {}"]).pair("Edema") == Pair(("some edema",), ("no edema",))
    assert not prompt_file.given(["some {}"], []).has_negatives
    for positive, negative in ((["edema"], ["no {}"]), ([], ["no {}"]), ("some {}", ["no {}"]), ([3], ["no {}"])):
        with pytest.raises(UserError, match="^templates: "):
            prompt_file.given(positive, negative)  # type: ignore[arg-type]  # wrong kinds are what is tested


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_say_what_they_are_and_fit_the_context(name: str) -> None:
    prompts = prompt_file.load(name)
    content = json.loads((prompt_file.FOLDER / f"{name}.json").read_text())
    assert content["name"] == prompts.name == name
    assert content["about"].endswith(".")
    sides = [side for label in FIVE for side in (prompts.pair(label).positive, prompts.pair(label).negative)]
    assert all(len(set(side)) == len(side) for side in sides)
    tokens = PromptTokens.of("e", sides, Tokenizer(), 77)
    assert tokens.sizes == tuple(len(side) for side in sides)
    assert len(tokens.ids_QxT) == sum(tokens.sizes)


def test_the_classes_of_5x200_have_as_many_phrases_each_that_name_no_other_class() -> None:
    prompts = prompt_file.load("chexpert5x200")
    phrases = {label: prompts.pair(label).positive for label in FIVE}
    assert {len(said) for said in phrases.values()} == {5}
    for label, said in phrases.items():
        for other in FIVE:
            assert (other.lower() in " ".join(said).lower()) == (other == label)


def test_plip_captions() -> None:
    assert prompt_file.load("plip").pair("Adipose_tissue") == Pair(("An H&E image of adipose tissue",), ())
