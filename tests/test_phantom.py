"""Phantoms: the same bytes everywhere, findings that show where they are, reports that say what is true."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from hybridclip_jax.data.formats.phantom import FORMAT
from hybridclip_jax.data.phantom import phantom
from hybridclip_jax.data.phantom_findings import (
    DIFFICULTIES,
    EASY,
    FINDINGS,
    LABELS,
    RATE,
    Finding,
    draw_findings,
    labels,
    patient_of,
)
from hybridclip_jax.data.phantom_report import meaning, report, text_of
from hybridclip_jax.data.sentences import split_sentences
from hybridclip_jax.data.study import Source, Study
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError

Drawn = tuple[np.ndarray, list[dict[str, Finding]]]
Reports = tuple[str, list[tuple[dict[str, float], str]]]

SEED = 11
N_FIT, N_TEST = 500, 300

# Goldens. A change of output makes every published phantom number incomparable: raise VERSION in
# hybridclip_jax/data/phantom_findings.py with it, and take the new hashes from this test's message.
GOLDEN = {
    "easy": (
        "0423335a29499c3f4df8a23fe314bac8f518dce40856e99affd33d8956fb64ac",
        "0e527893cd627fea377467f9337d1361471d6c26508cc7808678753158b7e3e9",
    ),
    "hard": (
        "1b341c4cbb2bc66be851f79331f4504cc57373ce1a9f024784acf63f28b54b7b",
        "68fbc10d5e8f173c05189692da4c1199ffe3f54df3a197bc68c807d911272149",
    ),
}


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Easy phantoms at a quarter of the side, float32 [800, 80, 80], and their findings."""
    small, findings = [], []
    for index in range(N_FIT + N_TEST):
        image, found = phantom(SEED, index, EASY)
        small.append(image.reshape(80, 4, 80, 4).mean((1, 3), dtype=np.float32))
        findings.append(found)
    return np.stack(small), findings


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_same_seed_gives_the_same_bytes_everywhere(name: str) -> None:
    images, texts = hashlib.sha256(), hashlib.sha256()
    for index in range(20):
        images.update(phantom(0, index, DIFFICULTIES[name])[0].tobytes())
    for index in range(200):
        texts.update(text_of(report(0, index, DIFFICULTIES[name])).encode())
    assert (images.hexdigest(), texts.hexdigest()) == GOLDEN[name]


def test_image_is_a_grey_film_of_the_stated_size() -> None:
    image, found = phantom(0, 3, EASY)
    assert image.shape == (320, 320)
    assert image.dtype == np.uint8
    assert found == draw_findings(0, 3)
    assert not np.array_equal(image, phantom(1, 3, EASY)[0])
    assert not np.array_equal(image, phantom(0, 4, EASY)[0])


def test_findings_are_independent_and_at_the_stated_rate() -> None:
    n = 6000
    present = np.array([[name in found for name in FINDINGS] for found in (draw_findings(SEED, i) for i in range(n))])
    standard_error = np.sqrt(RATE * (1 - RATE) / n)
    assert np.abs(present.mean(0) - RATE).max() < 4 * standard_error
    correlation = np.corrcoef(present.T)[np.triu_indices(len(FINDINGS), 1)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)
    none = (~present.any(1)).mean()
    expected = (1 - RATE) ** len(FINDINGS)
    assert 0.08 < expected < 0.15
    assert none == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))


def test_labels_follow_from_findings() -> None:
    assert labels({}) == {**dict.fromkeys(FINDINGS, 0.0), "No Finding": 1.0}
    assert tuple(labels({})) == LABELS
    some = labels({"Nodule": Finding("left", "mid")})
    assert (some["Nodule"], some["Cardiomegaly"], some["No Finding"]) == (1.0, 0.0, 0.0)


# Rows and columns of the 80 px image on the image's right half, where the patient's left side is.
PLACES = {
    ("Pleural Effusion", ""): (slice(45, 56), slice(56, 66), 1),
    ("Consolidation", "upper"): (slice(22, 34), slice(50, 60), 1),
    ("Consolidation", "mid"): (slice(32, 44), slice(53, 63), 1),
    ("Consolidation", "lower"): (slice(41, 52), slice(53, 63), 1),
    ("Nodule", "upper"): (slice(22, 34), slice(50, 60), 1),
    ("Nodule", "mid"): (slice(32, 44), slice(53, 63), 1),
    ("Nodule", "lower"): (slice(41, 52), slice(53, 63), 1),
    ("Pneumothorax", ""): (slice(20, 44), slice(62, 65), -1),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("finding", "zone"), list(PLACES))
def test_finding_changes_its_own_side_and_place(drawn: Drawn, finding: str, zone: str, side: str) -> None:
    images, findings = drawn
    label = f"{side.title()} {finding}" if finding == "Pleural Effusion" else finding
    here = np.array([label in f and f[label].side == side and f[label].zone == zone for f in findings])
    without = np.array([label not in f for f in findings])
    if zone:  # fluid and a large heart move these to other zones, so compare where there is neither
        hiding = {"Cardiomegaly", "Left Pleural Effusion", "Right Pleural Effusion"}
        quiet = np.array([hiding.isdisjoint(f) for f in findings])
        here, without = here & quiet, without & quiet
    assert here.sum() >= 5
    change = images[here].mean(0) - images[without].mean(0)
    rows, columns, sign = PLACES[finding, zone]
    mirrored = change[:, ::-1]
    own, other = (change, mirrored) if side == "left" else (mirrored, change)
    own_change, other_change = sign * own[rows, columns].mean(), sign * other[rows, columns].mean()
    assert own_change > 10
    assert own_change > 3 * abs(other_change)


def test_heart_is_wider_and_to_the_patients_left(drawn: Drawn) -> None:
    images, findings = drawn
    plain = images[[not f for f in findings]].mean(0)
    row = slice(47, 53)
    assert plain[row, 46:52].mean() > plain[row, ::-1][:, 46:52].mean() + 20
    large = np.array([list(f) == ["Cardiomegaly"] for f in findings])
    change = images[large].mean(0) - plain
    assert change[row, 55:60].mean() > 20


def test_device_lies_where_its_kind_says(drawn: Drawn) -> None:
    images, findings = drawn
    kinds = np.array([f["Support Device"].kind if "Support Device" in f else "" for f in findings])
    without = images[kinds == ""].mean(0)
    pacemaker, port = (images[kinds == kind].mean(0) - without for kind in ("pacemaker", "port"))
    assert pacemaker[18:23, 59:65].mean() > 50 > 10 > abs(pacemaker[18:23, 15:21].mean())
    assert port[22:25, 20:23].mean() > 30 > 10 > abs(port[22:25, 57:60].mean())
    tubes = images[kinds == "tubes"].mean(0) - without
    assert tubes[4:20, 38:43].mean() > 10


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    rank = score.argsort().argsort() + 1.0
    n = int(positive.sum())
    return (rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n))


def ridge_aurocs(pixels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUROC by label of a linear map from pixels, fitted on the first N_FIT images, on the others."""
    scaled = (pixels - pixels[:N_FIT].mean(0)) / (pixels[:N_FIT].std(0) + 1)
    gram = scaled[:N_FIT] @ scaled[:N_FIT].T
    fit = np.linalg.solve(gram + 100 * np.eye(N_FIT), truth[:N_FIT] - truth[:N_FIT].mean(0))
    scores = scaled[N_FIT:] @ (scaled[:N_FIT].T @ fit)
    return np.array([auroc(scores[:, k], truth[N_FIT:, k] > 0) for k in range(truth.shape[1])])


def test_every_finding_can_be_learnt_from_pixels(drawn: Drawn) -> None:
    images, findings = drawn
    pixels = images.reshape(-1, 40, 2, 40, 2).mean((2, 4)).reshape(len(images), -1)
    truth = np.array([list(labels(f).values()) for f in findings])
    assert ridge_aurocs(pixels, truth).min() > 0.85
    shuffled = truth[np.random.RandomState(0).permutation(len(truth))]
    assert abs(ridge_aurocs(pixels, shuffled).mean() - 0.5) < 0.06


@pytest.fixture(scope="module", params=["easy", "hard"])
def reports(request: pytest.FixtureRequest) -> Reports:
    """The difficulty, and labels and text of 1,500 of its phantoms."""
    difficulty = DIFFICULTIES[request.param]
    return request.param, [(labels(draw_findings(SEED, i)), text_of(report(SEED, i, difficulty))) for i in range(1500)]


def test_reports_affirm_all_that_is_present_and_nothing_else(reports: Reports) -> None:
    mentioned = absent = 0
    for truth, text in reports[1]:
        claims = {claim for sentence in split_sentences(text) for claim in meaning(sentence)}
        for label, told in claims:
            assert told == bool(truth[label]), text
        assert {label for label, told in claims if told} >= {name for name in LABELS if truth[name]}, text
        absent += sum(not truth[name] for name in FINDINGS)
        mentioned += sum(name in FINDINGS for name, told in claims if not told)
    share = mentioned / absent
    assert 0.35 < share < 0.5 if reports[0] == "easy" else share > 0.7


def test_lengths_run_from_a_dozen_tokens_to_beyond_the_context(reports: Reports) -> None:
    tokenizer = Tokenizer()
    lengths = np.array([len(tokenizer.encode(text)) + 2 for _, text in reports[1]])
    # hard reports negate most of what is absent, which takes words
    assert lengths.min() <= {"easy": 18, "hard": 30}[reports[0]]
    assert 0.008 < (lengths > 512).mean() < 0.035
    assert 30 <= np.percentile(lengths, 15) < np.percentile(lengths, 50) < np.percentile(lengths, 90) <= 130


def test_prompt_forms_are_in_the_reports(reports: Reports) -> None:
    said = {sentence.lower() for _, text in reports[1] for sentence in split_sentences(text)}
    for name in FINDINGS:
        assert {f"{name.lower()}.", f"no {name.lower()}.", f"there is no {name.lower()}."} <= said
    assert {
        "no finding.",
        "no acute cardiopulmonary abnormality.",
        "acute cardiopulmonary abnormality.",
    } <= said
    assert "frontal chest radiograph." in said


def test_sections_wording_and_vocabulary(reports: Reports) -> None:
    texts = [text for _, text in reports[1]]
    assert all(re.fullmatch(r"(FINDINGS: .+\n)?IMPRESSION: .+", text) for text in texts)
    both = np.mean([text.startswith("FINDINGS") for text in texts])
    assert 0.7 < both < 0.9
    words = {word for text in texts for word in re.findall(r"[a-z-]+", text.lower())}
    assert 120 < len(words) < 260
    wordings: dict[str, set[str]] = {name: set() for name in LABELS}
    for sentence in {sentence for text in texts for sentence in split_sentences(text)}:
        for name, told in meaning(sentence):
            if told:
                wordings[name].add(sentence)
    assert min(map(len, wordings.values())) >= 8


def test_only_the_grammar_has_a_meaning() -> None:
    assert meaning("No pleural effusion or pneumothorax.") == {
        ("Left Pleural Effusion", False),
        ("Right Pleural Effusion", False),
        ("Pneumothorax", False),
    }
    assert meaning("Left pleural effusion.") == {("Left Pleural Effusion", True)}
    with pytest.raises(ValueError, match="not a sentence of the phantom grammar"):
        meaning("Cardiomegaly, perhaps.")


def read(*flags: str) -> tuple[Source, list[Study]]:
    parser = argparse.ArgumentParser()
    FORMAT.add_arguments(parser)
    source = FORMAT.read(parser.parse_args(flags))
    return source, [study for study in source.studies if isinstance(study, Study)]


def test_source_says_that_it_is_synthetic() -> None:
    source, studies = read("--count", "12", "--seed", "5", "--difficulty", "hard")
    assert (source.synthetic, source.public_ids, source.namespace, source.total) == (
        True,
        True,
        "phantom",
        12,
    )
    assert source.labels == LABELS
    assert "synthetic" in source.notes["data"]
    assert (source.notes["seed"], source.notes["difficulty"]) == ("5", "hard")
    assert [study.source_row for study in studies] == list(range(1, 13))
    image = pickle.loads(pickle.dumps(studies[7])).load_image()
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("L", (320, 320))
    assert np.array_equal(np.asarray(image), phantom(5, 7, DIFFICULTIES["hard"])[0])
    assert all("5" in study.id and study.text == text_of(study.sections) for study in studies)


def test_splits_divide_patients_and_seeds_share_none() -> None:
    _, studies = read("--count", "1800", "--train-share", "0.6", "--val-share", "0.3")
    patients: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for study in studies:
        patients[study.split].add(study.patient)
    everyone = set.union(*patients.values())
    assert sum(map(len, patients.values())) == len(everyone)
    assert len(patients["train"]) / len(everyone) == pytest.approx(0.6, abs=0.06)
    assert len(patients["val"]) / len(everyone) == pytest.approx(0.3, abs=0.06)
    per_patient = np.bincount([patient_of(0, index) for index in range(1800)])
    assert set(per_patient) == {1, 2, 3}
    _, others = read("--count", "600", "--seed", "1")
    assert everyone.isdisjoint(study.patient for study in others)
    assert {study.id for study in studies}.isdisjoint(study.id for study in others)
    _, all_train = read("--count", "50", "--train-share", "1", "--val-share", "0")
    assert {study.split for study in all_train} == {"train"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--count", "0"),
        ("--seed", "-1"),
        ("--train-share", "0.9", "--val-share", "0.2"),
        ("--val-share", "-0.1"),
        ("--val-share", "nan"),
    ],
)
def test_wrong_flags_are_named(flags: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=flags[0]):
        read(*flags)
