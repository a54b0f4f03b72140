"""`prepare --format chexpert-plus`: its one table, PNG files under .jpg names, and CheXbert's three label files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import prepared
import pytest
import test_formats_chexpert

from hybridclip_jax.data.audit import overlap
from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.store import Store, read_manifest

# The header of df_chexpert_plus_240401.csv.
HEADER = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)


def row(
    patient: str, study: str = "study1", split: str = "train", view: str = "view1_frontal", **cells: object
) -> dict[str, object]:
    """A row of the table; sections in capitals and with line ends, as many are."""
    return {
        "path_to_image": f"{split}/{patient}/{study}/{view}.jpg",
        "path_to_dcm": f"{split}/{patient}/{study}/{view}.dcm",
        "frontal_lateral": "Frontal",
        "ap_pa": "AP",
        "deid_patient_id": patient,
        "patient_report_date_order": 1,
        "report": f"NARRATIVE:\nCHEST 1 VIEW\n\nFINDINGS:\n1.CLEAR LUNGS {patient}.\n\nIMPRESSION:\n1.STABLE.\n",
        "section_comparison": "8/8/2005.",
        "section_findings": f"1.CLEAR LUNGS {patient}.\n\n2.TUBE.",
        "section_impression": "\n1.STABLE.\n",
        "section_end_of_impression": "I have personally reviewed the images.",
        "age": 62.0,
        "sex": "Female",
        "split": split,
        **cells,
    }


ROWS = [
    row("patient00001"),
    row("patient00002", section_findings=""),
    row("patient00002", "study2", section_impression="", frontal_lateral="Lateral", ap_pa=""),
    row("patient64541", split="valid"),
]


def tree(folder: Path, rows: list[dict[str, object]] = ROWS, suffix: str = ".png", labels: bool = True) -> Path:
    """The dataset as shipped; each label file says what it was read from, by its value of Edema."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "df_chexpert_plus_240401.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER.split(","), restval="")
        writer.writeheader()
        writer.writerows(rows)
    for number, cells in enumerate(rows):
        prepared.save(folder / "PNG" / "PNG" / Path(str(cells["path_to_image"])).with_suffix(suffix), number)
    if labels:
        for source, edema in (("impression", 1.0), ("findings", 0.0), ("report", -1.0)):
            lines = [
                json.dumps({"path_to_image": cells["path_to_image"], **dict.fromkeys(CHEXPERT_LABELS), "Edema": edema})
                for cells in rows
            ]
            prepared.write(folder / "chexbert_labels" / f"{source}_fixed.json", lines)
    return folder


def test_the_shipped_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared.prepare("chexpert-plus", "--source", tree(tmp_path / "d"), "--out", tmp_path / "s") == 0
    said = capsys.readouterr().out
    assert "labels: impression_fixed.json, by CheXbert from the impression, for 4 rows" in said
    test_formats_chexpert.assert_private(tmp_path / "s", said, "train/patient", "view1")
    train = prepared.split(tmp_path / "s", "train")
    assert train.texts == ["1.STABLE.", "1.STABLE."]  # the row without an impression is left out
    assert prepared.skipped(tmp_path / "s") == {"no impression": 1}
    assert train.sections["findings"] == ["1.CLEAR LUNGS patient00001.\n\n2.TUBE.", ""]
    assert train.sections["comparison"] == ["8/8/2005."] * 2
    assert train.views == ["AP", "AP"]
    assert train.labels["Edema"].tolist() == [1, 1]
    np.testing.assert_array_equal(train.image(0), prepared.stored(prepared.picture(0)))
    assert len(prepared.split(tmp_path / "s", "valid")) == 1
    notes = prepared.notes(tmp_path / "s")
    assert notes["images"] == ".png files; the table says .jpg"
    assert notes["columns not used"].startswith("path_to_dcm, patient_report_date_order, section_narrative")
    assert "section_summary" in notes["columns not used"]
    assert "format chexpert" in notes["test set"]
    assert "patient" not in notes
    assert read_manifest(tmp_path / "s")[0]["ids"]["namespace"] == "chexpert"


@pytest.mark.parametrize(("source", "edema"), [("impression", 1.0), ("findings", 0.0), ("report", np.nan)])
def test_the_label_source_is_chosen_and_kept(tmp_path: Path, source: str, edema: float) -> None:
    options = ("--label-source", source, "--text", "report")
    assert prepared.prepare("chexpert-plus", "--source", tree(tmp_path / "d"), "--out", tmp_path / "s", *options) == 0
    train = prepared.split(tmp_path / "s", "train")
    assert train.texts[0] == ROWS[0]["report"]
    assert f"{source}_fixed.json" in prepared.notes(tmp_path / "s")["labels"]
    # CheXbert given no text says "No Finding": where the section is blank, so are the labels.
    expected = {"impression": [1, 1, np.nan], "findings": [0, np.nan, 0], "report": [np.nan] * 3}[source]
    np.testing.assert_array_equal(train.labels["Edema"], np.array(expected, np.float32))
    assert np.isnan(edema) or edema in train.labels["Edema"]


@pytest.mark.parametrize("policy", ["findings", "findings+impression"])
def test_the_text_policies(tmp_path: Path, policy: str) -> None:
    options = ("--text", policy)
    assert prepared.prepare("chexpert-plus", "--source", tree(tmp_path / "d"), "--out", tmp_path / "s", *options) == 0
    texts = prepared.split(tmp_path / "s", "train").texts
    clear = ["1.CLEAR LUNGS patient00001.\n\n2.TUBE.", "1.CLEAR LUNGS patient00002.\n\n2.TUBE."]
    assert texts == (clear if policy == "findings" else [f"{clear[0]}\n\n1.STABLE.", "1.STABLE.", clear[1]])


def test_patients_are_those_of_chexpert(tmp_path: Path) -> None:
    small = test_formats_chexpert.tree(tmp_path / "CheXpert-v1.0-small")
    assert prepared.prepare("chexpert", "--source", small, "--out", tmp_path / "c") == 0
    assert prepared.prepare("chexpert-plus", "--source", tree(tmp_path / "d"), "--out", tmp_path / "p") == 0
    old, plus = prepared.split(tmp_path / "c", "train"), prepared.split(tmp_path / "p", "train")
    assert overlap(old, plus).patients == 2
    assert old.studies[0] == plus.studies[0]
    assert old.ids[0] == plus.ids[0]


def test_jpeg_files_and_folders_named_by_flags(tmp_path: Path) -> None:
    source = tree(tmp_path / "d", suffix=".jpg")
    (source / "PNG" / "PNG").rename(tmp_path / "elsewhere")
    (source / "chexbert_labels").rename(tmp_path / "labels")
    options = ("--images", tmp_path / "elsewhere", "--labels", tmp_path / "labels" / "findings_fixed.json")
    table = source / "df_chexpert_plus_240401.csv"
    assert prepared.prepare("chexpert-plus", "--source", table, "--out", tmp_path / "s", *options) == 0
    assert prepared.notes(tmp_path / "s")["images"].startswith(".jpg files")
    assert prepared.split(tmp_path / "s", "train").labels["Edema"].tolist()[0] == 0


def test_a_file_of_labels_says_what_they_were_read_from(tmp_path: Path) -> None:
    # The second row has no findings, and CheXbert says "No Finding" of no text.
    labels = tree(tmp_path / "d") / "chexbert_labels" / "findings_fixed.json"
    own = prepared.write(tmp_path / "mine.json", labels.read_text().splitlines())
    for out, options in (("a", (labels,)), ("b", (labels, "--label-source", "findings"))):
        store = run_with_labels(tmp_path, out, *options)
        np.testing.assert_array_equal(store.labels["Edema"], np.array([0, np.nan], np.float32))
        assert "findings_fixed.json, by CheXbert from the findings" in prepared.notes(tmp_path / out)["labels"]
    run_with_labels(tmp_path, "c", own, "--label-source", "findings")
    assert "mine.json, by CheXbert from the findings" in prepared.notes(tmp_path / "c")["labels"]


def run_with_labels(folder: Path, out: str, *labels: object) -> Store:
    options = ("--source", folder / "d", "--out", folder / out, "--labels", *labels)
    assert prepared.prepare("chexpert-plus", *options) == 0
    return prepared.split(folder / out, "train")


def test_without_labels_it_says_so(tmp_path: Path) -> None:
    source = tree(tmp_path / "d", labels=False)
    assert prepared.prepare("chexpert-plus", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s", "train").label_names == ()
    assert prepared.notes(tmp_path / "s")["labels"].startswith("none: no chexbert_labels/impression_fixed.json")


def test_labels_find_their_image_whatever_the_suffix(tmp_path: Path) -> None:
    source = tree(tmp_path / "d")
    path = source / "chexbert_labels" / "impression_fixed.json"
    lines = path.read_text().replace(".jpg", ".png").splitlines()
    prepared.write(path, lines[1:])  # and one image is not in it
    assert prepared.prepare("chexpert-plus", "--source", source, "--out", tmp_path / "s") == 0
    np.testing.assert_array_equal(
        prepared.split(tmp_path / "s", "train").labels["Edema"], np.array([np.nan, 1], np.float32)
    )
    assert "for 3 rows" in prepared.notes(tmp_path / "s")["labels"]


def test_a_second_name_of_a_patient_is_told(tmp_path: Path) -> None:
    source = tree(tmp_path / "d", [*ROWS[:1], row("patient00002", deid_patient_id="patient00099")])
    assert prepared.prepare("chexpert-plus", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.notes(tmp_path / "s")["patient"] == "as in path_to_image; deid_patient_id names another in 1 rows"


def faulty(name: str, folder: Path) -> tuple[object, ...]:
    """Breaks the dataset in one way and gives further flags."""
    table = folder / "df_chexpert_plus_240401.csv"
    labels = folder / "chexbert_labels" / "impression_fixed.json"
    if name == "no table":
        table.unlink()
    elif name == "two tables":
        (folder / "df_chexpert_plus_250101.csv").write_bytes(table.read_bytes())
    elif name == "a column missing":
        table.write_text(table.read_text().replace("section_impression", "impressions"))
    elif name == "no images":
        (folder / "PNG" / "PNG").rename(folder / "images")
    elif name == "labels asked for":
        labels.unlink()
        return ("--label-source", "impression")
    elif name == "labels that are not JSON lines":
        labels.write_text("[1, 2]\n")
    elif name == "labels of other images":
        labels.write_text(labels.read_text().replace("patient", "nobody"))
    elif name == "two labels of one image":
        first = labels.read_text().splitlines()[0]
        labels.write_text(labels.read_text() + first.replace("1.0", "0.0") + "\n")
    elif name == "a label that is none":
        labels.write_text(labels.read_text().replace("1.0", '"present"'))
    elif name == "labels of another part":
        return ("--labels", labels.with_name("findings_fixed.json"), "--label-source", "impression")
    elif name == "labels of who knows what":
        return ("--labels", labels.rename(folder / "labels.json"))
    return ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no table", "holds no table df_chexpert_plus*.csv"),
        ("two tables", "holds 2 tables (df_chexpert_plus_240401.csv, df_chexpert_plus_250101.csv)"),
        ("a column missing", "lacks column 'section_impression'"),
        ("no images", "no folder PNG/PNG with train or valid in it"),
        ("labels asked for", "impression_fixed.json: no such file of labels"),
        ("labels that are not JSON lines", "is not a JSON object"),
        ("labels of other images", "no path_to_image is one of df_chexpert_plus_240401.csv"),
        ("two labels of one image", "rows 1 and 5 give different labels to one key"),
        ("a label that is none", "row 1: label 'Edema' is something other than 1, 0, -1 or blank"),
        ("labels of another part", "were read from the findings, and --label-source says impression"),
        ("labels of who knows what", "say it with --label-source impression | findings | report"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str) -> None:
    source = tree(tmp_path / "d")
    options = faulty(name, source)
    assert prepared.prepare("chexpert-plus", "--source", source, "--out", tmp_path / "s", *options) == 2
    line = prepared.error_line(capsys)
    assert says in line
    assert "patient0" not in line
