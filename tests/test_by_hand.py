"""Six units, and every number about them worked out by hand: what the golden tests state of many, in a size to check.

unit      a    b    c    d    e    f
patient   1    1    2    2    3    3
label     +    +    +    -    -    -
model A  .9   .8   .3   .5   .3   .1
model B  .9   .2   .6   .5   .4   .1
text     T1   T2   T3   T4   T5   T5
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pair_stores import Row, evaluator, planted, write_store

from hybridclip_jax.evals import intervals, metrics

LABEL = np.array([1, 1, 1, 0, 0, 0], float)
A = np.array([0.9, 0.8, 0.3, 0.5, 0.3, 0.1])
B = np.array([0.9, 0.2, 0.6, 0.5, 0.4, 0.1])
ONCE = np.ones((1, 6))


def test_auroc_counts_pairs_and_half_of_the_ties() -> None:
    # A: a and b beat d, e, f; c beats f, ties with e, loses to d. B: a and c beat all, b beats f alone.
    assert metrics.auroc(A, LABEL) == (pytest.approx((3 + 3 + 1.5) / 9), None)
    assert metrics.auroc(B, LABEL) == (pytest.approx((3 + 1 + 3) / 9), None)


def test_a_resample_counts_a_patient_as_often_as_it_was_drawn() -> None:
    # Patient 1 twice, 2 once, 3 never: a and b twice each against d once, and both win; c loses.
    weight = np.array([[2, 2, 1, 1, 0, 0]], float)
    assert metrics.weighted_auroc(A, LABEL, weight)[0] == pytest.approx(4 / 5)
    # Patient 1 thrice: nobody without the finding is left.
    assert np.isnan(metrics.weighted_auroc(A, LABEL, np.array([[3, 3, 0, 0, 0, 0]], float))[0])
    drawn = np.concatenate(list(intervals.resamples(np.array(["1", "1", "2", "2", "3", "3"]))))
    assert drawn.shape == (1000, 6)
    assert (drawn.sum(axis=1) == 6).all(), "three draws of patients with two units each"
    assert (drawn[:, ::2] == drawn[:, 1::2]).all(), "a patient's units come together"


def test_an_unknown_label_leaves_its_unit_out() -> None:
    label = np.where(np.arange(6) == 4, np.nan, LABEL)  # without e
    assert metrics.auroc(A, label) == (pytest.approx((2 + 2 + 1) / 6), None)


def test_delong() -> None:
    # Share of the others that each unit is on the right side of, A less B: a 1-1, b 1-1/3, c 1/2-1; d 2/3-2/3,
    # e 5/6-2/3, f 1-1. Their variances (n - 1) are 37/108 and 1/108, over three units each: 38/324 in all.
    found = intervals.delong(A, B, LABEL)
    error = math.sqrt(38) / 18
    assert found.difference == pytest.approx(1 / 18)
    assert found.low == pytest.approx(1 / 18 - 1.959963984540054 * error)
    assert found.high == pytest.approx(1 / 18 + 1.959963984540054 * error)
    assert found.p == pytest.approx(math.erfc(1 / math.sqrt(38) / math.sqrt(2)))


def test_thresholds_mcc_and_f1() -> None:
    # From .8 up: a, b right and c missed, MCC 6 / sqrt(2 x 3 x 3 x 4), more than at .9 (3 / sqrt(45)) or .3 (the same)
    # or .5 (a, b right, d wrong, c missed: 3/9).
    assert metrics.best_threshold(A, LABEL) == (0.8, None)
    assert metrics.mcc(A >= 0.8, LABEL, ONCE)[0] == pytest.approx(6 / math.sqrt(72))
    assert metrics.mcc(A >= 0.5, LABEL, ONCE)[0] == pytest.approx(1 / 3)
    assert metrics.f1(A >= 0.5, LABEL, ONCE)[0] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


# --- retrieval: cosines of images (rows) with the texts T1 to T5, up to a factor that all rows share

COSINES = np.array(
    [
        [4, 3, 2, 1, 0],  # a: its own first
        [4, 3, 2, 1, 0],  # b: its own second, after T1
        [0, 1, 4, 2, 3],  # c: first
        [1, 4, 2, 0, 3],  # d: last
        [0, 1, 2, 3, 4],  # e: first, together with f's copy of the same text
        [2, 1, 0, 3, 4],  # f: the same
    ],
    float,
)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    texts = ["one", "two", "three", "four", "five", "five"]
    return write_store(tmp_path / "six", [Row(text, patient=str(1 + n // 2)) for n, text in enumerate(texts)])


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # e and f find one of two equal texts: half a hit, place 1.5. T1 finds a and b equal, T2 a and b after d.
        (
            "retrieval-index",
            {
                "recall_i2t/1": (1 + 0 + 1 + 0 + 1 / 2 + 1 / 2) / 6,
                "recall_i2t/5": 5 / 6,
                "median_rank/i2t": 1.5,  # of 1, 2, 1, 6, 1.5, 1.5
                "recall_t2i/1": (1 / 2 + 0 + 1 + 0 + 1 / 2 + 1 / 2) / 6,
                "recall_t2i/5": 5 / 6,
                "median_rank/t2i": 1.5,  # of 1.5, 2.5, 1, 6, 1.5, 1.5
            },
        ),
        # Five texts; T5 has found its image with e or f.
        (
            "retrieval-unique-text",
            {
                "recall_i2t/1": (1 + 0 + 1 + 0 + 1 + 1) / 6,
                "recall_i2t/5": 1,
                "median_rank/i2t": 1,
                "recall_t2i/1": (1 / 2 + 0 + 1 + 0 + 1) / 5,
                "recall_t2i/5": 4 / 5,
            },
        ),
        (
            "retrieval-multi-positive",
            {
                "recall_i2t/1": (1 + 0 + 1 + 0 + 1 + 1) / 6,
                "recall_i2t/5": 5 / 6,
                "recall_t2i/1": (1 / 2 + 0 + 1 + 0 + 1 + 1) / 6,
            },
        ),
        ("limits", {"duplicates/share": 2 / 6, "duplicates/ceiling": (4 + 2 / 2) / 6}),
    ],
)
def test_retrieval(protocol: str, expected: dict[str, float], spec: str) -> None:
    axes = np.eye(5, dtype=np.float32)
    encode = planted(dict(zip(("one", "two", "three", "four", "five"), axes, strict=True)))
    images = {"image": (COSINES / np.linalg.norm(COSINES, axis=1, keepdims=True)).astype(np.float32)}
    values = evaluator(protocol, spec).run(encode, images)
    assert {name: values[name] for name in expected} == {name: pytest.approx(v) for name, v in expected.items()}
