"""Retrieval on real stores with planted embeddings, against ranks counted pair by pair."""

# N pairs, U different texts, E embedding

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pair_stores import PREPARATION, TOKENIZER, Row, evaluator, kinds, planted, unit, write_store

from hybridclip_jax.data.loader import width_for
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import retrieval
from hybridclip_jax.evals.encode import Values
from hybridclip_jax.evals.pairs import ImageTextPairs, seeded_order
from hybridclip_jax.evals.retrieval import Retrieval

PROTOCOLS = ("retrieval-index", "retrieval-unique-text", "retrieval-multi-positive")
AT = (1, 5, 10, 50)


def expected_hit(better: int, tied: int, own: int, k: int) -> float:
    """Share of the orders of a group of ties, after `better` candidates, that put a positive among the first k."""
    left = k - better
    if left <= 0:
        return 0.0
    left = min(left, tied + own)
    return 1 - math.comb(tied, left) / math.comb(tied + own, left)


def expected_rank(better: int, tied: int, own: int) -> float:
    """Sum over j of the share of orders in which no positive is among the first j."""
    return better + sum(math.comb(tied, j) / math.comb(tied + own, j) for j in range(tied + 1))


def standing(cosines: Sequence[float], positive: Sequence[bool]) -> tuple[int, int, int]:
    best = max(c for c, p in zip(cosines, positive, strict=True) if p)
    better = tied = own = 0
    for c, p in zip(cosines, positive, strict=True):
        same = abs(c - best) < 1e-6
        better += c > best and not same
        tied += same and not p
        own += same and p
    return better, tied, own


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b)))


def naive(protocol: str, rows: Sequence[Row], image_NxE: np.ndarray, text_NxE: np.ndarray) -> dict[str, float]:
    """Every value from its definition, a query and a candidate at a time."""
    images = list(range(len(rows)))
    texts = images
    if protocol == "retrieval-unique-text":
        texts = [i for i in images if all(rows[i].text != rows[j].text for j in range(i))]

    def found(i: int, j: int) -> bool:
        if protocol == "retrieval-index":
            return i == j
        same_study = bool(rows[i].study) and rows[i].study == rows[j].study
        return rows[i].text == rows[j].text or (protocol == "retrieval-multi-positive" and (i == j or same_study))

    values: dict[str, float] = {}
    for way, queries, candidates in (("i2t", images, texts), ("t2i", texts, images)):
        places = []
        for q in queries:
            pairs = [(q, c) if way == "i2t" else (c, q) for c in candidates]
            cosines = [cosine(image_NxE[i], text_NxE[t]) for i, t in pairs]
            places.append(standing(cosines, [found(i, t) for i, t in pairs]))
        for k in AT:
            values[f"recall_{way}/{k}"] = float(np.mean([expected_hit(*place, k) for place in places]))
        values[f"median_rank/{way}"] = float(np.median([expected_rank(*place) for place in places]))
    few = [values[f"recall_{way}/{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    return values | {"recall/mean": float(np.mean(few))}


def reports(n: int, distinct: int, seed: int = 0, studies: int = 0) -> list[Row]:
    """n rows with `distinct` texts between them; with `studies` so many of those, each of one patient."""
    rng = np.random.default_rng(seed)
    words = [f"report {' '.join(str(number))}" for number in range(distinct)]
    text = [words[i] for i in (*range(min(n, distinct)), *rng.integers(distinct, size=max(n - distinct, 0)))]
    study = rng.integers(studies, size=n) if studies else range(n)
    return [Row(t, patient=f"p{s}", study=f"s{s}") for t, s in zip(text, study, strict=True)]


def run(protocol: str, spec: str, rows: Sequence[Row], image_NxE: np.ndarray, text_NxE: np.ndarray) -> Values:
    texts = {row.text: vector for row, vector in zip(rows, text_NxE, strict=True)}
    return evaluator(protocol, spec).run(planted(texts), {"image": image_NxE})


def of_text(rows: Sequence[Row], draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """[N, E]: `draw(number)` of each row's text, the same for equal texts."""
    number = {text: i for i, text in enumerate(dict.fromkeys(row.text for row in rows))}
    table = draw(len(number))
    return table[[number[row.text] for row in rows]]


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_equal_those_counted_pair_by_pair(tmp_path: Path, protocol: str, coarse: bool) -> None:
    rng = np.random.default_rng(3)
    rows = reports(70, 50, studies=40)

    def draw(n: int) -> np.ndarray:
        # Of few small whole coordinates many cosines tie, and none is nearly a tie.
        vectors = rng.integers([-1, -1, 1], [2, 2, 4], (n, 3)) if coarse else rng.normal(size=(n, 6))
        return unit(vectors).astype(np.float32)

    image, text = draw(len(rows)), of_text(rows, draw)
    values = run(protocol, write_store(tmp_path / "s", rows), rows, image, text)
    wanted = naive(protocol, rows, image.astype(float), text.astype(float))
    assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert 0.02 < wanted["recall_i2t/5"] < 0.9, "neither trivial nor impossible, or this shows little"


def test_the_three_protocols_differ_where_reports_repeat(tmp_path: Path) -> None:
    rows = reports(60, 20, studies=40)
    rng = np.random.default_rng(0)
    text = of_text(rows, lambda n: unit(rng.normal(size=(n, 16))).astype(np.float32))
    spec = write_store(tmp_path / "s", rows)
    index, unique, multi = (run(name, spec, rows, text, text) for name in PROTOCOLS)  # a perfect model
    assert unique["recall_i2t/1"] == multi["recall_i2t/1"] == unique["recall_t2i/1"] == pytest.approx(1)
    assert index["recall_i2t/1"] == pytest.approx(20 / 60)
    for k in AT:
        assert index[f"recall_i2t/{k}"] == pytest.approx(index[f"recall_i2t_ceiling/{k}"])
        assert index[f"recall_t2i/{k}"] == pytest.approx(index[f"recall_t2i_ceiling/{k}"])
    assert "recall_i2t_ceiling/1" not in unique


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_that_scores_all_alike_gets_what_chance_gives(tmp_path: Path, protocol: str) -> None:
    rows = reports(60, 30, studies=35)
    same = np.ones((60, 4), np.float32) / 2
    spec = write_store(tmp_path / "s", rows)
    values = run(protocol, spec, rows, same, same)
    names = [name for name in values if name.startswith(("recall", "median_rank")) and "_chance/" in name]
    assert len(names) == 11
    assert evaluator(protocol, spec).describe()["meanings"].keys() == kinds(values)
    for name in names:
        assert values[name] == pytest.approx(values[name.replace("_chance", "")], abs=1e-12), name
    if protocol == "retrieval-index":
        assert values["recall_i2t/1"] == pytest.approx(1 / 60)
        assert values["recall_i2t/50"] == pytest.approx(50 / 60)
        assert values["median_rank/i2t"] == pytest.approx(30.5)
    blank = evaluator(protocol, spec).at_chance()
    assert {name: blank[name] for name in blank if name in values} == {
        name: pytest.approx(values[name], abs=1e-12) for name in blank if name in values
    }


def test_an_image_is_ranked_among_different_texts_as_cxr_clip_does(tmp_path: Path) -> None:
    # Three images share "clear"; among the five rows the third image's text would stand fourth.
    texts = ["clear", "clear", "clear", "edema", "fracture"]
    vectors = {"clear": [1, 0, 0], "edema": [0, 1, 0], "fracture": [0, 0, 1]}
    image = unit(np.array([[3, 1, 0], [3, 0, 1], [1, 2, 0], [1, 2, 0], [2, 0, 3.0]])).astype(np.float32)
    rows = [Row(text) for text in texts]
    text = np.array([vectors[t] for t in texts], np.float32)
    values = run("retrieval-unique-text", write_store(tmp_path / "s", rows), rows, image, text)
    assert values["recall_i2t/1"] == pytest.approx(4 / 5)  # image 2 has its text second
    assert values["recall_t2i/1"] == pytest.approx((1 + 0.5 + 1) / 3)  # "edema": images 2 and 3 tie, one is its own
    assert values["median_rank/i2t"] == 1


def test_equal_texts_are_those_that_the_tokenizer_reads_alike(tmp_path: Path) -> None:
    rows = [Row("No  acute\nfinding"), Row("no acute finding"), Row("no acute finding."), Row("  "), Row("edema")]
    made = evaluator("retrieval-unique-text", write_store(tmp_path / "s", rows))
    said = made.describe()
    assert (said["units"], said["texts"]["different_texts"], said["texts"]["images_without_text"]) == (4, 3, 1)
    assert said["texts"]["pairs_that_share_a_text"] == 2


def test_values_are_functions_of_how_often_each_pair_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = reports(40, 30)
    image, text = (unit(rng.normal(size=(40, 4))).astype(np.float32) for _ in range(2))
    text = of_text(rows, lambda n: text[:n])
    texts = {row.text: vector for row, vector in zip(rows, text, strict=True)}
    weight = rng.integers(0, 4, (3, 40)).astype(float)
    for protocol in PROTOCOLS:
        made = evaluator(protocol, write_store(tmp_path / protocol, rows))
        predictions = made.predict(planted(texts), {"image": image})
        values = made.measure(predictions, weight)
        for r, times in enumerate(weight.astype(int)):
            for column, score in zip(predictions.columns, predictions.score_NxK.T, strict=True):
                drawn = np.repeat(score, times)
                drawn = drawn[~np.isnan(drawn)]
                wanted = np.median(drawn) if column.startswith("median") else np.mean(drawn)
                assert values[column][r] == pytest.approx(wanted, abs=1e-12)


def test_a_text_of_several_pairs_is_one_query(tmp_path: Path) -> None:
    rows = [Row("a"), Row("b"), Row("a"), Row("a")]
    made = evaluator("retrieval-unique-text", write_store(tmp_path / "s", rows))
    score = made.predict(planted({"a": np.eye(2)[0], "b": np.eye(2)[1]}), {"image": np.eye(2)[[0, 1, 0, 1]]})
    by_name = dict(zip(score.columns, score.score_NxK.T, strict=True))
    assert by_name["recall_t2i/1"].tolist() == pytest.approx([1, 0.5, np.nan, np.nan], nan_ok=True)
    assert by_name["recall_i2t/1"].tolist() == [1, 1, 1, 0]


def test_a_study_is_scored_by_the_mean_of_its_images(tmp_path: Path) -> None:
    rows = [
        Row("a", study="1", patient="p"),
        Row("a", study="1", patient="p"),
        Row("b", study="2"),
        Row("b", study="1"),
    ]
    image = unit(np.array([[1, 0.2], [1, -0.4], [0.5, 1], [-0.9, 1.0]])).astype(np.float32)
    made = evaluator("retrieval-index", write_store(tmp_path / "s", rows), unit="study")
    assert len(made.units) == 3, "a study is a patient's: the number of another patient's study may be the same"
    score = made.predict(planted({"a": np.eye(2)[0], "b": np.eye(2)[1]}), {"image": image}).score_NxK
    assert score.shape[0] == 3
    assert score[0, 0] == 1
    twice = [Row("a", study="1", patient="p"), Row("b", study="1", patient="p")]
    with pytest.raises(UserError, match="1 studies of .* have images with different texts.*; use unit image"):
        evaluator("retrieval-index", write_store(tmp_path / "t", twice), unit="study")


def test_a_study_has_the_text_and_all_images_of_its_rows(tmp_path: Path) -> None:
    rows = [Row(said, patient=f"p{n}", study="1") for n in range(3) for said in ("", f"report {n}", " ")]
    image = unit(np.random.default_rng(0).normal(size=(9, 4))).astype(np.float32)
    made = evaluator("retrieval-index", write_store(tmp_path / "s", [*rows, Row("")]), unit="study")
    said = made.describe()
    assert (said["units"], said["images"], said["texts"]["images_without_text"]) == (3, 9, 7)
    texts = {f"report {n}": unit(image[3 * n : 3 * n + 3].astype(float).mean(axis=0)) for n in range(3)}
    assert isinstance(made, Retrieval)
    image_NxE, text_UxE = made.pairs.embeddings(planted(texts), {"image": image}, PREPARATION)
    np.testing.assert_allclose(image_NxE, text_UxE, atol=1e-9)
    part = made.pairs.only(np.array([2, 0]))
    assert [part.texts[n] for n in part.text_N] == ["report 0", "report 2"]
    with pytest.raises(UserError, match="has 1 studies with a text"):
        evaluator("retrieval-index", write_store(tmp_path / "one", rows[:3]), unit="study")


def test_studies_of_two_patients_are_two_studies_whatever_their_numbers(tmp_path: Path) -> None:
    rows = [Row(f"report {i}", patient=f"p{i // 2}", study="1") for i in range(4)]
    made = evaluator("retrieval-multi-positive", write_store(tmp_path / "s", rows))
    assert isinstance(made, Retrieval)
    assert made.pairs.study_N.tolist() == [0, 0, 1, 1]
    assert made.positives().tolist() == [2, 2, 2, 2]


def test_texts_are_padded_to_the_width_of_their_own_length(tmp_path: Path) -> None:
    texts = ["short", "a text of " + "some " * 40 + "words"]
    encode = planted({text: np.eye(2)[n] for n, text in enumerate(texts)})
    encode.of_texts({}, texts, TOKENIZER, 512)
    widths = [width_for(len(TOKENIZER.encode(text)) + 2, 512) for text in texts]  # with the start and the end token
    assert dict(encode.work.texts) == dict.fromkeys(widths, 8)
    assert len(set(widths)) == 2 and max(widths) < 512


def test_a_sample_is_drawn_once_for_all(tmp_path: Path) -> None:
    rows = reports(60, 60)
    spec = write_store(tmp_path / "s", rows)
    whole, one, two = (evaluator("retrieval-index", spec, sample=n) for n in (0, 20, 20))
    drawn = one.units.row_N.tolist()
    assert drawn == two.units.row_N.tolist() == sorted(drawn)
    assert len(set(drawn)) == 20 and drawn != list(range(20))
    assert whole.units.row_N.tolist() == list(range(60))
    assert one.constants(one.blank())["recall_i2t_chance/1"] == pytest.approx(1 / 20)
    # What a release of numpy must not change, as published numbers rest on it.
    assert seeded_order(8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_blocks_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    image, text = (unit(rng.normal(size=(n, 8))) for _ in range(2))
    key = np.arange(n)[:, None]
    peaks, found = [], []
    for block in (n * 64, n * 1500, n * n):
        monkeypatch.setattr(retrieval, "_BLOCK", block)
        tracemalloc.start()
        found.append(retrieval.places(image, text, key, key))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for a, b in itertools.pairwise(found):
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("above", "tied", "own"))
    assert peaks[0] < n * 64 * 20, "a block and its masks"
    assert peaks[2] > 8 * n * n, "the whole matrix, so that the bound above means something"


def test_all_pairs_share_their_images_with_evaluators_that_read_the_whole_store(tmp_path: Path) -> None:
    rows = reports(20, 20)
    spec = write_store(tmp_path / "s", rows)
    vectors = {row.text: np.eye(20, dtype=np.float32)[i] for i, row in enumerate(rows)}
    encode, params = planted(vectors), {"image": np.eye(20, dtype=np.float32)}
    whole, sample = (evaluator("retrieval-index", spec, sample=n) for n in (0, 10))
    encode.of_store(params, whole.store, PREPARATION.image_size)
    done = encode.work.images
    assert whole.run(encode, params)["recall/mean"] == sample.run(encode, params)["recall/mean"] == 1
    assert encode.work.images == done


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("side", ["image", "text"])
def test_embeddings_that_are_not_finite_are_no_first_places(tmp_path: Path, bad: float, side: str) -> None:
    rows = reports(12, 12)
    vectors = {"image": np.full((12, 4), 0.5, np.float32), "text": np.full((12, 4), 0.5, np.float32)}
    vectors[side][3] = bad
    values = run("retrieval-index", write_store(tmp_path / "s", rows), rows, vectors["image"], vectors["text"])
    assert values["recall_i2t/1"] is None and values["recall/mean"] is None
    assert values["recall_i2t_why/1"] == "the model's embeddings are not all finite"
    assert values["recall_i2t_lo/1"] is None


def test_user_errors_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    spec = write_store(tmp_path / "s", reports(6, 6))
    with pytest.raises(UserError, match=r"evals\.e\.sample = 2000: .* has 6 pairs; give 0 for all"):
        evaluator("retrieval-index", spec, sample=2000)
    with pytest.raises(UserError, match=r"evals\.e\.sample = -1: must be 0 for all pairs, or at least 2"):
        evaluator("retrieval-index", spec, sample=-1)
    bare = write_store(tmp_path / "bare", [Row(""), Row(" ")])
    with pytest.raises(UserError, match="has 0 images with a text"):
        evaluator("retrieval-unique-text", bare)


def test_repeated_texts_are_named_where_they_count_as_misses(tmp_path: Path) -> None:
    spec = write_store(tmp_path / "s", reports(60, 20))
    [note] = evaluator("retrieval-index", spec).describe()["notes"]
    assert "pairs share their text with another" in note
    assert evaluator("retrieval-unique-text", spec).describe()["notes"] == []


def test_pairs_kept_by_number_keep_their_texts(tmp_path: Path) -> None:
    rows = reports(30, 12, studies=20)
    spec = write_store(tmp_path / "s", rows)
    store = evaluator("retrieval-index", spec).store
    chosen = ImageTextPairs.of("x", store, "image").only(np.array([5, 2, 17]))
    assert chosen.units.row_N.tolist() == [2, 5, 17]
    assert [chosen.texts[i] for i in chosen.text_N] == [rows[i].text for i in (2, 5, 17)]
