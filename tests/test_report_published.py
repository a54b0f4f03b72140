"""What may stand beside a value: published results of the same set, and the recipe's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_files import COMPETITION, Page, description, make_evaluation

from hybridclip_jax import config as configs
from hybridclip_jax.data.formats import FORMATS
from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.plan import TEXTS
from hybridclip_jax.evals import EVALUATORS
from hybridclip_jax.report import evaluation, published, recipe


def page_of(out: Path, *, unverified: bool = False) -> Page:
    return Page(evaluation.render(out, unverified=unverified).read_text(encoding="utf-8"))


TEST_SET = description("stores/chexpert:test", list(COMPETITION))


def test_a_published_result_appears_beside_the_same_set_and_only_when_it_is_checked_or_asked_for() -> None:
    shown, said = published.beside(TEST_SET, unverified=False)
    assert shown == []
    assert "not checked in the source, and not shown; --unverified shows them" in said
    shown, said = published.beside(TEST_SET, unverified=True)
    by_name = {(one.model, one.name): one for one in shown}
    assert said == ""
    assert by_name["CheXzero, ensemble", "auroc/mean5"].value == 0.889
    assert by_name["CheXzero, ensemble", "mcc/mean5"].interval == (0.486, 0.561)
    assert by_name["CheXzero, ensemble", "auroc/Pleural Effusion"].value == 0.932
    assert {one.mark for one in shown} == {"unverified"}
    assert "first view of each study" in by_name["CheXzero, ensemble", "auroc/mean5"].note, "ours are of all views"


def test_names_of_labels_are_compared_in_any_spelling_and_shown_in_the_stores() -> None:
    labels = ["atelectasis", "CARDIOMEGALY", "Consolidation", "Edema", "Pleural_Effusion", "Fracture"]
    shown, _ = published.beside(description("a", labels), unverified=True)
    assert {"auroc/CARDIOMEGALY", "auroc/Pleural_Effusion"} <= {one.name for one in shown}


def others() -> Iterator[tuple[str, dict[str, Any]]]:
    """Descriptions that differ from the published set in one thing."""
    for field, value in (("namespace", "csv:chexpert"), ("format", "chexpert-plus"), ("split", "valid")):
        yield field, {**TEST_SET, "set": {**TEST_SET["set"], field: value}}
    yield "units", {**TEST_SET, "units": 499}
    yield "protocol", {**TEST_SET, "protocol": "linear-probe"}
    yield "labels", {**TEST_SET, "labels": {key: value for key, value in TEST_SET["labels"].items() if key != "Edema"}}
    yield "synthetic", {**TEST_SET, "synthetic": True}
    yield "no set", {key: value for key, value in TEST_SET.items() if key != "set"}


@pytest.mark.parametrize(("what", "info"), list(others()))
def test_another_set_has_no_published_result(what: str, info: dict[str, Any]) -> None:
    shown, said = published.beside(info, unverified=True)
    assert shown == [], what
    assert said.startswith("No published result")
    assert said.count(".") == 1


def test_a_mean_stands_only_beside_the_mean_of_the_same_labels() -> None:
    (row,) = [row for row in published.table()["results"] if "auroc/mean" in row["values"]]
    is_of = {"namespace": "chexpert", "format": "chexpert-plus", "split": "valid"}
    info = description("stores/plus:valid", row["labels"], units=234, set=is_of)
    shown, said = published.beside(info, unverified=False)
    assert [(one.name, one.value, one.mark) for one in shown] == [("auroc/mean", 0.473, "verified")]
    assert said == ""
    more = description("stores/plus:valid", [*row["labels"], "Pleural Thickening"], units=234, set=is_of)
    assert published.beside(more, unverified=True)[0] == []


def test_the_page_shows_published_results_in_their_own_rows(tmp_path: Path) -> None:
    out = make_evaluation(tmp_path / "out")
    text = page_of(out).text
    assert "CheXzero, ensemble" not in text
    assert "--unverified shows them" in text
    text = page_of(out, unverified=True).text
    assert "CheXzero, ensemble unverified 0.816 0.906 0.897 0.892 0.932 0.889 0.523 0.486 to 0.561" in text
    assert "CheXzero, ensemble (unverified): Tiu et al., Nature Biomedical Engineering 2022" in text


def test_the_table_of_published_results_is_sound() -> None:
    table = published.table()
    for row in table["results"]:
        assert row["set"] in table["sets"]
        assert row["mark"] in ("verified", "unverified")
        assert row["source"]
        assert set(row["protocols"]) <= EVALUATORS.keys()
        assert all(0 < value < 1 for value in row["values"].values())
        assert set(row.get("intervals", {})) <= row["values"].keys()
        for name, (low, high) in row.get("intervals", {}).items():
            assert low < row["values"][name] < high
        assert row["labels"] == [] or set(row["labels"]) <= set(CHEXPERT_LABELS)
    for one in table["sets"].values():
        assert {"name", "namespace", "format", "units"} <= one.keys()
        assert one["format"] in FORMATS
        assert one.get("text", "report") in TEXTS


# --- the recipe


def test_the_recipe_is_what_a_config_starts_from() -> None:
    config = json.loads(configs.to_json(configs.default()))
    for setting in recipe.recipe()["settings"]:
        for field, asked in zip(setting["fields"], setting["recipe"], strict=True):
            node = config
            for part in field.split("."):
                node = node[part]
            assert node == asked, field
        assert setting["sources"]
        for source in setting["sources"]:
            assert source["mark"] in ("verified", "unverified")
            assert source["who"] and source["says"] and source["where"]


def test_a_setting_that_differs_from_the_recipe_is_named() -> None:
    config = json.loads(configs.to_json(configs.default()))
    text = Page(recipe.recipe_section(config)).text
    assert "this run differs in none." in text
    assert "optim.learning_rate 0.0001 as the recipe CheXzero, code: default 1e-4." in text
    assert "if the files are named batch_rate_step_AUC (unverified)." in text
    config["optim"]["learning_rate"] = 0.001
    config["data"]["flip"] = False
    text = Page(recipe.recipe_section(config)).text
    assert "this run differs in 2." in text
    assert "optim.learning_rate 0.0001 0.001 CheXzero" in text
