"""`prepare --format chexpert`: the tables of train and valid, and the test studies of groundtruth.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prepared
import pytest

from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.store import read_manifest

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
TRAIN = [
    "patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "patient00002/study1/view1_frontal.jpg,Male,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "patient00002/study1/view2_lateral.jpg,Male,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
]
VALID = ["patient64541/study1/view1_frontal.jpg,Male,73,Frontal,LL," + ",".join(["0.0"] * 13 + ["1.0"])]


def assert_private(out: Path, said: str, *names: str) -> None:
    """No raw id is in what was printed, in the manifest or in the list of rows left out."""
    told = said + "".join((out / name).read_text() for name in ("manifest.json", "skipped.jsonl"))
    table = (out / "table.parquet").read_bytes()
    for name in names:
        assert name not in told
        assert name.encode() not in table


def tree(folder: Path, root: str = "CheXpert-v1.0-small", train: list[str] = TRAIN, valid: list[str] = VALID) -> Path:
    """The dataset with its images; `root` is the folder that the tables write in front of each path."""
    for split, rows in (("train", train), ("valid", valid)):
        prepared.write(folder / f"{split}.csv", [HEADER, *(f"{root}/{split}/{row}" for row in rows)])
        for number, row in enumerate(rows):
            prepared.save(folder / split / row.split(",")[0], number)
    return folder


@pytest.mark.parametrize("root", ["CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_both_tables_with_labels_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], root: str) -> None:
    assert prepared.prepare("chexpert", "--source", tree(tmp_path / "d", root), "--out", tmp_path / "s") == 0
    assert_private(tmp_path / "s", capsys.readouterr().out, "patient00001", "patient64541", "view1")
    train = prepared.split(tmp_path / "s", "train")
    assert train.views == ["AP", "PA", "LATERAL"]
    assert train.texts == ["", "", ""]
    assert len(set(train.patients)) == 2
    assert len(set(train.studies)) == 2
    assert train.label_names == CHEXPERT_LABELS
    nan = np.nan
    np.testing.assert_array_equal(train.labels["Cardiomegaly"], np.array([nan, nan, nan], np.float32))
    np.testing.assert_array_equal(train.labels["Pneumothorax"], np.array([0, nan, nan], np.float32))
    np.testing.assert_array_equal(train.labels["Support Devices"], np.array([1, nan, nan], np.float32))
    np.testing.assert_array_equal(train.labels["Lung Opacity"], np.array([nan, 1, 1], np.float32))
    valid = prepared.split(tmp_path / "s", "valid")
    assert valid.views == ["LL"]
    assert valid.source_rows.tolist() == [4]
    assert prepared.notes(tmp_path / "s")["rows"] == "train.csv 1 to 3, valid.csv 4 to 4"
    assert prepared.notes(tmp_path / "s")["columns not used"] == "Sex, Age"
    assert read_manifest(tmp_path / "s")[0]["ids"]["namespace"] == "chexpert"


def test_uncertain_labels_follow_the_policy(tmp_path: Path) -> None:
    source = tree(tmp_path / "d")
    options = ("--uncertain", "one", "--blank", "negative")
    assert prepared.prepare("chexpert", "--source", source, "--out", tmp_path / "s", *options) == 0
    train = prepared.split(tmp_path / "s", "train")
    assert train.labels["Cardiomegaly"].tolist() == [0, 1, 1]


def test_labels_go_by_name_whatever_their_order(tmp_path: Path) -> None:
    source = tree(tmp_path / "d")
    lines = (source / "train.csv").read_text().splitlines()
    backwards = [",".join([*line.split(",")[:5], *reversed(line.split(",")[5:])]) for line in lines]
    for store, content in (("a", lines), ("b", backwards)):
        prepared.write(source / "train.csv", content)
        assert prepared.prepare("chexpert", "--source", source, "--out", tmp_path / store) == 0
    a, b = (prepared.split(tmp_path / store, "train") for store in ("a", "b"))
    for name in CHEXPERT_LABELS:
        np.testing.assert_array_equal(a.labels[name], b.labels[name])


def groundtruth(folder: Path) -> Path:
    """The table of the test studies: binary, with the 14 names in another order, keyed by study."""
    names = [*CHEXPERT_LABELS[1:], CHEXPERT_LABELS[0]]
    studies = ("patient64741/study1", "patient64742/study1", "patient64743/study2")
    rows = [
        f"CheXpert-v1.0/test/{study}," + ",".join("1" if i % 3 == number else "0" for i in range(14))
        for number, study in enumerate(studies)
    ]
    return prepared.write(folder / "groundtruth.csv", [",".join(["Study", *names]), *rows])


def test_the_test_studies_with_every_view(tmp_path: Path) -> None:
    source = tree(tmp_path / "CheXpert-v1.0")
    test = source / "test"
    prepared.save(test / "patient64741" / "study1" / "view1_frontal.jpg", 1)
    prepared.save(test / "patient64741" / "study1" / "view2_lateral.jpg", 2)
    prepared.save(test / "patient64743" / "study2" / "view1_frontal.jpg", 3)
    (test / "patient64743" / "study2" / "notes.txt").write_text("no image")
    labels = groundtruth(tmp_path)
    # A name too long for a file is a study that is not there.
    labels.write_text(labels.read_text() + f"CheXpert-v1.0/test/patient{'7' * 300}/study1" + ",0" * 14 + "\n")
    assert prepared.prepare("chexpert", "--source", source, "--labels", labels, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "test")
    assert store.views == ["FRONTAL", "LATERAL", "FRONTAL"]
    assert store.source_rows.tolist() == [1, 1, 3]
    assert store.labels["Enlarged Cardiomediastinum"].tolist() == [1, 1, 0]
    assert store.labels["No Finding"].tolist() == [0, 0, 0]
    assert store.labels["Lung Opacity"].tolist() == [0, 0, 1]
    assert len(set(store.studies)) == 2
    assert prepared.skipped(tmp_path / "s") == {"no image of the study": 2}


def test_the_test_images_by_path(tmp_path: Path) -> None:
    # The labels of single images have the column of train.csv.
    prepared.save(tmp_path / "d" / "test" / "patient1" / "study1" / "view1_frontal.jpg", 1)
    rows = ["Path," + ",".join(CHEXPERT_LABELS), "test/patient1/study1/view1_frontal.jpg" + ",1" * 14]
    labels = prepared.write(tmp_path / "test_labels.csv", rows)
    assert prepared.prepare("chexpert", "--source", tmp_path / "d", "--labels", labels, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s", "test").labels["Edema"].tolist() == [1]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_labels_of_another_split_make_no_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    source = tree(tmp_path / "d")
    labels = source / f"{split}.csv"
    assert prepared.prepare("chexpert", "--source", source, "--labels", labels, "--out", tmp_path / "s") == 2
    line = prepared.error_line(capsys)
    assert f"{split}.csv row 1 is of the split '{split}', and --labels is for the test studies" in line
    assert "patient" not in line
    # By study, as groundtruth.csv names them, and with the split in the name of the folder of images.
    studies = "patient00001/study1", "patient64541/study1"
    names = [",".join(["Study", *CHEXPERT_LABELS]), studies[split == "valid"] + ",1" * 14]
    labels = prepared.write(tmp_path / "labels.csv", names)
    options = ("--source", source, "--images", source / split, "--labels", labels, "--out", tmp_path / "s")
    assert prepared.prepare("chexpert", *options) == 2
    assert f"labels.csv row 1 is of the split '{split}'" in prepared.error_line(capsys)
    assert prepared.prepare("chexpert", "--source", source / f"{split}.csv", "--out", tmp_path / "s") == 0
    assert list(read_manifest(tmp_path / "s")[0]["splits"]) == [split]


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    rows = [
        *TRAIN,
        "../../../secret/patient9/study1/view1_frontal.jpg" + TRAIN[0][37:],
        "misc/photo.jpg" + TRAIN[0][37:],
    ]
    source = tree(tmp_path / "d", valid=[])
    (source / "valid.csv").unlink()
    prepared.write(source / "train.csv", [HEADER, *(f"CheXpert-v1.0/train/{row}" for row in rows)])
    assert prepared.prepare("chexpert", "--source", source, "--out", tmp_path / "s") == 0
    reasons = {"path outside the images folder": 1, "path without patientN/studyN": 1}
    assert prepared.skipped(tmp_path / "s") == reasons


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda d: [(d / f"{name}.csv").unlink() for name in ("train", "valid")],
            "holds neither train.csv nor valid.csv",
        ),
        (
            lambda d: prepared.write(d / "train.csv", [HEADER.replace("Edema", "Oedema"), TRAIN[0]]),
            "lacks column 'Edema'",
        ),
        (
            lambda d: prepared.write(d / "train.csv", [HEADER, "train/" + TRAIN[0].replace("1.0,,", "yes,,")]),
            "row 1: label 'No Finding' is something other than 1, 0, -1 or blank",
        ),
        (
            lambda d: prepared.write(d / "train.csv", [HEADER, "train/" + TRAIN[0].replace("1.0,,", "2,,")]),
            "row 1: label 'No Finding' is something other",
        ),
    ],
    ids=["no table", "no column", "a word for a label", "a two for a label"],
)
def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, says: str) -> None:
    source = tree(tmp_path / "d")
    assert callable(change)
    change(source)
    assert prepared.prepare("chexpert", "--source", source, "--out", tmp_path / "s") == 2
    line = prepared.error_line(capsys)
    assert says in line
    assert "patient00001" not in line


def test_a_label_table_without_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = prepared.write(tmp_path / "l.csv", [",".join(CHEXPERT_LABELS), "1" + ",1" * 13])
    source = tree(tmp_path / "d")
    assert prepared.prepare("chexpert", "--source", source, "--labels", labels, "--out", tmp_path / "s") == 2
    assert "no column 'Study' (groundtruth.csv) nor 'Path'" in prepared.error_line(capsys)
