"""The limits suite on real stores: each test's value for a model that is known to be able, and unable, to tell."""

# N units, R resamples, E embedding

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_stores import PREPARATION, SIZE, TOKENIZER, Row, kinds, unit, write_store
from readers import BATCH, E, Reader
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS, Preparation, rewording
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.evaluator import beside
from hybridclip_jax.evals.limits import Limits
from hybridclip_jax.evals.limits_labels import KINDS
from hybridclip_jax.evals.preference import TIE, balanced, found_first, preferred, weighted_mean

REPORTS = [
    "Left pleural effusion. The heart is enlarged. No nodule.",
    "There is a pneumothorax on the right. The Left lung is clear.",
    "RIGHT upper zone consolidation. Normal heart.",
    "Normal chest radiograph.",
    "Small left effusion. Degenerative changes of the spine. Pacemaker in place.",
    "The lungs are clear. The bones are unremarkable.",
]
LONG = 128  # a context beyond 77


def limits(spec: str, context: int = 77, **fields: Any) -> Limits:
    entry = {"protocol": "limits", "data": spec, **fields}
    made = EVALUATORS["limits"]("e", entry, Preparation(TOKENIZER, context, SIZE))
    assert isinstance(made, Limits)
    return made


def of_own_texts(reader: Reader, texts: list[str], context: int = 77) -> dict[str, np.ndarray]:
    """Images that are exactly where the reader puts their texts."""
    return {"image": reader.vectors(texts, context)}


def random_images(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": unit(np.random.default_rng(seed).normal(size=(n, E))).astype(np.float32)}


def labelled(n: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    draw = lambda: rng.permutation(np.arange(n) % 3).tolist()  # noqa: E731
    columns = {name: draw() for name in ("Edema", "Nodule", "No Finding")}
    return [
        Row(
            text=REPORTS[i % len(REPORTS)],
            patient=f"p{i // 2}",
            labels={k: [0.0, 1.0, None][v[i]] for k, v in columns.items()},
        )
        for i in range(n)
    ]


# --- other ways to write a report


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Left effusion, right lung clear.", "Right effusion, left lung clear."),
        ("LEFT LUNG; left-sided, right.", "RIGHT LUNG; right-sided, left."),
        ("bright leftover, copyright, upright", "bright leftover, copyright, upright"),
        ("Left and right ribs. Right/left. Right rib.", "Left and right ribs. Right/left. Left rib."),
        ("Effusions, right greater than left.", "Effusions, left greater than right."),
        ("", ""),
    ],
)
def test_sides_are_swapped_in_whole_words_and_keep_their_case(text: str, swapped: str) -> None:
    assert rewording.swap_sides(text) == swapped
    assert rewording.swap_sides(swapped) == text


def test_only_what_the_model_reads_differently_is_asked_about() -> None:
    texts = [*REPORTS, "FINDINGS: " + "clear. " * 90 + "left.", "Clear. Clear.", "Clear. Normal. Clear."]
    units = np.arange(100, 100 + len(texts))
    sides = rewording.sides(units, texts, TOKENIZER, 77)
    assert sides.unit_P.tolist() == [100, 101, 102, 104]  # "left" of the long one lies beyond the context
    assert sides.other[1] == "There is a pneumothorax on the left. The Right lung is clear."
    order = rewording.order(units, texts, TOKENIZER, 77)
    assert order.unit_P.tolist() == [100, 101, 102, 104, 105]
    assert order.other[0] == "No nodule. The heart is enlarged. Left pleural effusion."
    headed = rewording.order(units[:1], ["FINDINGS: Clear lungs. Normal heart. IMPRESSION: No nodule."], TOKENIZER, 77)
    assert headed.own == ("Clear lungs. Normal heart. No nodule.",), "joined as the other is, or headers give it away"
    assert headed.other == ("No nodule. Normal heart. Clear lungs.",)
    assert rewording.sides(units, texts, TOKENIZER, 512).unit_P.tolist() == [100, 101, 102, 104, 106]


def test_texts_that_are_cut_come_in_whole_groups() -> None:
    texts = [f"report {n} " + "clear " * length for n, length in enumerate([5, 90, 80, 70, 100])]
    cut = rewording.cut(np.arange(5), texts, TOKENIZER, 128, limit=77, group=2)
    assert cut.unit_P.tolist() == [1, 2]
    assert (cut.context, cut.other_context) == (128, 77)
    assert len(rewording.cut(np.arange(5), texts, TOKENIZER, 77, limit=77, group=2)) == 0


# --- how preferences are counted


def test_no_preference_counts_half() -> None:
    margins = np.array([0.1, -0.1, 0.0, TIE / 2, -TIE / 2, 2 * TIE, np.nan])
    np.testing.assert_array_equal(preferred(margins), [1, 0, 0.5, 0.5, 0.5, 1, np.nan])


def test_values_count_units_as_if_they_were_repeated() -> None:
    rng = np.random.default_rng(0)
    value, truth = rng.integers(0, 3, 40) / 2, rng.permutation(np.arange(40) % 3).astype(float)
    truth[truth == 2] = np.nan
    weight_RxN = rng.integers(0, 3, (20, 40)).astype(float)
    weight_RxN[0] = 0
    marked = ~np.isnan(truth)
    means, accuracies = weighted_mean(value, marked, weight_RxN), balanced(value, truth, weight_RxN)
    assert np.isnan([means[0], accuracies[0]]).all()
    for weight, mean, accuracy in itertools.islice(zip(weight_RxN, means, accuracies, strict=True), 1, None):
        rows = np.repeat(np.arange(40), weight.astype(int))
        rows = rows[marked[rows]]
        assert mean == pytest.approx(value[rows].mean(), abs=1e-12)
        # a half is one right and one wrong answer
        told, twice = np.r_[value[rows] > 0, value[rows] > 0.5], np.r_[truth[rows], truth[rows]]
        assert accuracy == pytest.approx(balanced_accuracy_score(twice, told), abs=1e-12)


def test_among_equal_texts_the_first_place_is_shared() -> None:
    image = np.eye(4)[[0, 1, 1, 3, 0, 1]]
    text = np.eye(4)[[0, 1, 3, 3, 3, 3]]
    # in the first group two are found and another's text is nearer to the third; in the second all texts are equal
    np.testing.assert_allclose(found_first(image, text, 3), [1, 1, 0, 1 / 3, 1 / 3, 1 / 3])
    nothing = np.full((3, 4), 0.5) + 1e-8 * np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(found_first(nothing, nothing, 3), 1 / 3)
    text[4] = np.nan
    np.testing.assert_allclose(found_first(image, text, 3), [1, 1, 0, np.nan, np.nan, np.nan])


# --- texts


def test_a_reader_who_sees_all_is_told_from_one_blind_to_sides_or_order(tmp_path: Path) -> None:
    made = limits(write_store(tmp_path / "s", [Row(text) for text in REPORTS]))
    for reader, sides, order in (
        (Reader(), 1.0, 1.0),
        (Reader(blind_to=("left", "right")), 0.5, 1.0),
        (Reader(ordered=False), 3.5 / 4, 0.5),  # one text names both sides: swapped, it has the same words
    ):
        values = made.run(reader.encode(), of_own_texts(reader, REPORTS))
        assert (values["sides/preferred"], values["order/preferred"]) == (sides, order)
        assert (values["sides/cosine"] == pytest.approx(1, abs=1e-6)) == (sides == 0.5)
        assert (values["order/cosine"] == pytest.approx(1, abs=1e-6)) == (order == 0.5)
    assert (values["sides/texts"], values["order/texts"]) == (4, 5)
    assert values["sides_chance/preferred"] == values["order_chance/preferred"] == 0.5


def test_preferences_are_those_of_each_image(tmp_path: Path) -> None:
    made, reader = limits(write_store(tmp_path / "s", [Row(text) for text in REPORTS])), Reader()
    images = random_images(len(REPORTS))
    swapped = [rewording.swap_sides(text) for text in REPORTS]
    own, other = reader.vectors(REPORTS).astype(float), reader.vectors(swapped).astype(float)
    sided = [n for n, text in enumerate(REPORTS) if text != swapped[n]]
    closer = ((images["image"] * (own - other)).sum(axis=1) > 0)[sided]
    assert 0 < closer.mean() < 1
    values = made.point(made.predict(reader.encode(), images))
    assert values["sides/preferred"] == closer.mean()
    assert values["sides/cosine"] == pytest.approx((own * other).sum(axis=1)[sided].mean(), abs=1e-6)


def test_what_is_lost_beyond_77_tokens(tmp_path: Path) -> None:
    """Reports that differ in their 81st token alone are told apart whole, and not when cut."""
    words = ["nodule", "effusion", "edema", "mass", "fracture", "pneumonia", "scar", "cyst", "line", "tube", "port",
             "clip", "wire", "valve", "stent", "drain", "goitre", "hernia", "rib", "spine"]  # fmt: skip
    texts = ["clear " * 80 + word for word in words] + ["short"] * 4
    spec, reader = write_store(tmp_path / "s", [Row(text) for text in texts]), Reader(ordered=False)
    values = limits(spec, LONG).run(reader.encode(), of_own_texts(reader, texts, LONG))
    assert values["truncation/texts"] == 16, "twenty long texts are one group"
    assert values["truncation/beyond_77"] == pytest.approx(20 / 24)
    assert (values["truncation/recall_whole"], values["truncation/recall_cut"]) == (1, 1 / 16)
    assert values["truncation/recall_gain"] == 15 / 16
    assert values["truncation_chance/recall_cut"] == values["truncation_chance/recall_whole"] == 1 / 16
    cut = (reader.vectors(texts[:20], 77) * reader.vectors(texts[:20], LONG)).sum(axis=1)
    assert 0 < values["truncation/cosine_gain"] < 1
    assert (1 - cut).min() <= values["truncation/cosine_gain"] <= (1 - cut).max()
    short = limits(spec, 77).run(reader.encode(), of_own_texts(reader, texts, 77))
    assert short["truncation/beyond_77"] == pytest.approx(20 / 24)
    assert short["truncation/recall_gain"] is None
    assert short["truncation_why/recall_gain"] == "the model itself reads no more than 77 tokens"
    few = limits(spec, LONG, sample=10).point(limits(spec, LONG, sample=10).blank())
    n = round(10 * few["truncation/beyond_77"])
    assert few["truncation_why/recall_whole"] == f"{n} of the 10 texts read are longer than 77 tokens: a group has 16"


def test_repeated_texts_and_the_ceiling_they_put_on_retrieval(tmp_path: Path) -> None:
    texts = ["Clear.", "clear.  ", "Clear.", "Left effusion.", "Nodule.", "Nodule.", "", "  "]
    spec = write_store(tmp_path / "s", [Row(text) for text in texts])
    values = limits(spec).run(Reader().encode(), random_images(len(texts)))
    assert values["duplicates/share"] == pytest.approx(5 / 6)
    assert values["duplicates/ceiling"] == pytest.approx(3 / 6)  # three different texts in six rows
    assert (values["duplicates/texts"], values["duplicates_chance/ceiling"]) == (6, pytest.approx(1 / 6))
    # It is what retrieval by index gives a model that could not be better.
    reader = Reader()
    index = EVALUATORS["retrieval-index"]("e", {"protocol": "retrieval-index", "data": spec}, PREPARATION)
    best = index.run(reader.encode(), of_own_texts(reader, texts[:6] + ["."] * 2))
    assert best["recall_i2t/1"] == pytest.approx(values["duplicates/ceiling"])


def test_texts_without_what_is_asked_are_none_with_why(tmp_path: Path) -> None:
    made = limits(write_store(tmp_path / "s", [Row("clear lungs")] * 3))
    values = made.run(Reader().encode(), random_images(3))
    assert values["sides/preferred"] is values["order/cosine"] is values["sides_lo/preferred"] is None
    assert values["sides_why/preferred"] == "none of the 3 texts read names left or right within 77 tokens"
    assert values["order_why/cosine"] == "none of the 3 texts read has two different sentences within 77 tokens"
    assert "the store has no label columns: negation and wording are not tested" in made.describe()["notes"]
    assert not any(name.startswith(("negation", "wording")) for name in values)


def test_a_store_of_labels_alone_is_asked_about_labels(tmp_path: Path) -> None:
    rows = [Row("", labels=row.labels) for row in labelled(12)]
    values = limits(write_store(tmp_path / "s", rows)).run(Reader().encode(), random_images(12))
    texts = {name: value for name, value in values.items() if name.startswith(("sides", "order", "trunc", "dupl"))}
    assert {texts[name] for name in texts if name.endswith(("preferred", "ceiling", "share", "beyond_77"))} == {
        None, "no unit has a text", 0.5, 0, 1.0,
    }  # fmt: skip
    assert values["negation/mean"] is not None


# --- labels


def test_the_means_are_of_the_same_labels_in_every_resample(tmp_path: Path) -> None:
    made = limits(write_store(tmp_path / "s", labelled(30)))
    assert made.of_labels is not None
    weight_RxN = np.stack([np.ones(30), made.of_labels.labels["Edema"] == 1])  # in the second every known Edema is one
    values = made.measure(made.predict(Reader().encode(), random_images(30)), weight_RxN.astype(float))
    for kind in KINDS:
        assert np.isnan(values[f"{kind}/Edema"]).tolist() == [False, True], kind
        assert np.isfinite(values[f"{kind}/Nodule"]).all(), kind
        assert np.isnan(values[f"{kind}/mean"]).tolist() == [False, True], kind


def test_negation_is_balanced_accuracy_and_wording_the_zero_shot_auroc(tmp_path: Path) -> None:
    rows = labelled(40)
    spec, reader, images = write_store(tmp_path / "s", rows), Reader(), random_images(40, 1)
    values = limits(spec).run(reader.encode(), images)
    for label in ("Edema", "Nodule"):
        known = [n for n, row in enumerate(rows) if row.labels[label] is not None]
        truth = [rows[n].labels[label] for n in known]
        said, denied = reader.vectors([label.lower(), f"no {label.lower()}"]).astype(float)
        margin = images["image"][known] @ (said - denied)
        assert values[f"negation/{label}"] == pytest.approx(balanced_accuracy_score(truth, margin > 0), abs=1e-12)
        assert values[f"wording_bare/{label}"] == pytest.approx(roc_auc_score(truth, margin), abs=1e-12)
        assert values[f"negation_cosine/{label}"] == pytest.approx(said @ denied, abs=1e-6)
    for wording, prompts in (("bare", "chexzero"), ("templated", "templated")):
        entry = {"protocol": "chexzero", "data": spec, "prompts": prompts}
        zero_shot = EVALUATORS["chexzero"]("e", entry, PREPARATION).run(reader.encode(), images)
        for name in ("Edema", "Nodule", "No Finding", "mean"):
            for kind in ("", "_lo", "_hi"):
                expected = zero_shot[f"auroc{kind}/{name}"]
                assert values[f"wording_{wording}{kind}/{name}"] == pytest.approx(expected, abs=1e-12)
    gaps = [
        abs(values[f"wording_bare/{n}"] - values[f"wording_templated/{n}"]) for n in ("Edema", "Nodule", "No Finding")
    ]
    assert values["wording_spread/Edema"] == pytest.approx(gaps[0], abs=1e-12)
    assert values["wording_spread/mean"] == pytest.approx(np.mean(gaps), abs=1e-12)
    assert values["negation_chance/mean"] == values["wording_bare_chance/Edema"] == 0.5


def test_a_reader_blind_to_no_is_at_chance_and_its_statements_are_one(tmp_path: Path) -> None:
    # One label a row: a "no" in what is said of another finding would count against this one.
    names, told = ("Edema", "Nodule", "No Finding"), [(n % 3, n % 2) for n in range(60)]
    rows = [Row(labels={name: float(y) if k == which else None for k, name in enumerate(names)}) for which, y in told]
    made = limits(write_store(tmp_path / "s", rows))
    assert made.of_labels is not None
    pairs = [made.of_labels.prompts["bare"].pair(name) for name in names]
    images = of_own_texts(Reader(), [(pairs[k].positive if y else pairs[k].negative)[0] for k, y in told])
    for reader, right, seen in ((Reader(), 1.0, True), (Reader(blind_to=("no",)), 0.5, False)):
        values = made.run(reader.encode(), images)
        assert {values[f"negation/{name}"] for name in (*names, "mean")} == {right}
        for name in (*names, "mean"):
            assert (values[f"negation_cosine/{name}"] < 0.99) == seen
            assert values[f"negation_cosine/{name}"] == pytest.approx(1, abs=1e-6) or seen


def test_rounding_is_no_preference(tmp_path: Path) -> None:
    """Statements that differ in the last digits alone decide nothing, however much they agree with the labels."""
    rows = labelled(30)
    made = limits(write_store(tmp_path / "s", rows))
    predictions = made.predict(Reader().encode(), random_images(30))
    assert made.of_labels is not None
    truth = made.of_labels.labels["Edema"]
    column = predictions.columns.index("bare/Edema")
    for size, expected in ((TIE / 2, 0.5), (2 * TIE, 1.0)):
        predictions.score_NxK[:, column] = np.where(truth == 1, size, -size)
        assert made.point(predictions)["negation/Edema"] == expected


def test_labels_read_backwards_are_counted_and_named(tmp_path: Path) -> None:
    """Edema is taken for its absence and Nodule for itself; Mass stands at chance, a little below 0.5."""
    rng = np.random.default_rng(1)
    rows = [Row("clear", labels={"Edema": n % 2, "Nodule": n // 2 % 2, "Mass": n // 4 % 2}) for n in range(80)]
    made, reader = limits(write_store(tmp_path / "s", rows)), Reader()
    words = ("edema", "no edema", "nodule", "no nodule")
    said = dict(zip(words, reader.vectors(words), strict=True))
    images = [
        said["no edema" if row.labels["Edema"] else "edema"] + said["nodule" if row.labels["Nodule"] else "no nodule"]
        for row in rows
    ] + rng.normal(size=(80, E)) / np.sqrt(E)
    values = made.run(reader.encode(), {"image": unit(images).astype(np.float32)})
    assert values["wording_bare_hi/Edema"] < 0.5 < values["wording_bare_lo/Nodule"]
    assert values["wording_bare/Mass"] < 0.5 < values["wording_bare_hi/Mass"] < 0.7
    assert values["wording_backwards/bare"] == 1
    assert values["wording_backwards_labels/bare"] == "Edema"
    assert "wording_backwards_why/bare" not in values, "the number is defined"


# --- the whole


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_texts_without_a_direction_are_undefined_in_silence(tmp_path: Path, bad: float) -> None:
    made = limits(write_store(tmp_path / "s", labelled(24)))
    encode = Encode(
        images=Reader().encode().images,
        texts=lambda params, ids: np.full((BATCH, E), bad, np.float32),
        batch_size=BATCH,
    )
    values = made.run(encode, random_images(24))
    for name in ("negation/Edema", "wording_bare/mean", "sides/preferred", "order/cosine"):
        assert values[name] is None and values[beside(name, "why")]


def test_every_value_has_an_interval_a_reason_and_a_name_that_training_can_select(tmp_path: Path) -> None:
    made = limits(write_store(tmp_path / "s", labelled(24)))
    values, before = made.run(Reader().encode(), random_images(24)), made.at_chance()
    names = made.measure(made.blank(), np.ones((1, 24))).keys()
    for name in names:
        assert {name, beside(name, "lo"), beside(name, "hi"), beside(name, "resamples")} <= values.keys()
        assert (values[name] is None) == (before[name] is None) == (beside(name, "why") in values)
        if values[name] is not None:
            assert values[beside(name, "lo")] <= values[name] <= values[beside(name, "hi")] or "spread" in name
            chance = values.get(beside(name, "chance"))
            assert chance is None or name == "duplicates/ceiling" or before[name] == pytest.approx(chance), name
    json.dumps(values, allow_nan=False)
    json.dumps(made.describe(), allow_nan=False)
    assert made.describe()["meanings"].keys() == kinds(values)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_model_of_nothing_finite_has_no_value(tmp_path: Path, bad: float) -> None:
    made = limits(write_store(tmp_path / "s", labelled(24)))
    values = made.run(Reader().encode(), {"image": np.full((24, E), bad, np.float32)})
    for name in ("negation/Edema", "wording_spread/mean", "sides/preferred", "order/preferred"):
        assert values[name] is None
    assert values["sides_why/preferred"] == "an embedding is not finite"
    assert "not finite" in str(values["negation_why/Edema"])
    assert values["duplicates/share"] is not None
    json.dumps(values, allow_nan=False)


def test_the_sample_is_fixed_and_no_text_is_read_twice(tmp_path: Path) -> None:
    rows = [Row(f"Nodule {n} on the left. Clear lungs.", patient=f"q{n}") for n in range(50)]
    spec, other = write_store(tmp_path / "s", rows), write_store(tmp_path / "t", rows)
    made, reader = limits(spec, sample=7), Reader()
    assert len(made.of_texts.sample_S) == made.describe()["texts"]["read"] == 7
    # Pinned: two people who evaluate one store must read the same texts, with any version of numpy.
    assert made.of_texts.sample_S.tolist() == [0, 43, 38, 21, 2, 11, 20]
    assert made.of_texts.sample_S.tolist() == limits(other, sample=7).of_texts.sample_S.tolist()
    assert made.of_texts.sample_S.tolist() == limits(spec).of_texts.sample_S[:7].tolist()
    made.run(reader.encode(), random_images(50))
    read = 3 * 7  # own, sides swapped, sentences reversed
    assert len(set(reader.rows)) == read
    assert len(reader.rows) == -(-read // BATCH) * BATCH
    assert made.run(Reader().encode(), random_images(50)) == made.run(Reader().encode(), random_images(50))


def test_studies_are_asked_once(tmp_path: Path) -> None:
    rows = [Row(text, patient=f"p{n}", study=f"s{n}") for n, text in enumerate(REPORTS) for _ in range(2)]
    made, reader = limits(write_store(tmp_path / "s", rows), unit="study"), Reader()
    values = made.run(reader.encode(), of_own_texts(reader, [row.text for row in rows]))
    assert (values["sides/texts"], values["sides/preferred"], values["duplicates/share"]) == (4, 1, 0)
    assert made.describe()["units"] == 6


def test_a_study_has_the_first_text_of_its_images(tmp_path: Path) -> None:
    rows = [Row(said, patient=f"p{n}", study="s") for n, text in enumerate(REPORTS) for said in ("", text, " ")]
    made, reader = limits(write_store(tmp_path / "s", rows), unit="study"), Reader()
    values = made.run(reader.encode(), of_own_texts(reader, [REPORTS[n // 3] for n in range(len(rows))]))
    assert made.describe()["texts"] == {"with_text": 6, "read": 6}
    assert (values["sides/texts"], values["sides/preferred"], values["duplicates/texts"]) == (4, 1, 6)


def test_user_errors_name_what_to_mend(tmp_path: Path) -> None:
    bare = write_store(tmp_path / "bare", [Row(""), Row(" ")])
    with pytest.raises(UserError, match=r"bare has neither texts nor label columns: limits needs one of them"):
        limits(bare)
    good = write_store(tmp_path / "good", labelled(6))
    with pytest.raises(UserError, match=r"evals\.e\.sample = 0: must be at least 1"):
        limits(good, sample=0)
    with pytest.raises(UserError, match=r"evals\.e: prompt .* does not fit into the context of 8 tokens"):
        limits(good, 8)
    odd = write_store(tmp_path / "odd", [Row("clear", labels={"Edema": 0.5})])
    with pytest.raises(UserError, match="label 'Edema' holds values other than 0, 1 and unknown"):
        limits(odd)
