"""`hybridclip evaluate` on real runs and stores: what it writes, what it refuses, and that it notes each use."""

# N units, K labels, E embedding

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted import clouds, prepared
from sklearn.metrics import roc_auc_score, roc_curve

import hybridclip_jax as hc
from hybridclip_jax import cli, evaluation, inference, lineage, modelfolder, summary, train
from hybridclip_jax import config as configs
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import run_or_exit
from hybridclip_jax.evals import EVALUATORS, Evaluator, Preparation, comparison, intervals
from hybridclip_jax.evals.comparison import BOOTSTRAP, DELONG, Scored
from hybridclip_jax.evals.zero_shot import class_embedding

CONFIG = """
from hybridclip_jax.config import add_eval, default

def get_config():
    config = default()
    config.steps, config.eval_every, config.log_every, config.checkpoint.every = 2, 1, 1, 2
    config.batch_size, config.mesh.data = 8, 1
    config.model.image.arch, config.model.text.arch = "dinov3_tiny32", "clip_text_tiny"
    config.model.text.context, config.model.embed_dim = 32, 32
    config.data.image_size, config.data.flip, config.data.sentences = 64, False, 1
    config.data.train = "{stores}/whole:train"
    # the projections alone: a step whose towers are frozen compiles in a third of the time
    config.optim.groups = ((".*projection/.*", 1.0, 1.0), (".*", 0.0, 0.0))
    config.optim.name, config.optim.learning_rate = "adamw", 1e-2
    add_eval(config, "bare", data="{stores}/whole:val")
    config.select.metric, config.select.keep = "bare/auroc/mean", 2
    return config
"""


def prepare(out: Path, train_share: float, val_share: float) -> Path:
    """Of one seed, so that all such stores hold the same phantoms, in other splits."""
    shares = ["--train-share", str(train_share), "--val-share", str(val_share)]
    parsed = cli.parse(["prepare", "--format", "phantom", "--seed", "9", "--count", "160", *shares, "--out", str(out)])
    assert not parsed.run(parsed)
    return out


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` with splits train, val and test; in `leaky` the test split begins within whole's train split."""
    folder = tmp_path_factory.mktemp("stores")
    prepare(folder / "whole", 0.5, 0.2)
    prepare(folder / "leaky", 0.3, 0.1)
    return folder


@pytest.fixture(scope="module")
def trained(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.py").write_text(CONFIG.format(stores=stores))
    train.run(configs.load(str(folder / "small.py")), folder / "run", "command")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that was never evaluated."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluate(out: Path, store: str, *models: Path, protocol: str = "chexzero", more: Sequence[str] = ()) -> int:
    """The command as the shell runs it; its exit code."""
    words = ["--model", *map(str, models), "--data", store, "--protocol", protocol, "--out", str(out), *more]
    parsed = cli.parse(["evaluate", *words])
    return run_or_exit(lambda: parsed.run(parsed))


@pytest.fixture(scope="module")
def evaluated(trained: Path, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The run on its test patients, with examples: the folder, what was said, and what was said of errors."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as errors:
        assert evaluate(out, f"{stores}/whole:test", trained, more=["--examples", "3"]) == 0
    (trained / lineage.USES).unlink()  # others begin with a run that was never evaluated
    return out, said.getvalue(), errors.getvalue()


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def scores(out: Path, kind: str = "score") -> np.ndarray:
    """float64 [N, K]."""
    table = pq.read_table(out / "predictions.parquet")
    return np.stack([table[name].to_numpy() for name in table.column_names if name.startswith(f"{kind}/")], axis=1)


# --- what it writes


def test_a_run_is_evaluated_on_its_test_patients(trained: Path, evaluated: tuple[Path, str, str], stores: Path) -> None:
    test, (out, said, errors), run = Store.open(f"{stores}/whole:test"), evaluated, trained
    assert errors == "", "bars are quiet where there is no terminal"
    found = result(out)
    best = json.loads((run / "best.json").read_text())
    assert found["models"][0] | {"step": best["step"], "why": best["why"], "run": str(run)} == found["models"][0]
    assert f"step {best['step']}" in said and best["why"] in said
    assert found["chosen"] == best["why"]
    assert found["synthetic"] and "Synthetic data" in said
    assert found["checks"]["training"].startswith(f"no patient and no image of {test.spec} is in {stores}/whole:train")
    assert found["checks"]["selection"].startswith(f"no patient and no image of {test.spec} is in {stores}/whole:val")
    assert (found["used_before"], found["warnings"], found["each"], found["against"]) == ([], [], [], None)
    assert found["command"].startswith("hybridclip evaluate --model")

    table = pq.read_table(out / "predictions.parquet")
    assert table["id"].to_pylist() == test.ids
    assert table["patient"].to_pylist() == test.patients
    assert table["source_row"].to_pylist() == test.source_rows.tolist()
    for label, counts in found["evaluation"]["labels"].items():
        score_N, truth_N = (table[f"{kind}/{label}"].to_numpy() for kind in ("score", "truth"))
        value = found["values"][f"auroc/{label}"]
        assert value == pytest.approx(roc_auc_score(truth_N, score_N), abs=1e-12)
        assert found["values"][f"auroc_lo/{label}"] <= value <= found["values"][f"auroc_hi/{label}"]
        assert counts["positives"] == truth_N.sum()
        assert label in said and f"{value:.3f}" in said
        curve = found["curves"][label]
        area = np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
        assert area == pytest.approx(value, abs=1e-9)
        assert len(curve["true_positive_rate"]) <= len(roc_curve(truth_N, score_N)[0]) <= 200

    secrets = {*test.ids, *test.studies, *test.patients}
    for text in (said, *((out / name).read_text() for name in ("metrics.json", "examples.json"))):
        assert not [secret for secret in secrets if secret in text]
    page = (out / "report.html").read_text()
    assert not [secret for secret in secrets if secret in page]
    assert "Synthetic data" in page


def test_examples_are_the_most_confident_hits_and_misses(evaluated: tuple[Path, str, str]) -> None:
    out = evaluated[0]
    found = json.loads((out / "examples.json").read_text())
    table = pq.read_table(out / "predictions.parquet")
    by_row = {row: i for i, row in enumerate(table["source_row"].to_pylist())}
    assert found["labels"].keys() == result(out)["evaluation"]["labels"].keys()
    for label, shown in found["labels"].items():
        score_N, truth_N = (table[f"{kind}/{label}"].to_numpy() for kind in ("score", "truth"))
        beaten = [  # the share of the other class that a unit is on the right side of
            np.mean((score > score_N[truth_N != truth]) == truth) for score, truth in zip(score_N, truth_N, strict=True)
        ]
        for kind, sign in (("hits", 1), ("misses", -1)):
            units = [by_row[picture["source_row"]] for picture in shown[kind]]
            assert [beaten[i] for i in units] == sorted(beaten, key=lambda share: -sign * share)[: len(units)]
            assert all(sign * (beaten[i] - 0.5) > 0 for i in units)
            for picture, i in zip(shown[kind], units, strict=True):
                assert (picture["score"], picture["truth"]) == (score_N[i], truth_N[i])
                assert picture["url"].startswith("data:image/jpeg;base64,")
        assert len(shown["hits"]) == 3


def test_the_mean_of_several_models_is_scored_and_each_alone_is_told(
    run: Path,
    evaluated: tuple[Path, str, str],
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays: list[weakref.ref[Any]] = []
    load = inference.load

    def watched(folder: Path) -> Any:
        assert not [array for array in arrays if array() is not None], "the model before is still in memory"
        model = load(folder)
        arrays.extend(map(weakref.ref, model.params.values()))
        return model

    monkeypatch.setattr(inference, "load", watched)
    store, kept = f"{stores}/whole:test", sorted((run / "kept").iterdir())
    assert [model.name for model in kept] == ["step-1", "step-2"]
    best = json.loads((run / "best.json").read_text())["step"]
    outs = {f"step-{best}": evaluated[0], f"step-{3 - best}": tmp_path / "other"}
    assert evaluate(tmp_path / "other", store, run / "kept" / f"step-{3 - best}") == 0
    assert evaluate(tmp_path / "both", store, *kept) == 0
    assert arrays
    alone = [scores(outs[model.name]) for model in kept]
    np.testing.assert_allclose(scores(tmp_path / "both"), (alone[0] + alone[1]) / 2, rtol=0, atol=1e-15)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4, "else a mean of one would pass"
    both = result(tmp_path / "both")
    assert [model["step"] for model in both["models"]] == [1, 2]
    for model, values in zip(kept, both["each"], strict=True):
        single = result(outs[model.name])["values"]
        assert values == {name: single[name] for name in values}
    truth_NxK = scores(tmp_path / "both", "truth")
    expected = np.mean([roc_auc_score(t, s) for t, s in zip(truth_NxK.T, scores(tmp_path / "both").T, strict=True)])
    assert both["values"]["auroc/mean"] == pytest.approx(expected, abs=1e-12)


def test_a_protocol_without_a_mean_of_models_refuses_several(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "out", f"{stores}/whole:test", run, run, protocol="retrieval-index") == 2
    assert "retrieval-index: scores of several models have no mean" in capsys.readouterr().err


# --- two sides


def test_a_model_against_itself_differs_by_exactly_nothing(run: Path, stores: Path, tmp_path: Path) -> None:
    store = f"{stores}/whole:test"
    assert evaluate(tmp_path / "out", store, run, more=["--against", str(run / "best")]) == 0
    found = result(tmp_path / "out")["against"]
    assert found["values"] == result(tmp_path / "out")["values"]
    assert found["differences"].keys() >= {"auroc/mean", "auroc/Cardiomegaly"}
    for row in found["differences"].values():
        assert (row["value"], row["low"], row["high"]) == (0, 0, 0)
        assert row["p"] in (1, None)
    np.testing.assert_array_equal(scores(tmp_path / "out"), scores(tmp_path / "out", "against"))


N = 40


def planted(path: Path, images_a_patient: int) -> Evaluator:
    """An evaluator on a store of two labels, one with unknown values."""
    generator = np.random.default_rng(0)
    labels = {"Edema": generator.permutation(np.arange(N) % 2), "Fracture": generator.permutation(np.arange(N) % 3 > 1)}
    with StoreWriter(path, channels=1, labels=tuple(labels), sections=(), synthetic=True) as writer:
        for i in range(N):
            known = {name: None if name == "Edema" and i % 7 == 0 else float(y[i]) for name, y in labels.items()}
            record = Record(
                id=f"i{i}", study=f"s{i}", patient=f"p{i // images_a_patient}", split="test", view="", text="a report",
                sections={}, n_tokens=4, labels=known, source_row=i + 1,
            )  # fmt: skip
            writer.append(record, np.full((320, 320, 1), i, np.uint8))
        ids = {"namespace": "test", "key_fingerprint": "0"}
        writer.finish({"labels": {"names": list(labels), "uncertain": "ignore", "blank": "missing"}, "ids": ids})
    entry = {"protocol": "chexzero", "data": str(path)}
    return EVALUATORS["chexzero"]("chexzero", entry, Preparation(Tokenizer(), 77, 16))


def two_sides(path: Path, images_a_patient: int) -> tuple[Scored, Scored]:
    evaluator = planted(path, images_a_patient)
    generator = np.random.default_rng(1)
    base = dataclasses.replace(evaluator.blank(), score_NxK=generator.integers(0, 9, (N, 2)) / 9)  # with ties
    other = dataclasses.replace(base, score_NxK=base.score_NxK + 0.3 * base.truth_NxK)
    other = dataclasses.replace(other, score_NxK=np.nan_to_num(other.score_NxK))
    return Scored(evaluator, base), Scored(evaluator, other)


def pairwise_auroc(score: np.ndarray, truth: np.ndarray) -> float:
    gap = score[truth == 1][:, None] - score[truth == 0]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def test_paired_differences_are_those_of_the_same_resamples(tmp_path: Path) -> None:
    """Where patients have several images: each resample's rows repeated literally, both models on the same rows."""
    ours, theirs = two_sides(tmp_path / "s", images_a_patient=2)
    found = comparison.differences(ours, theirs)
    weight_RxN = np.concatenate(list(intervals.resamples(ours.evaluator.units.patient_N)))
    assert weight_RxN.shape == (1000, N)
    drawn = []
    for weight_N in weight_RxN:
        rows = np.repeat(np.arange(N), weight_N.astype(int))
        truth = ours.predictions.truth_NxK[rows, 0]
        a, b = (side.predictions.score_NxK[rows, 0][~np.isnan(truth)] for side in (ours, theirs))
        truth = truth[~np.isnan(truth)]
        drawn.append(pairwise_auroc(a, truth) - pairwise_auroc(b, truth))
    low, high = np.percentile(drawn, (2.5, 97.5))
    edema = found["auroc/Edema"]
    assert (edema["low"], edema["high"]) == pytest.approx((low, high), abs=1e-12)
    assert (edema["method"], edema["resamples"], edema["p"]) == (BOOTSTRAP, 1000, None)
    a, b = (side.evaluator.point(side.predictions)["auroc/Edema"] for side in (ours, theirs))
    assert edema["value"] == pytest.approx(a - b, abs=1e-15) and edema["value"] < 0
    # unpaired, the interval would be wider: each side resampled with draws of its own
    apart = [np.array(ours.evaluator.resampled(side.predictions)["auroc/Edema"]) for side in (ours, theirs)]
    wide = np.percentile(apart[0] - np.random.default_rng(0).permutation(apart[1]), (2.5, 97.5))
    assert wide[1] - wide[0] > 1.2 * (high - low)


def test_delong_compares_labels_where_no_patient_has_two_units(tmp_path: Path) -> None:
    ours, theirs = two_sides(tmp_path / "s", images_a_patient=1)
    found = comparison.differences(ours, theirs)
    assert {name: row["method"] for name, row in found.items()} == {
        "auroc/Edema": DELONG, "auroc/Fracture": DELONG, "auroc/mean": BOOTSTRAP,
    }  # fmt: skip
    for k, label in enumerate(("Edema", "Fracture")):
        score_a, score_b = (side.predictions.score_NxK[:, k] for side in (ours, theirs))
        expected = intervals.delong(score_a, score_b, ours.predictions.truth_NxK[:, k])
        row = found[f"auroc/{label}"]
        assert (row["low"], row["high"], row["p"]) == (expected.low, expected.high, expected.p)
        assert row["value"] == pytest.approx(expected.difference, abs=1e-12)
        assert 0 < row["p"] < 0.05


def test_a_difference_with_nothing_on_one_side_is_null(tmp_path: Path) -> None:
    ours, theirs = two_sides(tmp_path / "s", images_a_patient=1)
    score_NxK = theirs.predictions.score_NxK.copy()
    score_NxK[3, 0] = np.nan
    broken = dataclasses.replace(theirs, predictions=dataclasses.replace(theirs.predictions, score_NxK=score_NxK))
    row = comparison.differences(ours, broken)["auroc/Edema"]
    assert (row["value"], row["low"], row["high"], row["p"]) == (None, None, None, None)
    assert row["why"] == "one side has no value"


def test_hits_and_misses_are_judged_against_the_other_class() -> None:
    score_N, truth_N = np.arange(7.0), np.array([0, 0, 1, 0, 1, np.nan, 1])
    # 3 is above one of three positives, 2 below one of three negatives: neither is wrong about most
    assert comparison.examples(score_N, truth_N, 9) == ([6, 4, 0, 1, 2, 3], [])
    assert comparison.examples(score_N, truth_N, 2) == ([6, 4], [])
    assert comparison.examples(-score_N, truth_N, 9) == ([], [6, 4, 0, 1, 2, 3])
    assert comparison.examples(np.zeros(7), truth_N, 9) == ([], []), "nobody is right where all score alike"


def test_hits_and_misses_need_both_classes() -> None:
    score_N = np.arange(6.0)
    assert comparison.examples(score_N, np.ones(6), 9) == ([], [])
    assert comparison.examples(score_N, np.full(6, np.nan), 9) == ([], [])
    assert comparison.examples(score_N, np.arange(6.0), 9) == ([], []), "ranks are no labels"


# --- studies


def test_studies_are_scored_by_the_mean_of_their_images(run: Path, stores: Path, tmp_path: Path) -> None:
    whole = Store.open(f"{stores}/whole:test")
    n, path = 24, tmp_path / "studies"
    with StoreWriter(path, channels=1, labels=("Nodule",), sections=(), synthetic=True) as writer:
        for i in range(n):  # three images a study; the label is on one of them
            label = float(i % 3 == 0 and (i // 3) % 2 == 0)
            record = Record(
                id=f"i{i}", study=f"s{i // 3}", patient=f"p{i // 6}", split="test", view="", text="a report",
                sections={}, n_tokens=4, labels={"Nodule": label}, source_row=i,
            )  # fmt: skip
            writer.append(record, whole.image(i))
        policy = {"names": ["Nodule"], "uncertain": "ignore", "blank": "missing"}
        ids = {"namespace": "elsewhere", "key_fingerprint": "0"}
        writer.finish({"labels": policy, "ids": ids, "preprocessing": whole.manifest["preprocessing"]})
    out = tmp_path / "out"
    assert evaluate(out, str(path), run, more=["--unit", "study", "--examples", "1"]) == 0
    model, table = hc.load(run), pq.read_table(out / "predictions.parquet")
    image_NxE = model.encode_image([whole.image(i) for i in range(n)]).astype(np.float64).reshape(n // 3, 3, -1).mean(1)
    image_NxE /= np.linalg.norm(image_NxE, axis=1, keepdims=True)
    sides = [
        image_NxE @ class_embedding(model.encode_text([text]).astype(np.float64)) for text in ("nodule", "no nodule")
    ]
    np.testing.assert_allclose(table["score/Nodule"].to_numpy(), 1 / (1 + np.exp(sides[1] - sides[0])), atol=1e-6)
    assert table["truth/Nodule"].to_pylist() == [1.0, 0.0] * 4
    assert table["source_row"].to_pylist() == list(range(0, n, 3))
    found = result(out)
    assert (found["evaluation"]["units"], found["evaluation"]["unit"]) == (8, "study")
    assert "not checked" in found["checks"]["training"] and "namespaces" in found["checks"]["training"]


# --- who was seen before


def test_patients_that_were_trained_on_are_refused(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaky, whole = Store.open(f"{stores}/leaky:test"), Store.open(f"{stores}/whole:train")
    shared = len(leaky.patient_set & whole.patient_set)
    assert 0 < shared < len(leaky.patient_set)
    assert evaluate(tmp_path / "out", leaky.spec, run) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{shared} patients" in said and "trained on" in said and "--allow-overlap" in said
    assert not (tmp_path / "out").exists()
    assert not (run / lineage.USES).exists(), "nothing was seen, so nothing is noted"

    assert evaluate(tmp_path / "out", leaky.spec, run, more=["--allow-overlap"]) == 0
    found = result(tmp_path / "out")
    assert any(f"{shared} patients" in warning and "say nothing" in warning for warning in found["warnings"])
    assert f"{shared} patients" in found["checks"]["training"]
    assert "say nothing" in capsys.readouterr().out
    assert f"{shared} patients" in (tmp_path / "out" / "report.html").read_text()


def test_patients_that_the_step_was_chosen_on_are_refused(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # whole's val lies within leaky's test; without leaks into training only the choice can refuse
    config = json.loads((run / "config.json").read_text())
    config["data"]["train"] = f"{stores}/leaky:train"
    (run / "config.json").write_text(json.dumps(config))
    assert evaluate(tmp_path / "out", f"{stores}/leaky:test", run) == 2
    said = capsys.readouterr().err
    assert "on which the step was chosen" in said and "trained on" not in said


def test_the_store_of_the_choice_is_evaluated_with_a_warning(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(stores / "whole", moved)
    assert evaluate(tmp_path / "out", f"{moved}:val", run) == 0
    assert "the selection's, and optimistic" in capsys.readouterr().out
    assert any("optimistic" in warning for warning in result(tmp_path / "out")["warnings"])
    here = lineage.check(Store.open(f"{stores}/whole:val"), [lineage.of(run)])
    assert len(here.warnings) == 1 and not here.faults
    assert result(tmp_path / "out")["values"]["auroc/mean"] == pytest.approx(
        json.loads((run / "best.json").read_text())["value"], abs=1e-3
    )


def test_a_bare_folder_is_not_checked_unless_told_what_it_was_trained_on(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = Path(shutil.copytree(run / "best", tmp_path / "bare"))
    assert evaluate(tmp_path / "out", f"{stores}/leaky:test", bare) == 0
    found, said = result(tmp_path / "out"), capsys.readouterr().out
    for check, words in (("training", "what it was trained on"), ("selection", "on what it was chosen")):
        sentence = found["checks"][check]
        assert sentence.startswith("not checked") and words.replace(" it ", f" {bare} ") in sentence
        assert sentence in found["warnings"] and f"warning: {sentence}" in said
        assert sentence in (tmp_path / "out" / "report.html").read_text().partition("<table")[0], "a banner, on top"
    assert "--trained-on" in said
    trained_on = ["--trained-on", f"{stores}/whole:train"]
    assert evaluate(tmp_path / "out", f"{stores}/leaky:test", bare, more=trained_on) == 2
    assert "trained on" in capsys.readouterr().err
    checked = lineage.check(Store.open(f"{stores}/whole:test"), [lineage.of(bare)], trained_on[1:])
    assert checked.checks["training"].startswith("no patient and no image") and not checked.faults


def test_a_store_that_is_gone_is_a_check_that_was_not_made(run: Path, stores: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["train"] = "gone:train"
    (run / "config.json").write_text(json.dumps(config))
    for model in (run, run / "best", run / "kept" / "step-1"):
        found = lineage.check(Store.open(f"{stores}/whole:test"), [lineage.of(model)])
        assert found.checks["training"].startswith("not checked: gone:train") and not found.faults
        assert found.warnings == [found.checks["training"]]


def relative(run: Path, spec: str, path: Path) -> None:
    """As if the run had been started beside its training store, under this name."""
    config, noted = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    config["data"]["train"] = noted["data"]["train"]["spec"] = spec
    noted["data"]["train"]["path"] = str(path)
    (run / "config.json").write_text(json.dumps(config))
    (run / "summary.json").write_text(json.dumps(noted))


def test_a_run_notes_where_its_stores_lie(trained: Path, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.loads((trained / "summary.json").read_text())["data"]
    assert data["train"]["path"] == data["evals"]["bare"]["path"] == str((stores / "whole").resolve())
    monkeypatch.chdir(stores)
    assert summary._of_store(Store.open("whole:train"))["path"] == str((stores / "whole").resolve())


def test_the_training_store_is_found_from_any_working_directory(
    run: Path,
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the caller stands, another store has the name that the run's config gives: it shares no patient."""
    leaky = Store.open(f"{stores}/leaky:test")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    relative(run, "whole:train", stores / "whole")
    for decoy in (False, True):
        if decoy:
            shutil.copytree(stores / "leaky", tmp_path / "here" / "whole")
        assert lineage.check(leaky, [lineage.of(run)]).faults, "the run's own place decides"
        assert evaluate(tmp_path / "out", leaky.spec, run) == 2
        assert f"{stores}/whole:train, which was trained on" in capsys.readouterr().err
    relative(run, "whole:train", tmp_path / "gone")
    found = lineage.check(leaky, [lineage.of(run)])
    assert not [fault for fault in found.faults if fault.endswith(lineage.TRAINED)], "the decoy shares nothing"
    assert "what is here has changed since the run" in found.warnings[0]
    assert "not checked" in found.checks["training"]
    told = lineage.check(leaky, [lineage.of(run)], [f"{stores}/whole:train"])
    assert told.faults and "not checked" not in told.checks["training"], "this is what the run read"
    (run / "summary.json").unlink()
    assert "no summary.json" in lineage.check(leaky, [lineage.of(run)]).warnings[0]


def test_two_runs_of_one_training_store_are_told_once(run: Path, stores: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    found = lineage.check(Store.open(f"{stores}/whole:test"), [lineage.of(run), lineage.of(other)])
    for sentence in found.checks.values():
        assert sentence.count("no patient and no image") == 1


def test_what_cannot_be_compared_is_not_said_to_be_apart(run: Path, tmp_path: Path) -> None:
    """Unknown patients, in all records or in some, and pixels that were prepared otherwise."""
    rows = [{"image": clouds(n), "text": f"Findings {n}.", "patient": f"Doe^{n}", "Edema": n % 2} for n in range(6)]
    trained_on = str(prepared(tmp_path / "train", [rows[0], rows[1], rows[2] | {"patient": ""}]))
    bare = Path(shutil.copytree(run / "best", tmp_path / "bare"))

    def against(name: str, held: list[dict[str, object]], *flags: str) -> tuple[str, str]:
        store = Store.open(str(prepared(tmp_path / name, held, *flags)))
        found = lineage.check(store, [lineage.of(bare)], [trained_on])
        assert not found.faults
        return found.checks["training"], " ".join(found.warnings)

    for said in against("partly", rows[3:]):
        assert "not every patient checked" in said and "1 of 3 records" in said
    check, _ = against("partly-again", rows[3:])
    assert check.startswith("no known patient and no image of ")
    check, warned = against("nameless", [row | {"patient": ""} for row in rows[3:]])
    assert check.startswith("no image of ") and "patients not checked: " in warned
    check, warned = against("unlike", rows[3:], "--resize", "stretch")
    assert check.startswith("no known patient of ") and "no image" not in check
    assert "images not checked: not comparable by pixel: prepared with different resize" in warned


def test_a_store_that_has_changed_since_the_run_is_said_to_have(run: Path, stores: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["train"]["fingerprint"] = "0" * 64
    (run / "summary.json").write_text(json.dumps(summary))
    found = lineage.check(Store.open(f"{stores}/whole:test"), [lineage.of(run)])
    assert "has changed since the run" in found.checks["training"]
    assert any("has changed since the run" in warning for warning in found.warnings)
    assert "has changed" not in found.checks["selection"]


def test_another_evaluation_of_the_run_is_told_though_it_chose_nothing(run: Path, stores: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["evals"]["further"] = config["evals"]["bare"] | {"data": f"{stores}/whole:test"}
    (run / "config.json").write_text(json.dumps(config))
    [warning] = lineage.check(Store.open(f"{stores}/whole:test"), [lineage.of(run)]).warnings
    assert "during the training" in warning


def test_each_use_of_a_store_is_noted_and_told_the_next_time(
    run: Path,
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    test, out = Store.open(f"{stores}/whole:test"), tmp_path / "out"
    assert evaluate(out, test.spec, run, more=["--examples", "1"]) == 0
    assert "before with these runs" not in capsys.readouterr().out
    assert (out / "examples.json").exists()
    first = result(out)
    monkeypatch.chdir(tmp_path)
    assert evaluate(Path("out"), test.spec, Path("run/best")) == 0
    assert "was evaluated once before with these runs" in capsys.readouterr().out
    [use] = result(out)["used_before"]
    assert use["protocol"] == "chexzero"
    names = {path.name for path in out.iterdir()}
    assert names == {"metrics.json", "predictions.parquet", "report.html"}, "an evaluation is written over whole"

    lines = [json.loads(line) for line in (run / lineage.USES).read_text().splitlines()]
    assert [line["split"] for line in lines] == ["test", "test"]
    assert all(re.search(r":\d\d\.\d{6}\+00:00$", line["when"]) for line in lines), "two in one second are two"
    assert lines[0]["values"] == {"auroc/mean": first["values"]["auroc/mean"]}
    assert [line["out"] for line in lines] == [str(out), str(out)], "absolute, from wherever it was called"
    assert [line["model"] for line in lines] == [str(run / "best")] * 2
    step = json.loads((run / "best.json").read_text())["step"]
    assert [line["steps"] for line in lines] == [[step], [step]]
    assert lines[0].keys() >= {"when", "step", "protocol", "data", "store_fingerprint", "unit", "model"}
    assert lineage.uses([lineage.of(run)], Store.open(f"{stores}/whole:val")) == [], "another split is another store"
    (run / lineage.USES).write_text("torn{\n" + (run / lineage.USES).read_text())
    both = [lineage.of(run / "kept" / f"step-{step}") for step in (1, 2)]
    assert len(lineage.uses(both, test)) == 2
    lineage.record(both, test, {"when": "now", "out": "x"})
    last = json.loads((run / lineage.USES).read_text().splitlines()[-1])
    assert (last["step"], last["steps"]) == (1, [1, 2])


def test_thresholds_of_known_patients_are_a_warning(run: Path, stores: Path, tmp_path: Path) -> None:
    lines = [lineage.of(run)]
    for split, expected in (("train", 1), ("val", 0)):
        store = Store.open(f"{stores}/whole:{split}")
        found = lineage.check_fitted("--validation", store, lines, (), Store.open)
        assert len(found) == expected
        assert all("--validation: " in warning and "trained on" in warning for warning in found)
    more = ["--validation", f"{stores}/whole:train"]
    assert evaluate(tmp_path / "out", f"{stores}/whole:test", run, more=more) == 0
    [warning] = result(tmp_path / "out")["warnings"]
    assert warning.startswith("--validation: ")


def test_a_best_model_that_changes_while_it_is_read_is_one_line(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run that goes on leaves for a moment: the next best/ beside the best.json of the one before."""
    best = json.loads((run / "best.json").read_text())
    best["fingerprint"] = modelfolder.stated_fingerprint(run / "kept" / f"step-{best['step']}")
    (run / "best.json").write_text(json.dumps(best))
    assert lineage.of(run).fingerprint == inference.load(run / "best").fingerprint
    shutil.rmtree(run / "best")
    shutil.copytree(run / "kept" / f"step-{3 - best['step']}", run / "best")
    assert evaluate(tmp_path / "out", f"{stores}/whole:test", run) == 2
    said = capsys.readouterr().err
    assert "best/ changed while it was read; run again" in said and said.count("\n") == 1
    assert not (run / lineage.USES).exists()


# --- refusals


def test_an_evaluation_is_written_over_by_nothing_but_itself(
    run: Path,
    evaluated: tuple[Path, str, str],
    stores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, test = Path(shutil.copytree(evaluated[0], tmp_path / "out")), f"{stores}/whole:test"
    best = json.loads((run / "best.json").read_text())["step"]
    other = run / "kept" / f"step-{3 - best}"
    for store, model, more, word in (
        (test, other, [], "models"),
        (f"{stores}/whole:val", run, [], "split"),
        (test, run, ["--unit", "study"], "unit"),
        (test, run, ["--prompts", "templated"], "fields"),
        (test, run, ["--protocol", "loss"], "protocol, fields"),
    ):
        assert evaluate(out, store, model, more=more) == 2
        said = capsys.readouterr().err
        assert f"holds another evaluation (of another {word}); name another folder" in said
    assert not (run / lineage.USES).exists()
    assert (out / "metrics.json").read_bytes() == (evaluated[0] / "metrics.json").read_bytes()


def test_two_evaluations_into_one_folder_are_refused(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with evaluation.locked(tmp_path / "new" / "out"):
        assert evaluate(tmp_path / "new" / "out", f"{stores}/whole:test", run) == 2
        said = capsys.readouterr().err
        assert "another evaluate is writing it" in said and said.count("\n") == 1
    assert list((tmp_path / "new").iterdir()) == [], "neither a result nor a lock"
    assert evaluate(tmp_path / "new" / "out", f"{stores}/whole:val", run) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_folder_with_other_files_is_not_written_into(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text('{"mine": 1}')
    (tmp_path / "file").write_text("")
    for out, word in ((tmp_path / "mine", "holds other files"), (tmp_path / "file", "is a file"),
                      (tmp_path / "file" / "out", "cannot be made"), (run, "holds other files")):  # fmt: skip
        assert evaluate(out, f"{stores}/whole:test", run) == 2
        assert word in capsys.readouterr().err
    assert (tmp_path / "mine" / "metrics.json").read_text() == '{"mine": 1}'
    assert not (run / lineage.USES).exists()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--candidates", "8"], "--candidates: is no flag of --protocol chexzero; it is of loss"),
        (["--examples", "-1"], "--examples -1: must be at least 0"),
        (["--protocol", "chexzer"], "--protocol chexzer: no such protocol; did you mean chexzero"),
        (["--protocol", "loss", "--candidates", "1"], "error: --candidates 1: must be at least 2"),
        (["--protocol", "linear-probe"], "error: --train is empty: name a store"),
        (["--prompts", "nowhere"], "neither a file nor one of the shipped sets"),
        (["--trained-on", "nowhere"], "nowhere: no such store"),
    ],
)
def test_wrong_flags_are_one_line(
    more: list[str], word: str, run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "out", f"{stores}/whole:test", run, more=more) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


def test_wrong_folders_stores_and_numbers_are_one_line(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = f"{stores}/whole:test"
    assert evaluate(tmp_path / "out", test, tmp_path / "nothing") == 2
    assert "neither a model folder" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", test, run / "kept") == 2
    assert f"for all of its model folders name {run}/kept/*" in capsys.readouterr().err
    modelfolder.extract(run / "best", "image", tmp_path / "tower", licence="none")
    assert evaluate(tmp_path / "out", test, tmp_path / "tower") == 2
    assert "holds the image tower alone; evaluate needs a model of two towers" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", test, run, protocol="chexzero-compat", more=["--against", str(run)]) == 2
    assert "--against: --protocol chexzero-compat has no paired differences" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", f"{stores}/whole", run) == 2
    assert "several splits" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", test, run, protocol="loss", more=["--candidates", "few"]) == 2
    assert "--candidates few: must be a whole number" in capsys.readouterr().err
    card = json.loads((run / "best" / "model.json").read_text())
    card["preprocessing"]["store"]["resize"] = "stretch"
    (run / "best" / "model.json").write_text(json.dumps(card))
    assert evaluate(tmp_path / "out", test, run) == 2
    assert "prepared with resize = pad" in capsys.readouterr().err


def test_a_run_whose_files_were_spoilt_is_one_line(
    run: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    trained_on_a_number = json.dumps(config | {"data": {"train": 5}})
    spoilt = [("best.json", "[1]"), ("best.json", "{"), ("summary.json", ""), ("config.json", trained_on_a_number)]
    for name, text in [*spoilt, ("config.json", ""), ("config.json", "{}")]:
        whole = (run / name).read_text()
        (run / name).write_text(text)
        for model in (run, run / "kept" / "step-1"):
            assert evaluate(tmp_path / "out", f"{stores}/whole:test", model) == 2, (name, text)
            said = capsys.readouterr().err
            assert "not as a run writes it" in said and said.count("\n") == 1
        (run / name).write_text(whole)
    assert not (run / lineage.USES).exists()
    (run / "kept" / "step-1").rename(run / "kept" / "step-²")
    assert lineage.of(run / "kept" / "step-²").step is None


def test_a_spoilt_log_of_uses_loses_no_further_use(run: Path, stores: Path) -> None:
    test, lines, said = Store.open(f"{stores}/whole:test"), [lineage.of(run)], list[str]()
    (run / lineage.USES).write_bytes(b'\xff\xfe\n{"when": "torn')
    assert lineage.record(lines, test, {"when": "now", "out": "x"}) == []
    assert [use["when"] for use in lineage.uses(lines, test, said.append)] == ["now"]
    assert not said
    (run / lineage.USES).unlink()
    (run / lineage.USES).mkdir()
    assert lineage.uses(lines, test, said.append) == []
    assert len(said) == 1 and "cannot be read" in said[0]
    assert "could not be noted" in lineage.record(lines, test, {"when": "now", "out": "x"})[0]


def test_what_would_fail_at_the_end_fails_before_the_work(
    run: Path,
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def scored(*arguments: object) -> None:
        raise AssertionError("scored for nothing")

    monkeypatch.setattr(evaluation, "side", scored)
    assert evaluate(Path("/proc/out"), f"{stores}/whole:test", run) == 4
    assert "/proc/out.lock: cannot be written" in capsys.readouterr().err
    (run / "kept" / "step-2" / "model.safetensors").write_bytes(b"")
    kept = [run / "kept" / "step-1", run / "kept" / "step-2"]
    assert evaluate(tmp_path / "out", f"{stores}/whole:test", *kept) == 2
    assert "damaged model folder" in capsys.readouterr().err


def test_every_field_of_every_protocol_is_a_flag_that_is_not_one_already() -> None:
    parsed = vars(cli.parse(["evaluate", "--model", "m", "--data", "d", "--protocol", "chexzero", "--out", "o"]))
    for evaluator in EVALUATORS.values():
        for key in evaluator.FIELDS:
            assert f"field_{key}" in parsed
            assert key not in parsed


def test_what_is_not_finite_is_null_in_strict_json() -> None:
    value: Mapping[str, Any] = {"a": np.float64("nan"), "b": [float("inf"), np.int64(3)], "c": np.arange(2.0), "d": "x"}
    assert evaluation.finite({"a\udcff": "b\udcff"}) == {"a\\udcff": "b\\udcff"}
    assert evaluation.finite(value) == {"a": None, "b": [None, 3], "c": [0.0, 1.0], "d": "x"}
