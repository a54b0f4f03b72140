"""`prepare --format chexzero`: HDF5 images and CSVs in one order, written as CheXzero's own code writes them."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import prepared
import pytest
import test_formats_chexpert
import test_formats_chexpert_plus
import test_formats_mimic_cxr

from hybridclip_jax.data.audit import overlap
from hybridclip_jax.data.formats.label_tables import CHEXPERT_LABELS
from hybridclip_jax.data.store import read_manifest

SIDE = 320
LAYOUT = [image for image in test_formats_mimic_cxr.IMAGES if image[0] != 2]  # one image a study
COUNT = 5


def images(count: int = COUNT, channels: int = 0) -> np.ndarray:
    """uint8 [N, 320, 320] or [N, 320, 320, C], another picture in each row."""
    shape = (count, SIDE, SIDE, channels) if channels else (count, SIDE, SIDE)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def write_h5(path: Path, values: np.ndarray, name: str = "cxr", **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=values, **settings)
    return path


def folder_of(folder: Path, values: np.ndarray | None = None, paths: bool = True, **settings: object) -> Path:
    """cxr.h5 as CheXzero writes it (float32 unless the values say otherwise), impressions.csv and cxr_paths.csv."""
    values = images().astype(np.float32) if values is None else values
    source = write_h5(folder / "cxr.h5", values, **settings)
    names = [
        f"files/p10/p1000000{n // 2}/s5000000{n // 2}/{'-'.join([f'{n:08x}'] * 5)}.jpg" for n in range(len(values))
    ]
    if paths:
        prepared.write(folder / "cxr_paths.csv", ["Path", *names])
    rows = [f"{name.split('/')[3]}.txt,No acute disease {n}." for n, name in enumerate(names)]
    prepared.write(folder / "impressions.csv", ["filename,impression", *rows])
    return source


def prepare(source: Path, out: Path, *options: object) -> int:
    return prepared.prepare("chexzero", "--source", source, "--out", out, *options)


@pytest.mark.parametrize(
    ("dtype", "channels", "settings"),
    [
        (np.float32, 0, {}),
        (np.uint8, 0, {"chunks": (1, SIDE, SIDE), "compression": "gzip"}),
        (np.uint8, 0, {"chunks": (5, 64, 320), "compression": "lzf"}),
        (np.float64, 1, {}),
        (np.uint8, 3, {"fletcher32": True, "chunks": True}),
    ],
    ids=["float32 as CheXzero", "uint8 by row", "rows in pieces", "one channel", "three channels"],
)
def test_every_storage_gives_the_same_pixels(
    tmp_path: Path, dtype: type, channels: int, settings: dict[str, object]
) -> None:
    values = images(channels=channels)
    if channels == 3:
        values = np.repeat(values[..., :1], 3, axis=3)  # grey, as cv2 reads a radiograph
    assert prepare(folder_of(tmp_path / "d", values.astype(dtype), **settings), tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    grey = values[..., 0] if channels else values
    for row in range(COUNT):
        np.testing.assert_array_equal(store.image(row)[..., 0], grey[row])
    assert store.texts == [f"No acute disease {n}." for n in range(COUNT)]
    assert prepared.notes(tmp_path / "s")["images"].startswith("'cxr' [5, 320, 320")


def test_values_between_levels_are_rounded(tmp_path: Path) -> None:
    values = np.full((1, SIDE, SIDE), 100.0, np.float32)
    values[0, 0, :3] = [0.4, 0.6, 254.7]
    assert prepare(folder_of(tmp_path / "d", values), tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").image(0)[0, :4, 0].tolist() == [0, 1, 255, 100]


def test_mimic_paths_give_mimic_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(folder_of(tmp_path / "d"), tmp_path / "s") == 0
    test_formats_chexpert.assert_private(tmp_path / "s", capsys.readouterr().out, "p1000000", "s5000000", "00000001-")
    store = prepared.split(tmp_path / "s")
    assert len(set(store.patients)) == len(set(store.studies)) == 3
    manifest = read_manifest(tmp_path / "s")[0]
    assert manifest["ids"]["namespace"] == "mimic-cxr"
    notes = manifest["source"]["notes"]
    assert notes["pairing"] == "by position; the names in cxr_paths.csv, impressions.csv agree row by row"
    assert notes["patient"] == "as mimic-cxr names them"
    # The same images as JPEG files, where they are the same patients, studies and images.
    tree = test_formats_mimic_cxr.tree(tmp_path / "m")
    names = [
        f"files/p{patient[:2]}/p{patient}/s{study}/{test_formats_mimic_cxr.dicom_id(n)}.jpg"
        for n, patient, study, _, _ in test_formats_mimic_cxr.IMAGES
    ]
    prepared.write(tmp_path / "d" / "cxr_paths.csv", ["Path", *names])
    rows = [f"{Path(name).parent.name}.txt,Text {n}." for n, name in enumerate(names)]
    prepared.write(tmp_path / "d" / "impressions.csv", ["filename,impression", *rows])
    assert prepare(tmp_path / "d" / "cxr.h5", tmp_path / "h") == 0
    assert test_formats_mimic_cxr.prepare(tree, tmp_path / "j", "--split", "all") == 0
    h5, jpg = prepared.split(tmp_path / "h"), prepared.split(tmp_path / "j")
    assert overlap(h5, jpg).patients == 3
    assert (h5.studies, h5.ids) == (jpg.studies, jpg.ids)


def test_three_layouts_of_the_same_images_give_the_same_pixels_and_texts(tmp_path: Path) -> None:
    jpegs = [prepared.encoded(prepared.picture(n, size=(SIDE, SIDE)), "JPEG") for n in range(len(LAYOUT))]
    texts = [f"No acute disease {n}.\n Unchanged." for n in range(len(LAYOUT))]
    for (number, patient, study, _, _), jpeg, text in zip(LAYOUT, jpegs, texts, strict=True):
        place = tmp_path / "m" / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}"
        place.mkdir(parents=True)
        (place / f"{test_formats_mimic_cxr.dicom_id(number)}.jpg").write_bytes(jpeg)
        prepared.write(place.with_suffix(".txt"), [f" FINAL REPORT\n IMPRESSION:\n\n {text}\n"])
        (tmp_path / f"{study}.jpg").write_bytes(jpeg)
    ids = [(test_formats_mimic_cxr.dicom_id(n), study, patient) for n, patient, study, _, _ in LAYOUT]
    rows = [f"{dicom_id},{study},{patient},all" for dicom_id, study, patient in ids]
    split = ["dicom_id,study_id,subject_id,split", *rows]
    test_formats_mimic_cxr.table(tmp_path / "m" / "mimic-cxr-2.1.0-split.csv.gz", split)
    one_line = [" ".join(text.split()) for text in texts]  # as CheXzero joins its texts
    values = np.stack([np.asarray(PIL.Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]).astype(np.float32)
    source = write_h5(tmp_path / "h" / "cxr.h5", values)
    rows = [f"s{study}.txt,{text}" for (_, study, _), text in zip(ids, one_line, strict=True)]
    prepared.write(tmp_path / "h" / "mimic_impressions.csv", ["filename,impression", *rows])
    rows = [f"{study}.jpg,{text}" for (_, study, _), text in zip(ids, one_line, strict=True)]
    table = prepared.write(tmp_path / "table.csv", ["image,impression", *rows])

    assert prepare(source, tmp_path / "1") == 0
    assert test_formats_mimic_cxr.prepare(tmp_path / "m", tmp_path / "2") == 0
    assert prepared.prepare("csv", "--source", table, "--out", tmp_path / "3") == 0
    h5, tree, plain = (prepared.split(tmp_path / name) for name in "123")
    assert h5.image_sha256 == tree.image_sha256 == plain.image_sha256
    assert h5.texts == plain.texts == one_line
    assert tree.texts == texts  # the line ends of the report file are kept; a tokenizer reads both alike
    assert h5.n_tokens.tolist() == tree.n_tokens.tolist()


def test_without_paths_a_study_is_its_own_patient_and_it_says_so(tmp_path: Path) -> None:
    assert prepare(folder_of(tmp_path / "d", paths=False), tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    assert len(set(store.ids)) == COUNT
    assert len(set(store.patients)) == len(set(store.studies)) == 3
    assert store.manifest["ids"]["patients_unknown"] == COUNT
    notes = prepared.notes(tmp_path / "s")
    assert notes["patient"].startswith("unknown: each study counts as its own patient")
    assert notes["pairing"].endswith("so the order could not be checked")
    assert read_manifest(tmp_path / "s")[0]["ids"]["namespace"] == "chexzero:d"


def test_a_table_with_image_paths_and_patients(tmp_path: Path) -> None:
    # What people make of CheXpert-Plus and ReXGradient together, in CheXzero's form.
    source = folder_of(tmp_path / "d", paths=False)
    rows = [
        f"/data/PNG/train/patient0000{n}/study1/view1_frontal.png,patient0000{n},Clear {n}.,chexpert_plus,{n}"
        for n in range(4)
    ]
    rows.append("/data/deid_png/P1/A1/studies/1.2/series/1.3/instances/1.4.png,,Clear 4.,rexgradient,4")
    (tmp_path / "d" / "impressions.csv").unlink()
    table = prepared.write(tmp_path / "all.csv", ["image_path,patient_id,Impression,source,dataset_index", *rows])
    assert prepare(source, tmp_path / "s", "--reports", table) == 0
    store = prepared.split(tmp_path / "s")
    assert len(set(store.patients)) == 5 and store.manifest["ids"]["patients_unknown"] == 1
    notes = prepared.notes(tmp_path / "s")
    assert notes["patient"] == "from the table of texts"
    assert notes["columns not used"] == "source, dataset_index"
    assert read_manifest(tmp_path / "s")[0]["ids"]["namespace"] == "chexzero:d"


def test_chexpert_paths_give_chexpert_patients(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "d", paths=False)
    rows = [f"/data/PNG/train/patient0000{n}/study1/view1_frontal.png,Clear {n}." for n in range(COUNT)]
    prepared.write(tmp_path / "d" / "impressions.csv", ["image_path,impression", *rows])
    assert prepare(source, tmp_path / "s") == 0
    plus = test_formats_chexpert_plus.tree(tmp_path / "p")
    assert prepared.prepare("chexpert-plus", "--source", plus, "--out", tmp_path / "q", "--split", "all") == 0
    assert overlap(prepared.split(tmp_path / "s"), prepared.split(tmp_path / "q")).patients == 2


def groundtruth(path: Path, count: int = COUNT, first: int = 64741) -> Path:
    header = ",".join(["Study", *CHEXPERT_LABELS])
    rows = [f"CheXpert-v1.0/test/patient{first + n}/study1," + ",".join("01"[n % 2] * 14) for n in range(count)]
    return prepared.write(path, [header, *rows])


def test_the_test_set_without_texts(tmp_path: Path) -> None:
    source = write_h5(tmp_path / "d" / "chexpert_test.h5", images().astype(np.float32))
    labels = groundtruth(tmp_path / "d" / "groundtruth.csv")
    assert prepare(source, tmp_path / "s", "--labels", labels, "--split", "test") == 0
    store = prepared.split(tmp_path / "s", "test")
    assert store.texts == [""] * COUNT
    assert store.labels["Edema"].tolist() == [0, 1, 0, 1, 0]
    assert len(set(store.patients)) == COUNT
    assert read_manifest(tmp_path / "s")[0]["ids"]["namespace"] == "chexpert"
    assert prepared.notes(tmp_path / "s")["texts"] == "none: an evaluation set"


def test_labels_and_texts_with_the_order_checked(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "d")
    rows = [f"s5000000{n // 2},{n % 2},{n}" for n in range(COUNT)]
    labels = prepared.write(tmp_path / "d" / "labels.csv", ["Study,Edema,age", *rows])
    assert prepare(source, tmp_path / "s", "--labels", labels) == 0
    store = prepared.split(tmp_path / "s")
    assert store.label_names == ("Edema",)
    assert store.labels["Edema"].tolist() == [0, 1, 0, 1, 0]


def test_names_that_cannot_be_compared_are_told(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "d")
    rows = [f"case {n},No acute disease {n}." for n in range(COUNT)]
    prepared.write(tmp_path / "d" / "impressions.csv", ["filename,impression", *rows])
    labels = prepared.write(tmp_path / "l.csv", ["Study,Edema", *(f"s5000000{n // 2},1" for n in range(COUNT))])
    assert prepare(source, tmp_path / "s", "--labels", labels) == 0
    assert prepared.notes(tmp_path / "s")["pairing"] == (
        "by position; the names in cxr_paths.csv, l.csv agree row by row;"
        " impressions.csv names studies in another way than cxr_paths.csv, so its order could not be checked"
    )


@pytest.mark.parametrize("suffix", ["", ".dcm", ".JPG", ".tiff"])
def test_the_last_number_of_a_uid_is_no_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    source = folder_of(tmp_path / "d", paths=False)
    uids = [f"1.2.826.0.1.3680043.8.498.{100 + n}" for n in range(COUNT)]
    texts = [f"{uid},Clear {n}." for n, uid in enumerate(uids)]
    prepared.write(tmp_path / "d" / "impressions.csv", ["study_id,impression", *texts])

    def with_labels(out: str, order: list[int]) -> int:
        rows = [f"{uids[n]}{suffix},{n % 2}" for n in order]
        labels = prepared.write(tmp_path / "l.csv", ["study_id,Edema", *rows])
        return prepare(source, tmp_path / out, "--labels", labels)

    assert with_labels("s", [1, 0, 2, 3, 4]) == 2
    line = prepared.error_line(capsys)
    assert "impressions.csv row 1" in line
    assert "(2 such rows)" in line
    assert with_labels("s", list(range(COUNT))) == 0
    store = prepared.split(tmp_path / "s")
    assert len(set(store.studies)) == len(set(store.patients)) == COUNT
    assert store.labels["Edema"].tolist() == [0, 1, 0, 1, 0]


def test_the_last_number_of_a_uid_tells_the_images_of_a_study_apart(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "d", paths=False)
    for folder in ("p10/p10000001/s50000001", "train/patient00001/study1"):
        names = [f"{folder}/1.2.3.{100 + n}" for n in range(COUNT)]
        prepared.write(tmp_path / "d" / "cxr_paths.csv", ["Path", *(f"{name}.dcm" for name in names)])
        texts = [f"{name},Clear {n}." for n, name in enumerate(names)]
        prepared.write(tmp_path / "d" / "impressions.csv", ["image_path,impression", *texts])
        out = tmp_path / folder.split("/")[0]
        assert prepare(source, out) == 0
        store = prepared.split(out)
        assert len(set(store.ids)) == COUNT
        assert len(set(store.studies)) == 1


def test_whole_numbers_of_a_column_with_gaps_are_the_same_ids(tmp_path: Path) -> None:
    # pandas writes the same column as 10001 without gaps and as 10001.0 with one.
    stores = []
    for name, end in (("a", ""), ("b", ".0")):
        source = folder_of(tmp_path / name, paths=False)
        rows = [f"{10000 + n}{end},{500 + n}{end},Clear {n}." for n in range(COUNT - 1)]
        (tmp_path / name / "impressions.csv").unlink()
        table = prepared.write(tmp_path / f"{name}.csv", ["subject_id,study_id,impression", *rows, ",9,Clear."])
        assert prepare(source, tmp_path / f"{name}s", "--reports", table, "--namespace", "same") == 0
        stores.append(prepared.split(tmp_path / f"{name}s"))
    assert overlap(*stores).patients == COUNT
    assert stores[0].studies == stores[1].studies


def test_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    values = images(9).astype(np.float32)
    values[1] = 0  # CheXzero leaves zeros where an image could not be read
    values[2, 5, 5] = np.nan
    values[3, 5, 5] = 256
    values[4, 5, 5] = -1
    values[5] /= 255
    source = folder_of(tmp_path / "d", values)
    table = tmp_path / "d" / "impressions.csv"
    lines = table.read_text().splitlines()
    for row, text in ((7, ""), (8, "NO IMPRESSION"), (9, '" "')):
        lines[row] = lines[row].split(",")[0] + "," + text
    prepared.write(table, lines)
    assert prepare(source, tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").source_rows.tolist() == [1]
    assert prepared.skipped(tmp_path / "s") == {
        "all-zero image row": 1,
        "pixel values that are not finite": 1,
        "pixel values outside 0 to 255": 2,
        "pixel values from 0 to 1, not 0 to 255": 1,
        "no impression": 2,
        "a placeholder in place of a text": 1,
    }


def test_the_cost_of_large_chunks_is_told(tmp_path: Path) -> None:
    values = np.full((40, 8, 8), 9, np.uint8)
    source = folder_of(tmp_path / "d", values, chunks=(40, 8, 8), compression="gzip")
    assert prepare(source, tmp_path / "s") == 0
    assert prepared.notes(tmp_path / "s")["cost"] == "reading one row unpacks 40 rows (0 MB), in every worker"
    assert prepare(folder_of(tmp_path / "e"), tmp_path / "t") == 0
    assert prepared.notes(tmp_path / "t")["cost"] == "float32 holds 0 to 255 in 4 bytes where one would do"


def test_another_dataset_name_when_there_is_one(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "d")
    with h5py.File(source, "a") as file:
        file.move("cxr", "images")
        file["age"] = np.arange(COUNT)
    assert prepare(source, tmp_path / "s") == 0
    assert prepared.notes(tmp_path / "s")["images"].startswith("'images'")


def test_a_damaged_row_is_counted(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "d", images(), chunks=(1, SIDE, SIDE), compression="gzip", fletcher32=True)
    with h5py.File(source) as file:
        chunk = file["cxr"].id.get_chunk_info(2)
    raw = bytearray(source.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    source.write_bytes(raw)
    assert prepare(source, tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {"damaged row of the HDF5 file": 1}
    assert prepared.split(tmp_path / "s").source_rows.tolist() == [1, 2, 4, 5]


def faulty(name: str, folder: Path) -> tuple[object, ...]:
    """Breaks the dataset in one way and gives further flags."""
    source, reports, paths = folder / "cxr.h5", folder / "impressions.csv", folder / "cxr_paths.csv"
    raw, lines = source.read_bytes(), reports.read_text().splitlines()
    if name == "truncated":
        source.write_bytes(raw[:-1000])
    elif name == "no HDF5":
        source.write_bytes(b"\x89PNG not")
    elif name == "empty":
        source.write_bytes(b"")
    elif name == "missing":
        source.unlink()
    elif name == "damaged header":
        source.write_bytes(raw[:96] + b"\xff" * 2000 + raw[2096:])
    elif name == "one text too few":
        prepared.write(reports, lines[:-1])
    elif name == "one path too many":
        prepared.write(paths, [*paths.read_text().splitlines(), "files/p10/p10000009/s50000009/x.jpg"])
    elif name == "no table":
        reports.unlink()
    elif name == "two tables":
        prepared.write(folder / "other.csv", lines)
    elif name == "no column":
        return ("--reports", prepared.write(folder / "x.csv", [lines[0].replace("impression", "text"), *lines[1:]]))
    elif name == "texts in another order":
        prepared.write(reports, [lines[0], *reversed(lines[1:])])
    elif name == "labels of others":
        return (
            "--labels",
            prepared.write(folder / "l.csv", ["Study,Edema", *(f"s5000000{n},1" for n in range(COUNT))]),
        )
    elif name == "labels too few":
        return ("--labels", prepared.write(folder / "l.csv", ["Study,Edema", "s50000000,1"]))
    elif name == "no labels in it":
        return ("--labels", prepared.write(folder / "l.csv", ["age", *(str(60 + n) for n in range(COUNT))]))
    elif name == "no images in it":
        write_h5(source, np.zeros(COUNT), "age")
    elif name == "channels first":
        write_h5(source, images(COUNT, 3).transpose(0, 3, 1, 2))
    elif name == "words":
        write_h5(source, np.full((COUNT, 2, 2), b"x"))
    elif name == "images of 10 gigapixels":
        with h5py.File(source, "w") as file:
            file.create_dataset("cxr", (COUNT, 100_000, 100_000), np.uint8, chunks=(1, 1000, 1000))
    elif name == "chunks of 4 GB":
        with h5py.File(source, "w") as file:
            file.create_dataset("cxr", (60_000, 256, 256), np.uint8, chunks=(60_000, 256, 256), compression="gzip")
    elif name == "a thousand billion rows":
        with h5py.File(source, "w") as file:
            file.create_dataset("cxr", (10**12, 8, 8), np.uint8, chunks=(1, 8, 8))
    elif name == "images elsewhere":
        source.unlink()
        write_h5(folder / "real.h5", images())
        with h5py.File(source, "w") as file:
            file["cxr"] = h5py.ExternalLink("real.h5", "/cxr")
    return ()


FAULTS = {
    "truncated": "is truncated: it has",
    "no HDF5": "is not an HDF5 file",
    "empty": "is not an HDF5 file",
    "missing": "no such file",
    "damaged header": "is damaged, or an HDF5 file of an unknown kind",
    "one text too few": "has 5 images and",
    "one path too many": "cxr_paths.csv has 6 rows",
    "no table": "no CSV has a column 'impression'",
    "two tables": "2 CSV files (impressions.csv, other.csv) have a column 'impression'",
    "no column": "lacks column 'impression'",
    "texts in another order": "impressions.csv row 1 names another study than cxr_paths.csv row 1",
    "labels of others": "row 2 names another study than cxr_paths.csv row 2 (4 such rows)",
    "labels too few": "has 1 rows: they are paired by position",
    "no labels in it": "has no column of labels",
    "no images in it": "It has 'age' [5]",
    "channels first": "'cxr' is [5, 3, 320, 320], not images",
    "words": "not numbers from 0 to 255",
    "images of 10 gigapixels": "has images of more than 64 megapixels",
    "chunks of 4 GB": "in chunks [60000, 256, 256] of more than 1 GB",
    "a thousand billion rows": "has 1000000000000 images and",
    "images elsewhere": "keeps its images in other files",
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    source = folder_of(tmp_path / "d")
    options = faulty(name, tmp_path / "d")
    assert prepare(source, tmp_path / "s", *options) == 2
    line = prepared.error_line(capsys)
    assert FAULTS[name] in line
    assert "s5000000" not in line


def test_workers_read_the_file_each_for_itself(tmp_path: Path) -> None:
    values = images(70)
    source = folder_of(tmp_path / "d", values, chunks=(16, SIDE, SIDE), compression="lzf")
    assert prepare(source, tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    for row in (0, 15, 16, 69):
        np.testing.assert_array_equal(store.image(row)[..., 0], values[row])
