"""`prepare --format padchest` on the labels table as its owners ship it, quirks included."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import PIL.Image
import prepared
import pytest

from hybridclip_jax.data.formats import padchest

# The header of PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv; the first column is pandas' unnamed index.
HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"


def row(number: int, **cells: object) -> dict[str, object]:
    return {
        "": number,
        "ImageID": f"2168401113669640128199_{number:02d}-176-115.png",
        "ImageDir": number % 2,
        "StudyDate_DICOM": 20140915,
        "StudyID": f"2028055729{number}",
        "PatientID": f"83950603{number // 2}",
        "PatientBirth": "1930.0",
        "PatientSex_DICOM": "F",
        "ViewPosition_DICOM": "POSTEROANTERIOR",
        "Projection": ("PA", "L", "AP_horizontal")[number % 3],
        "MethodProjection": "Manual review of DICOM fields",
        "PhotometricInterpretation_DICOM": "MONOCHROME2",
        "BitsStored_DICOM": 12,
        "ReportID": 4765777 + number,
        "Report": f"sin hallazg patolog . estudi {number} .",
        "MethodLabel": "Physician",
        "Labels": "['normal']",
        "Localizations": "['loc  cardiac', 'loc  right']",
        **cells,
    }


def write(folder: Path, rows: list[dict[str, object]], name: str = TABLE) -> Path:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, HEADER.split(","), restval="")
    writer.writeheader()
    writer.writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    raw = file.getvalue().encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder / name


def images(folder: Path, rows: list[dict[str, object]], flat: bool = False) -> None:
    for number, cells in enumerate(rows):
        name = Path(str(cells["ImageID"]))
        prepared.save(folder / name if flat else folder / str(cells["ImageDir"]) / name, number)


def test_labels_are_read_by_name_from_python_lists(tmp_path: Path) -> None:
    """Stray spaces, blank names, an empty list, NaN; absent means 0 only where the report says what it sees."""
    labels = [
        "['pulmonary edema', 'kyphosis', 'cardiomegaly ']",
        "[' cardiomegaly', '', 'COPD  signs']",
        "['normal']",
        "[]",
        "",
        "['unchanged']",
        "['exclude']",
        "[\"Chilaiditi sign\", 'kyphosis']",
    ]
    rows = [row(n, Labels=value) for n, value in enumerate(labels)]
    images(tmp_path, rows)
    source, asked = write(tmp_path, rows), "cardiomegaly,kyphosis,COPD signs,Chilaiditi sign"
    assert prepared.prepare("padchest", "--source", source, "--padchest-labels", asked, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    known, unknown = [1, 1, 0], np.nan
    np.testing.assert_array_equal(store.labels["cardiomegaly"], [*known, *[unknown] * 4, 0])
    np.testing.assert_array_equal(store.labels["kyphosis"], [1, 0, 0, *[unknown] * 4, 1])
    np.testing.assert_array_equal(store.labels["COPD signs"], [0, 1, 0, *[unknown] * 4, 0])
    np.testing.assert_array_equal(store.labels["Chilaiditi sign"], [0, 0, 0, *[unknown] * 4, 1])
    assert store.label_names == ("cardiomegaly", "kyphosis", "COPD signs", "Chilaiditi sign")


def test_views_texts_patients_and_folders(tmp_path: Path) -> None:
    rows = [row(n) for n in range(4)]
    images(tmp_path / "png", rows)
    write(tmp_path, rows)
    # The folder holds one PadChest table: its name is enough, whatever other tables lie there.
    (tmp_path / "mine.csv").write_text("a\n1\n")
    assert (
        prepared.prepare("padchest", "--source", tmp_path, "--images", tmp_path / "png", "--out", tmp_path / "s") == 0
    )
    store = prepared.split(tmp_path / "s")
    assert store.views == ["PA", "L", "AP_horizontal", "PA"]
    assert store.texts[1] == "sin hallazg patolog . estudi 1 ."
    assert len(set(store.patients)) == 2 and len(set(store.studies)) == 4
    assert store.manifest["ids"]["namespace"] == "padchest"
    assert store.manifest["ids"]["patients_unknown"] == 0
    for number in range(4):
        np.testing.assert_array_equal(store.image(number), prepared.stored(prepared.picture(number)))


def test_whole_numbers_that_pandas_wrote_as_floats_are_the_same_ids(tmp_path: Path) -> None:
    rows = [row(n) for n in range(2)]
    floats = [
        {**cells, **{name: f"{cells[name]}.0" for name in ("PatientID", "StudyID", "ImageDir")}} for cells in rows
    ]
    images(tmp_path, rows)
    for name, written in (("whole", rows), ("floats", floats)):
        source = write(tmp_path, written, f"{name}.csv")
        assert prepared.prepare("padchest", "--source", source, "--out", tmp_path / name) == 0
    whole, real = (prepared.split(tmp_path / name) for name in ("whole", "floats"))
    assert whole.patients == real.patients and whole.studies == real.studies


@pytest.mark.parametrize("folder_cell", ["7", "7.0"])
def test_image_folders_or_one_flat_folder(tmp_path: Path, folder_cell: str) -> None:
    """pandas writes 7.0 where the column has gaps; a flat copy has no folders at all."""
    rows = [row(0, ImageDir=folder_cell), row(1, ImageDir="")]
    for number, folder in enumerate((tmp_path / "deep" / "7", tmp_path / "deep")):
        prepared.save(folder / str(rows[number]["ImageID"]), number)
    images(tmp_path / "flat", rows, flat=True)
    source = write(tmp_path, rows, TABLE.removesuffix(".gz"))
    for kind in ("deep", "flat"):
        out = tmp_path / f"{kind}.store"
        assert prepared.prepare("padchest", "--source", source, "--images", tmp_path / kind, "--out", out) == 0
        assert len(prepared.split(out)) == 2


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 320, dtype=np.uint16)
    rows = [row(0)]
    path = tmp_path / "0" / str(rows[0]["ImageID"])
    path.parent.mkdir()
    PIL.Image.fromarray(np.tile(ramp, (320, 1))).save(path)
    assert prepared.prepare("padchest", "--source", write(tmp_path, rows), "--out", tmp_path / "s") == 0
    got = prepared.split(tmp_path / "s").image(0)[0, :, 0].astype(float)
    assert np.abs(got - ramp / 257).max() <= 1  # an 8-bit reader would clip 3/4 of it to white


def test_default_labels_are_those_that_fifty_physician_rows_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert padchest.LABEL_FROM_ROWS == 50
    monkeypatch.setattr(padchest, "LABEL_FROM_ROWS", 2)
    labels = ["['kyphosis', 'kyphosis']", "['kyphosis', 'mass']", "['mass']", "['unchanged']", "['unchanged']"]
    methods = ["Physician", "Physician", "RNN_model", "Physician", "Physician"]
    rows = [row(n, Labels=label, MethodLabel=by) for n, (label, by) in enumerate(zip(labels, methods, strict=True))]
    images(tmp_path, rows)
    source = write(tmp_path, rows)
    assert prepared.prepare("padchest", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").label_names == ("kyphosis",)
    said = prepared.notes(tmp_path / "s")
    assert said["labelled by"] == "Physician 4, RNN_model 1"
    assert said["labels"].startswith("1 of the 3 names that occur")
    assert "BitsStored_DICOM" in said["columns not used"] and "MethodLabel" not in said["columns not used"]

    assert prepared.prepare("padchest", "--source", source, "--padchest-physician", "--out", tmp_path / "p") == 0
    assert prepared.skipped(tmp_path / "p") == {"not labelled by a physician": 1}


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1),  # its file is missing, as known files of the collection are
        row(2, Report=""),
        row(3, Labels="['kyphosis'"),
        row(4, Labels="__import__('os').system('true')"),
        row(5, Labels="[" * 10_000),
        row(6, ImageID="../../secret.png"),
        row(7, PatientID=""),
        row(8, PhotometricInterpretation_DICOM="MONOCHROME1"),
        row(9, Labels="{'kyphosis': 1}"),
        row(10, Labels="[" + "'kyphosis', " * 3_000 + "]"),
    ]
    for number in (0, 2, 3, 4, 5, 7, 8, 9, 10):
        prepared.save(tmp_path / str(number % 2) / str(rows[number]["ImageID"]), number)
    (tmp_path / "0" / str(rows[8]["ImageID"])).write_bytes(b"GIF, not PNG")
    assert prepared.prepare("padchest", "--source", write(tmp_path, rows), "--out", tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {
        "labels that are not a list": 5,
        "empty text": 1,
        "missing image file": 1,
        "no image or no patient named": 1,
        "path outside the images folder": 1,
        "not an image of a known type": 1,
    }
    assert "1 rows were MONOCHROME1" in prepared.notes(tmp_path / "s")["polarity"]


def test_what_the_user_can_mend_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(0)]
    images(tmp_path, rows)
    source = write(tmp_path, rows)
    out = ("--out", tmp_path / "s")
    assert prepared.prepare("padchest", "--source", source, "--padchest-labels", "kyphosys", *out) == 2
    assert "no row" in (line := prepared.error_line(capsys)) and "'kyphosys'" in line
    other = prepared.write(tmp_path / "other.csv", ["ImageID,Labels", "a.png,[]"])
    assert prepared.prepare("padchest", "--source", other, *out) == 2
    assert "lacks column 'StudyID', 'PatientID', 'Report'" in prepared.error_line(capsys)
    source.write_bytes(source.read_bytes()[:-20])
    assert prepared.prepare("padchest", "--source", source, *out) == 2
    assert "truncated or damaged gzip" in prepared.error_line(capsys)
    source.write_bytes(gzip.compress(b"a" * 70_000_000, 1))
    assert prepared.prepare("padchest", "--source", source, *out) == 2
    assert "unpacks to more than 64 MB" in prepared.error_line(capsys)
    assert prepared.prepare("padchest", "--source", other, "--images", tmp_path / "none", *out) == 2
    assert "no such folder for --images" in prepared.error_line(capsys)
