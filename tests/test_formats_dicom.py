"""A tree of DICOM files with texts in a table or beside them, through the real `hybridclip prepare`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_files import PATIENT, bare, dataset, raw, save
from prepared import error_line, prepare
from pydicom.uid import ImplicitVRLittleEndian

from hybridclip_jax.data.store import Store

ROOT_UID = "1.2.826.0.1.3680043.9"
SHADES = np.tile(np.arange(32, dtype=np.uint16) * 100, (32, 1))


def instance(folder: Path, name: str, number: int, study: int = 0, patient: int = 0, **elements: object) -> str:
    """A file of its own instance, study and patient; the name it has in the tree."""
    fields = {
        "SOPInstanceUID": f"{ROOT_UID}.3.{number}",
        "StudyInstanceUID": f"{ROOT_UID}.2.{study}",
        "PatientID": f"{PATIENT}-{patient}",
        "AccessionNumber": f"A{study}",
        "ViewPosition": "PA",
    }
    save(folder / name, SHADES + number, bits=12, **{**fields, **elements})
    return name


def prepare_dicom(source: Path, out: Path, *arguments: object) -> int:
    return prepare("dicom", "--source", source, "--out", out, *arguments)


def skipped(store: Path) -> dict[int, str]:
    lines = (store / "skipped.jsonl").read_text().splitlines()
    return {line["row"]: line["reason"] for line in map(json.loads, lines)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patients, three studies, four images, in the folders a PACS export has."""
    root = tmp_path / "export"
    instance(root, "p0/s0/IM1.dcm", 1, study=0)
    instance(root, "p0/s0/IM2.dcm", 2, study=0, ViewPosition="LATERAL")
    instance(root, "p0/s1/IM1.dcm", 3, study=1)
    instance(root, "p1/s2/IM1.dcm", 4, study=2, patient=1)
    return root


def reports(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


KEYS = {
    "path": ["p0/s0/IM1.dcm", "./p0/s0/IM2.dcm", "p0/s1/IM1.dcm", "p1/s2/IM1.dcm"],
    "SOPInstanceUID": [f"{ROOT_UID}.3.{n}" for n in (1, 2, 3, 4)],
    "StudyInstanceUID": [f"{ROOT_UID}.2.{n}" for n in (0, 0, 1, 2)],
    "Accession Number": ["A0", "A0", "A1", "A2"],
    "patient_id": [f"{PATIENT}-{n}" for n in (0, 0, 0, 1)],
}


@pytest.mark.parametrize("column", KEYS)
def test_a_table_names_images_by_path_or_header(tree: Path, tmp_path: Path, column: str) -> None:
    texts = dict.fromkeys(KEYS[column])
    for n, key in enumerate(texts):
        texts[key] = f"FINDINGS: Clear lungs {n}. IMPRESSION: Normal {n}."
    source = reports(tmp_path / "r.csv", [{column: key, "report": text, "Site": "x"} for key, text in texts.items()])
    assert prepare_dicom(tree, tmp_path / "s", "--reports", source) == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.texts == [texts[key] for key in KEYS[column]]
    assert store.views == ["PA", "LATERAL", "PA", "PA"]
    assert len(set(store.patients)) == 2
    assert len(set(store.studies)) == 3
    assert store.source_rows.tolist() == [1, 2, 3, 4]
    assert store.sections["impression"][0] == "Normal 0."
    notes = store.manifest["source"]["notes"]
    assert notes["columns not used"] == "Site"
    assert notes["text"].startswith("column 'report' of --reports, by ")
    assert store.manifest["ids"]["namespace"] == "dicom:export"
    picture = store.image(0)[..., 0]
    assert (picture[0, 0], picture[0, -1]) == (0, 255)


def test_sections_of_the_table_make_the_text(tree: Path, tmp_path: Path) -> None:
    rows = [
        {"AccessionNumber": f"A{n}", "Impression": f"Normal {n}.", "Findings": ("Clear.", "")[n % 2]} for n in range(3)
    ]
    source = reports(tmp_path / "r.csv", rows)
    assert prepare_dicom(tree, tmp_path / "s", "--reports", source) == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.texts[1:] == ["Clear.\n\nNormal 0.", "Normal 1.", "Clear.\n\nNormal 2."]
    assert prepare_dicom(tree, tmp_path / "i", "--reports", source, "--text", "impression") == 0
    assert Store.open(str(tmp_path / "i")).texts == ["Normal 0.", "Normal 0.", "Normal 1.", "Normal 2."]


def test_labels_of_a_second_table(tree: Path, tmp_path: Path) -> None:
    texts = reports(tmp_path / "r.csv", [{"exam": f"A{n}", "text": "t"} for n in range(3)])
    labels = reports(
        tmp_path / "l.csv",
        [{"exam": f"A{n}", "Edema": ("1", "-1.0")[n], "Age": 50 + n, "Fracture": ("", "0")[n]} for n in range(2)],
    )
    options = ("--reports", texts, "--labels", labels, "--dicom-key", "exam=AccessionNumber")
    assert prepare_dicom(tree, tmp_path / "s", *options) == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.label_names == ("Edema", "Fracture")
    np.testing.assert_array_equal(store.labels["Edema"], np.array([1, 1, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(store.labels["Fracture"], np.array([np.nan, np.nan, 0, np.nan], np.float32))


def test_texts_beside_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "export"
    places = {
        "a/1.2.3.4": "a/1.2.3.4.txt",  # a UID has no suffix to take off
        "a/1.2.3.5.dcm": "a/1.2.3.5.txt",
        "a/x.DCM": "a/x.DCM.txt",
        "b/s1/x.dcm": "b/s1/report.txt",
        "b/s2/x.dcm": "b/s2/s2.txt",
        "b/s3/x.dcm": "b/s3.txt",
        "b/s4/series/x.dcm": "b/s4.txt",
        "top.dcm": "top.txt",
    }
    for n, (image, text) in enumerate(sorted(places.items())):
        instance(root, image, n, study=n)
        (root / text).write_text(f"\ufeffFindings: clear, {n}.")
    instance(root, "without.dcm", 90)
    instance(root, "z/without.dcm", 91)
    (root / "report.txt").write_text("a read-me of the whole tree")
    (root / "z" / "other.txt").write_text("of nobody")
    assert prepare_dicom(root, tmp_path / "s") == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.texts == [f"Findings: clear, {n}." for n in range(8)]
    assert skipped(tmp_path / "s") == dict.fromkeys((9, 10), "no text file beside the image")
    assert "text: files beside the images" in capsys.readouterr().out


def test_what_lies_in_a_tree_and_is_no_picture_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "export"
    instance(root, "a.dcm", 1)
    (root / "b.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "c.dcm").write_bytes(b"")
    (root / "d.dcm").write_bytes(raw(dataset(SHADES))[:250])
    (root / "e.dcm").symlink_to(root / "a.dcm")
    os.mkfifo(root / "f.dcm")
    instance(root, "g.dcm", 7, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    (root / "h.dcm").write_bytes(raw(dataset(SHADES, SOPInstanceUID=f"{ROOT_UID}.3.8"))[:-9])
    (root / "i.txt").write_bytes(b"caf\xe9")
    instance(root, "i.dcm", 9)
    instance(root, "j.dcm", 10)
    (root / "j.txt").write_text("x" * 1_000_001)
    (root / "k").symlink_to(tmp_path)
    instance(root, "l.dcm", 1)
    (root / "m").write_bytes(b"\x08\x00\x05\x00 no object at all, though it begins like one")
    for name in "adhl":
        (root / f"{name}.txt").write_text("Clear lungs.")
    assert prepare_dicom(root, tmp_path / "s") == 0
    assert skipped(tmp_path / "s") == {
        2: "not a DICOM file",
        3: "not a DICOM file",
        4: "damaged DICOM header",
        5: "link, not followed",
        6: "not a regular file",
        7: "DICOM object that is no picture (Segmentation Storage)",
        8: "truncated or damaged DICOM image",
        9: "text file that is not UTF-8",
        10: "text file larger than 1 MB",
        11: "link, not followed",
        12: "duplicate row",
        13: "not a DICOM file",
    }
    assert len(Store.open(str(tmp_path / "s"))) == 1


def test_objects_without_preamble_and_without_identity(tmp_path: Path) -> None:
    root = tmp_path / "export"
    root.mkdir()
    (root / "old").write_bytes(bare(dataset(SHADES, bits=12, syntax=ImplicitVRLittleEndian)))
    nameless = {"SOPInstanceUID": "", "StudyInstanceUID": "", "PatientID": ""}
    for name in ("x.dcm", "y.dcm"):
        save(root / name, SHADES, bits=12, **nameless)
    for name in ("old", "x", "y"):
        (root / f"{name}.txt").write_text("Clear lungs.")
    assert prepare_dicom(root, tmp_path / "s") == 0
    store = Store.open(str(tmp_path / "s"))
    assert len(store) == len(set(store.ids)) == len(set(store.patients)) == len(set(store.studies)) == 3
    np.testing.assert_array_equal(store.image(0), store.image(1))
    blank = "PatientID of the header (2 blank: each such study counts as its own patient)"
    assert store.manifest["ids"]["patients_unknown"] == 2
    assert store.manifest["source"]["notes"]["patient"] == blank
    (root / "old").unlink()
    assert prepare_dicom(root, tmp_path / "t") == 0
    nobody = "no PatientID in any header: each study counts as its own patient"
    assert Store.open(str(tmp_path / "t")).manifest["source"]["notes"]["patient"] == nobody


def test_a_study_without_a_patient_stays_in_one_split(tmp_path: Path) -> None:
    root = tmp_path / "export"
    for n in range(16):
        name = instance(root, f"{n}.dcm", n, study=n // 2, PatientID="")
        (root / name).with_suffix(".txt").write_text("Clear lungs.")
    assert prepare_dicom(root, tmp_path / "s", "--split-by-patient", "train=0.5,test=0.5") == 0
    train, test = (Store.open(f"{tmp_path / 's'}:{name}") for name in ("train", "test"))
    assert len(train) + len(test) == 16 and not set(train.studies) & set(test.studies)
    assert len({*train.studies, *test.studies}) == len(train.patient_set | test.patient_set) == 8


def test_rows_without_a_text_say_why(tree: Path, tmp_path: Path) -> None:
    instance(tree, "q.dcm", 9, study=9, AccessionNumber="")
    source = reports(
        tmp_path / "r.csv", [{"AccessionNumber": "A0", "text": "Clear."}, {"AccessionNumber": "A2", "text": " "}]
    )
    assert prepare_dicom(tree, tmp_path / "s", "--reports", source) == 0
    assert skipped(tmp_path / "s") == {
        3: "no row for the image in the table of texts",
        4: "empty text",
        5: "no AccessionNumber in the header",
    }


def test_a_table_in_the_tree_is_no_row(tree: Path, tmp_path: Path) -> None:
    source = reports(tree / "a.csv", [{"PatientID": f"{PATIENT}-{n}", "text": "Clear."} for n in range(2)])
    assert prepare_dicom(tree, tmp_path / "s", "--reports", source) == 0
    assert Store.open(str(tmp_path / "s")).manifest["source"]["read"] == 4


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"uid": "1", "text": "t"}], (), "no column is called path, SOPInstanceUID,"),
        ([{"uid": "1", "text": "t"}], ("--dicom-key", "uid"), "--dicom-key uid=StudyInstanceUID"),
        ([{"uid": "1", "text": "t"}], ("--dicom-key", "uid=StudyID"), "behind '=' goes one of"),
        ([{"uid": "1", "text": "t"}], ("--dicom-key", "id"), "has no column 'id' (--dicom-key). It has 'uid', 'text'"),
        ([{"path": "1", "PatientID": "t", "text": "x"}], (), "columns 'path', 'PatientID' could each name the image"),
        ([{"path": "1", "words": "x"}], (), "no column found for the text"),
        ([{"path": "1", "text": "x", "report": "y"}], (), "columns 'text', 'report' could each be the text"),
        ([{"path": "1", "text": "x"}], ("--dicom-text", "path"), "has no text column 'path'"),
        ([{"path": "1", "text": "x"}, {"path": " ", "text": "x"}], (), "row 2: column 'path' is blank"),
        ([{"path": "a", "text": "x"}, {"path": "./a", "text": "y"}], (), "rows 1 and 2 have the same 'path'"),
    ],
)
def test_tables_that_cannot_be_used(
    tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, object]],
    arguments: Sequence[str],
    message: str,
) -> None:
    source = reports(tmp_path / "r.csv", rows)
    assert prepare_dicom(tree, tmp_path / "s", "--reports", source, *arguments) == 2
    assert message in error_line(capsys)


def test_a_source_that_cannot_be_used(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    plain = reports(tmp_path / "l.csv", [{"path": "a", "name": "b"}])
    for source, arguments, message in (
        (tmp_path / "none", (), "no such folder"),
        (tmp_path / "empty", (), "holds no file"),
        (tree, ("--dicom-key", "x"), "--dicom-key names a column of a table"),
        (tree, ("--dicom-text", "x"), "--dicom-text names a column of a table"),
        (tree, ("--images", tree), "--images: --format dicom reads nothing there"),
        (tree, ("--labels", plain), "has no column of labels"),
    ):
        assert prepare_dicom(source, tmp_path / "s", *arguments) == 2
        assert message in error_line(capsys)


def test_nothing_of_a_header_or_name_leaks(tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    instance(tree, f"{PATIENT}/{PATIENT}.dcm", 9, PatientName=f"{PATIENT}^X", StudyDescription=PATIENT)
    (tree / PATIENT / f"{PATIENT}.txt").write_text("Clear lungs.")
    (tree / f"{PATIENT}.dcm").write_bytes(raw(dataset(SHADES))[:300])
    source = reports(tmp_path / "r.csv", [{"PatientID": f"{PATIENT}-{n}", "text": "Clear."} for n in range(2)])
    assert prepare_dicom(tree, tmp_path / "a") == 0
    assert prepare_dicom(tree, tmp_path / "b", "--reports", source) == 0
    said = capfd.readouterr()
    artefacts = b"".join(path.read_bytes() for store in "ab" for path in (tmp_path / store).iterdir())
    for canary in (PATIENT, ROOT_UID, "Clear lungs"):
        assert canary not in said.out + said.err
        assert canary == "Clear lungs" or canary.encode() not in artefacts


def test_the_csv_format_takes_dicom_files(tmp_path: Path) -> None:
    names = [instance(tmp_path / "d", f"{n}.dcm", n) for n in range(2)]
    with (tmp_path / "d" / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "text"], *([name, "Clear."] for name in names)])
    assert prepare("csv", "--source", tmp_path / "d" / "t.csv", "--out", tmp_path / "s") == 0
    picture = Store.open(str(tmp_path / "s")).image(1)[..., 0]
    assert (picture[0, 0], picture[0, -1]) == (0, 255)
