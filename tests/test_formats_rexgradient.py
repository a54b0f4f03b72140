"""`prepare --format rexgradient`: dicts of studies with lists of images, relative to the folder of metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import prepared
import pytest
import test_formats_chexpert

from hybridclip_jax.data.store import read_manifest


def study(patient: str, number: int, views: list[str | None], **fields: object) -> tuple[str, dict[str, Any]]:
    """A study with its key; the names and forms are those of the published files."""
    accession, uid = f"GRDNA{number}", f"1.2.826.0.1.{number}"
    folder = f"../deid_png/{patient}/{accession}/studies/{uid}/series/1.2.{number}/instances"
    return f"p{patient}_a{accession}_s{uid}", {
        "AccessionNumber": accession,
        "StudyInstanceUid": uid,
        "PatientID": patient,
        "PatientSex": "F",
        "PatientAge": "061Y",
        "StudyDate": "20150101",
        "Indication": "Cough.",
        "Comparison": "None",
        "Findings": f"Lungs are clear {number}.",
        "Impression": f"No acute disease {number}.",
        "ImagePath": [f"{folder}/1.2.{number}.{i}.png" for i in range(len(views))],
        "ImageViewPosition": views,
        "ImageModality": ["CR"] * len(views),
        **fields,
    }


TRAIN = dict(
    [study("GRDNP1", 1, ["PA", "LATERAL"]), study("GRDNP1", 2, ["POSTERO_ANTERIOR"]), study("GRDNP2", 3, [None])]
)
TEST = dict([study("GRDNP3", 4, ["AP"], Impression="")])


def tree(folder: Path, train: dict[str, Any] = TRAIN, test: dict[str, Any] = TEST) -> Path:
    for split, studies in (("train", train), ("test", test)):
        prepared.write(folder / "metadata" / f"{split}_metadata_view_position.json", [json.dumps(studies, indent=1)])
        for fields in studies.values():
            for i, path in enumerate(fields.get("ImagePath", [])):
                prepared.save(folder / "metadata" / path, i)
    return folder


def prepare(folder: Path, out: Path, *options: object) -> int:
    return prepared.prepare("rexgradient", "--source", folder, "--out", out, *options)


def test_the_shipped_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tree(tmp_path / "d"), tmp_path / "s") == 0
    test_formats_chexpert.assert_private(tmp_path / "s", capsys.readouterr().out, "GRDNP", "GRDNA", "1.2.826")
    store = prepared.split(tmp_path / "s", "train")
    assert store.texts == ["No acute disease 1.", "No acute disease 1.", "No acute disease 2.", "No acute disease 3."]
    assert store.views == ["PA", "LATERAL", "PA", ""]
    assert store.sections["findings"][0] == "Lungs are clear 1."
    assert store.source_rows.tolist() == [2, 2, 3, 4]  # test_ comes before train_, and one study of several images
    assert len(set(store.studies)) == 3
    assert len(set(store.patients)) == 2
    np.testing.assert_array_equal(store.image(1), prepared.stored(prepared.picture(1)))
    assert prepared.skipped(tmp_path / "s") == {"no impression": 1}
    assert store.label_names == ()
    manifest = read_manifest(tmp_path / "s")[0]
    assert manifest["ids"]["namespace"] == "rexgradient"
    notes = manifest["source"]["notes"]
    assert notes["labels"] == "none: ReXGradient has none"
    assert notes["columns not used"] == "AccessionNumber, ImageModality, PatientAge, PatientSex, StudyDate"


def test_the_whole_report_is_its_sections_under_their_titles(tmp_path: Path) -> None:
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--text", "report") == 0
    texts = prepared.split(tmp_path / "s", "train").texts
    assert texts[0] == "INDICATION: Cough.\n\nFINDINGS: Lungs are clear 1.\n\nIMPRESSION: No acute disease 1."
    assert len(prepared.split(tmp_path / "s", "test")) == 1


def test_names_in_the_other_spelling(tmp_path: Path) -> None:
    # Derived copies write image_path, findings, impression.
    key, fields = study("GRDNP1", 1, ["PA"])
    names = {"ImagePath": "image_path", "Findings": "findings", "Impression": "impression", "PatientID": "patient_id"}
    other = {names.get(name, name): value for name, value in fields.items()}
    tree(tmp_path / "d", {key: fields}, {})
    prepared.write(tmp_path / "d" / "metadata" / "train_metadata_view_position.json", [json.dumps({key: other})])
    (tmp_path / "d" / "metadata" / "test_metadata_view_position.json").unlink()
    assert prepare(tmp_path / "d", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s", "train").texts == ["No acute disease 1."]


def test_one_file_and_images_elsewhere(tmp_path: Path) -> None:
    source = tree(tmp_path / "d") / "metadata" / "train_metadata_view_position.json"
    (tmp_path / "d" / "deid_png").rename(tmp_path / "images")
    assert prepare(source, tmp_path / "s", "--images", tmp_path / "images") == 0
    assert len(prepared.split(tmp_path / "s", "train")) == 4


def test_the_patient_comes_from_the_name_where_the_field_is_missing(tmp_path: Path) -> None:
    train = {
        key: {name: value for name, value in fields.items() if name != "PatientID"} for key, fields in TRAIN.items()
    }
    for store, studies in (("a", TRAIN), ("b", train)):
        assert prepare(tree(tmp_path / store / "d", studies), tmp_path / store / "s") == 0
    a, b = (prepared.split(tmp_path / store / "s", "train") for store in ("a", "b"))
    assert a.patients == b.patients
    assert prepared.notes(tmp_path / "b" / "s")["patient"] == "from the study's name in 3 studies without PatientID"


def test_a_patient_that_nothing_names_is_not_counted_as_known(tmp_path: Path) -> None:
    fields = next(iter(TRAIN.values()))
    named = {name: value for name, value in fields.items() if name != "PatientID"}
    assert prepare(tree(tmp_path / "d", {"study one": named}), tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "train")
    assert store.manifest["ids"]["patients_unknown"] == len(store) > 0
    assert "each counts as its own patient" in prepared.notes(tmp_path / "s")["patient not known"]


@pytest.mark.parametrize("key", ["id", "StudyInstanceUid", "ImagePath"])
def test_labels_by_study_or_by_image(tmp_path: Path, key: str) -> None:
    rows = [f"{key},Edema,Age,Pneumonia"]
    for number, (name, fields) in enumerate(list(TRAIN.items())[:2]):
        value = {"id": name, "StudyInstanceUid": fields["StudyInstanceUid"], "ImagePath": fields["ImagePath"][0]}[key]
        rows.append(f"{value},{number},61,-1")
    labels = prepared.write(tmp_path / "labels.csv", rows)
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--labels", labels, "--uncertain", "one") == 0
    store = prepared.split(tmp_path / "s", "train")
    assert store.label_names == ("Edema", "Pneumonia")
    second = np.nan if key == "ImagePath" else 0  # only its first image is in the table
    np.testing.assert_array_equal(store.labels["Edema"], np.array([0, second, 1, np.nan], np.float32))


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    outside = study("GRDNP8", 8, ["PA"], ImagePath=["../deid_png/../../secret.png", "/etc/hostname"])
    missing = study("GRDNP9", 9, ["PA"])
    folder = tree(tmp_path / "d")
    train = dict([*TRAIN.items(), outside, missing, study("GRDNP7", 7, [])])
    prepared.write(folder / "metadata" / "train_metadata_view_position.json", [json.dumps(train)])
    assert prepare(folder, tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {
        "path outside the images folder": 2,
        "missing image file": 1,
        "no image listed": 1,
        "no impression": 1,
    }


FAULTS = {
    "no files": (None, "holds no *_metadata_view_position.json"),
    "not JSON": ("{", "is not JSON (line 1)"),
    "a list": ("[]", "is not a dict of studies by name"),
    "empty": ("{}", "is not a dict of studies by name"),
    "studies that are lists": ('{"a": []}', "study 1 is not an object"),
    "a study twice": ('{"a": {}, "a": {}}', "named twice"),
    "nested too deep": ('{"a":' * 100_000, "nested too deep"),
    "no images": ('{"a": {"Findings": "x"}}', "no study has 'ImagePath'. They have Findings"),
    "half a character": (r'{"a": {"ImagePath": ["x.png"], "Findings": "\ud83d"}}', "half a character"),
    "patients above the studies": ('{"a": {"GRDNP1": {}, "GRDNP2": {}}}', "They have 2 more"),
    "not UTF-8": (b'{"a": {"Findings": "\xff"}}', "is not UTF-8"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, says = FAULTS[name]
    folder = tree(tmp_path / "d")
    for path in (folder / "metadata").iterdir():
        path.unlink()
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / "metadata" / "train_metadata_view_position.json").write_bytes(raw)
    assert prepare(folder, tmp_path / "s") == 2
    assert says in prepared.error_line(capsys)


def test_labels_of_another_dataset_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = prepared.write(tmp_path / "l.csv", ["study_id,Edema", "other,1"])
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--labels", labels) == 2
    assert "column 'study_id' names no study or image of" in prepared.error_line(capsys)
    labels = prepared.write(tmp_path / "l.csv", ["name,Edema", "other,1"])
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--labels", labels) == 2
    assert "to find the studies by" in prepared.error_line(capsys)
