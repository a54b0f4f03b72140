"""`prepare --format mimic-cxr`: the tree of MIMIC-CXR-JPG, its gzipped tables, and the report files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import prepared
import pytest
import test_formats_chexpert

from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.store import read_manifest

ALPHABETICAL = sorted(CHEXPERT_LABELS)
REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 FINDINGS:

 The lungs are clear of
 consolidation, {study}.

 IMPRESSION:

 No acute disease, {study}.

 NOTIFICATION:  None.
"""


def dicom_id(number: int) -> str:
    return "-".join([f"{number:08x}"] * 5)


# Image, patient, study, split, view.
IMAGES = [
    (1, "10000032", "50414267", "train", "PA"),
    (2, "10000032", "50414267", "train", "LATERAL"),
    (3, "10000032", "53189527", "train", "AP"),
    (4, "11000999", "54000000", "validate", ""),
    (5, "19000001", "55000000", "test", "PA"),
]


def table(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def tree(folder: Path, suffix: str = ".jpg", reports: Path | None = None, version: str = "2.0.0") -> Path:
    """The dataset, with the reports in it or in `reports`; study 53189527 has no labels."""
    for number, patient, study, _, _ in IMAGES:
        place = Path("files") / f"p{patient[:2]}" / f"p{patient}" / f"s{study}"
        # The DICOM files of the test are JPEG: a file is decoded by what is in it.
        prepared.save(folder / place / f"{dicom_id(number)}.jpg", number).rename(
            folder / place / f"{dicom_id(number)}{suffix}"
        )
        prepared.write((reports or folder) / place.with_suffix(".txt"), [REPORT.format(study=study)])
    name = f"mimic-cxr-{version}-"
    rows = [f"{dicom_id(n)},{study},{patient},{split}" for n, patient, study, split, _ in IMAGES]
    table(folder / f"{name}split.csv.gz", ["dicom_id,study_id,subject_id,split", *rows])
    rows = [
        f"{dicom_id(n)},{patient},{study},CHEST,{view},2544,3056" for n, patient, study, _, view in reversed(IMAGES)
    ]
    columns = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns"
    table(folder / f"{name}metadata.csv.gz", [columns, *rows])
    for labeller, edema in (("chexpert", "1.0"), ("negbio", "-1.0")):
        cells = ",".join(edema if label == "Edema" else "" for label in ALPHABETICAL)
        rows = [f"{patient},{study},{cells}" for _, patient, study, _, _ in IMAGES if study != "53189527"]
        header = ",".join(["subject_id", "study_id", *ALPHABETICAL])
        table(folder / f"{name}{labeller}.csv.gz", [header, *dict.fromkeys(rows)])
    return folder


def prepare(folder: Path, out: Path, *options: object) -> int:
    return prepared.prepare("mimic-cxr", "--source", folder, "--out", out, *options)


def test_the_shipped_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tree(tmp_path / "d"), tmp_path / "s") == 0
    test_formats_chexpert.assert_private(tmp_path / "s", capsys.readouterr().out, "10000032", dicom_id(1))
    train = prepared.split(tmp_path / "s", "train")
    assert train.texts == ["No acute disease, 50414267."] * 2 + ["No acute disease, 53189527."]
    assert train.sections["findings"][0] == "The lungs are clear of\n consolidation, 50414267."
    assert train.views == ["PA", "LATERAL", "AP"]
    assert len(set(train.patients)) == 1
    assert len(set(train.studies)) == 2
    np.testing.assert_array_equal(train.labels["Edema"], np.array([1, 1, np.nan], np.float32))
    assert np.isnan(train.labels["Pneumonia"]).all()
    assert train.source_rows.tolist() == [1, 2, 3]
    assert [len(prepared.split(tmp_path / "s", name)) for name in ("validate", "test")] == [1, 1]
    notes = prepared.notes(tmp_path / "s")
    assert notes["labels"] == "mimic-cxr-2.0.0-chexpert.csv.gz"
    assert notes["tables not used"] == "mimic-cxr-2.0.0-negbio.csv.gz"
    assert notes["images"] == ".jpg files"
    assert read_manifest(tmp_path / "s")[0]["ids"]["namespace"] == "mimic-cxr"


def test_plain_tables_give_the_same_store(tmp_path: Path) -> None:
    folder = tree(tmp_path / "d")
    assert prepare(folder, tmp_path / "a") == 0
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))  # beside the gzipped ones, as people do
    assert prepare(folder, tmp_path / "b") == 0
    a, b = ((tmp_path / name / "table.parquet").read_bytes() for name in ("a", "b"))
    assert a == b
    assert prepared.notes(tmp_path / "b")["split"] == "mimic-cxr-2.0.0-split.csv"


def test_the_other_labeller(tmp_path: Path) -> None:
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--mimic-labels", "negbio", "--uncertain", "zero") == 0
    np.testing.assert_array_equal(
        prepared.split(tmp_path / "s", "train").labels["Edema"], np.array([0, 0, np.nan], np.float32)
    )


def test_a_table_of_labels_by_study(tmp_path: Path) -> None:
    # mimic-cxr-2.1.0-test-set-labeled.csv has study_id and its own names of labels.
    labels = prepared.write(tmp_path / "labeled.csv", ["study_id,Airspace Opacity,Edema", "55000000,1,0"])
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--labels", labels) == 0
    test = prepared.split(tmp_path / "s", "test")
    assert test.label_names == ("Airspace Opacity", "Edema")
    assert test.labels["Airspace Opacity"].tolist() == [1]


def test_reports_elsewhere_and_dicom_files(tmp_path: Path) -> None:
    folder = tree(tmp_path / "d", ".dcm", reports=tmp_path / "r", version="2.1.0")
    for number, reports in enumerate([tmp_path / "r", tmp_path / "r" / "files"]):
        assert prepare(folder, tmp_path / f"s{number}", "--reports", reports) == 0
        assert prepared.split(tmp_path / f"s{number}", "train").texts[0] == "No acute disease, 50414267."
    assert prepared.notes(tmp_path / "s0")["images"] == ".dcm files"


def test_the_table_of_sections_is_used_when_it_is_there(tmp_path: Path) -> None:
    folder = tree(tmp_path / "d")
    rows = ["s50414267,Better.,,,None.", 's53189527,"Two\nlines.",Clear lungs.,,', "s54000000,,,Last.,"]
    prepared.write(folder / "mimic_cxr_sectioned.csv", ["study,impression,findings,last_paragraph,comparison", *rows])
    (folder / "files" / "p10" / "p10000032" / "s50414267.txt").unlink()
    assert prepare(folder, tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s", "train").texts == ["Better.", "Better.", "Two\nlines."]
    assert prepared.split(tmp_path / "s", "test").texts == ["No acute disease, 55000000."]  # not in the table
    assert prepared.skipped(tmp_path / "s") == {"no impression": 1}
    assert prepared.notes(tmp_path / "s")["reports"] == "sections as in mimic_cxr_sectioned.csv"
    # Without its file the whole report of 50414267 is not known.
    assert prepare(folder, tmp_path / "r", "--text", "report") == 0
    assert prepared.skipped(tmp_path / "r") == {"empty text": 2}


def test_what_cannot_be_used_is_listed_and_not_capped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tree(tmp_path / "d")
    root = folder / "files"
    (root / "p10" / "p10000032" / "s50414267.txt").unlink()
    (root / "p11" / "p11000999" / "s54000000.txt").write_bytes(b"IMPRESSION: \xff")
    next((root / "p19").rglob("*.jpg")).unlink()
    assert prepare(folder, tmp_path / "s", "--max-skipped", "0") == 0
    assert prepared.skipped(tmp_path / "s") == {
        "no report file": 2,
        "report file is not UTF-8": 1,
        "missing image file": 1,
    }
    assert "50414267" not in capsys.readouterr().out


def test_paths_in_the_table_cannot_leave_the_tree(tmp_path: Path) -> None:
    folder = tree(tmp_path / "d")
    path = folder / "mimic-cxr-2.0.0-split.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    table(path, [*lines, "../../../../../../secret,50414267,10000032,train", "x,../../../../../../etc,10000032,train"])
    assert prepare(folder, tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {"path outside the images folder": 2}


def test_names_too_long_for_a_file_are_files_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path / "d")
    path = folder / "mimic-cxr-2.0.0-split.csv.gz"
    header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    long = "7" * 300
    table(path, [header, f"{long},50414267,10000032,train", f"{dicom_id(1)},{long},10000032,train", *rows])
    assert prepare(folder, tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {"missing image file": 1, "report file cannot be read": 1}
    assert long not in capsys.readouterr().out


def faulty(name: str, folder: Path) -> None:
    split = folder / "mimic-cxr-2.0.0-split.csv.gz"
    if name == "no split table":
        split.unlink()
    elif name == "two versions":
        (folder / "mimic-cxr-2.1.0-split.csv.gz").write_bytes(split.read_bytes())
    elif name == "truncated gzip":
        split.write_bytes(split.read_bytes()[:-20])
    elif name == "a column missing":
        table(split, ["dicom_id,study,subject_id,split", f"{dicom_id(1)},1,1,train"])
    elif name == "a label missing":
        table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id,study_id,Edema", "1,1,1"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no split table", "has no mimic-cxr-2.*-split.csv[.gz]"),
        ("two versions", "keep one version of the split table"),
        ("truncated gzip", "truncated or damaged gzip"),
        ("a column missing", "lacks column 'study_id'"),
        ("a label missing", "lacks column 'No Finding'"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str) -> None:
    folder = tree(tmp_path / "d")
    faulty(name, folder)
    assert prepare(folder, tmp_path / "s") == 2
    assert says in prepared.error_line(capsys)


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tree(tmp_path / "d"), tmp_path / "s", "--reports", tmp_path / "none") == 2
    assert "no such folder for --reports" in prepared.error_line(capsys)
