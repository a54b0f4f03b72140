"""`hybridclip prepare` on real files: what is found, kept, skipped and refused, and what never leaks."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import dicom_files
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from hybridclip_jax.commands import prepare as command
from hybridclip_jax.data import workers
from hybridclip_jax.data.audit import overlap
from hybridclip_jax.data.formats import FORMATS, Source, Study
from hybridclip_jax.data.loader import TrainStream
from hybridclip_jax.data.pixels import lazy
from hybridclip_jax.data.plan import Options, Outcome
from hybridclip_jax.data.prepare import prepare as prepare_store
from hybridclip_jax.data.splits import parse_shares
from hybridclip_jax.data.store import Store, check_comparable
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import RunStopped, UserError, run_or_exit

RAW = argparse.RawDescriptionHelpFormatter


def prepare(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([str(value) for value in arguments])
    return run_or_exit(lambda: command.run(args))


def prepare_csv(source: Path, out: Path, *arguments: object) -> int:
    return prepare("--format", "csv", "--source", source, "--out", out, *arguments)


def image(path: Path, seed: int = 0, side: int = 24) -> str:
    values = np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path)
    return path.name


def table(path: Path, rows: Sequence[Mapping[str, object]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def simple(folder: Path, count: int = 4, **columns: Sequence[object]) -> Path:
    """A table of `count` sound rows with the images beside it and any further columns."""
    rows: list[dict[str, object]] = [
        {"image": image(folder / f"i{n}.png", n), "text": f"No edema. Report {n}."} for n in range(count)
    ]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return table(folder / "table.csv", rows)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


# --- what is found ---


def test_columns_are_found_listed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "Path": image(tmp_path / "d" / "x" / f"{n}.png", n),
            "Report": f"Line one {n}.\nLine two, „quoted“.",
            "Subject_ID": f"P{n // 2}",
            "study_id": "s1",
            "ViewPosition": "AP",
            "Split": "train" if n < 4 else "val",
            "Findings": f"F{n}",
            "Edema": ("1", "0", "-1.0", "", "1.0", "0.0")[n],
            "Age": 50 + n,
            "Blank": "",
        }
        for n in range(6)
    ]
    source = table(tmp_path / "d" / "t.csv", rows, encoding="utf-8-sig")
    assert prepare_csv(source, tmp_path / "s", "--images", tmp_path / "d" / "x") == 0
    out = capsys.readouterr().out
    assert "image: column 'Path'" in out
    assert "labels: found: Edema" in out
    assert "columns not used: Age, Blank" in out
    store = Store.open(f"{tmp_path / 's'}:train")
    assert store.texts == [row["Report"] for row in rows[:4]]
    assert store.views == ["AP"] * 4
    assert store.sections == {"findings": ["F0", "F1", "F2", "F3"]}
    assert store.n_tokens.tolist() == [len(Tokenizer().encode(text)) + 2 for text in store.texts]
    np.testing.assert_array_equal(store.labels["Edema"], np.array([1, 0, np.nan, np.nan], np.float32))
    assert len(set(store.ids)) == 4
    assert len(set(store.patients)) == 2
    assert len(set(store.studies)) == 2  # both patients have a study "s1": two studies
    assert store.manifest["source"]["notes"]["patient"] == "column 'Subject_ID'"
    assert store.manifest["ids"]["namespace"] == "csv:d"
    assert store.manifest["preprocessing"]["resize"] == "pad"
    store.verify()
    expected = np.asarray(
        PIL.Image.open(tmp_path / "d" / "x" / "2.png").resize((320, 320), PIL.Image.Resampling.LANCZOS)
    )
    np.testing.assert_array_equal(store.image(2)[..., 0], expected)


def test_every_table_kind_gives_the_same_store(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [
        {
            "image": image(data / "i" / f"{n}.png", n),
            "text": f'A "quoted", {n}\tcell',
            "Edema": n % 2,
            "patient": f"p{n}",
        }
        for n in range(3)
    ]
    table(data / "a" / "t.csv", rows)
    table(data / "b" / "t.tsv", rows, delimiter="\t")
    table(data / "c" / "t.csv", rows, delimiter="\t", encoding="utf-8-sig")  # as open_clip writes them
    (data / "d").mkdir()
    lines = [json.dumps({**row, "Edema": bool(row["Edema"])}) for row in rows]
    (data / "d" / "t.jsonl").write_text("\n".join(lines) + "\n\n")
    for name in "abcd":
        options = ("--images", data / "i", "--namespace", "same")
        assert prepare_csv(data / name, tmp_path / name, *options) == 0
    first = contents(tmp_path / "a")
    assert all(contents(tmp_path / name) == first for name in "bcd")


def test_labels_named_by_flag_and_none(tmp_path: Path) -> None:
    source = simple(tmp_path, 3, A=[1, 0, ""], B=["0", "-1", "1"])
    assert prepare_csv(source, tmp_path / "s", "--label-columns", "B", "--uncertain", "one") == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.label_names == ("B",)
    assert store.labels["B"].tolist() == [0, 1, 1]
    assert "A" in store.manifest["source"]["notes"]["columns not used"]
    assert prepare_csv(source, tmp_path / "none", "--label-columns", "") == 0
    assert Store.open(str(tmp_path / "none")).label_names == ()
    assert prepare_csv(source, tmp_path / "negative", "--blank", "negative") == 0
    assert Store.open(str(tmp_path / "negative")).labels["A"].tolist() == [1, 0, 0]


def test_without_a_patient_column_each_image_is_one_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_csv(simple(tmp_path, 3), tmp_path / "s") == 0
    said = "no column: each image counts as its own patient"
    assert f"patient: {said}" in capsys.readouterr().out
    store = Store.open(str(tmp_path / "s"))
    assert store.manifest["source"]["notes"]["patient"] == said
    assert len(set(store.patients)) == 3
    assert store.split == "all"


@pytest.mark.parametrize("patients", [None, [""] * 16])
def test_a_study_without_a_patient_stays_in_one_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patients: list[str] | None
) -> None:
    columns = {"study_id": [f"s{n // 2}" for n in range(16)], **({"patient": patients} if patients else {})}
    source = simple(tmp_path / "d", 16, **columns)
    assert prepare_csv(source, tmp_path / "s", "--split-by-patient", "train=0.5,test=0.5") == 0
    train, test = (Store.open(f"{tmp_path / 's'}:{name}") for name in ("train", "test"))
    assert len(train) + len(test) == 16 and not set(train.studies) & set(test.studies)
    assert len({*train.studies, *test.studies}) == len(train.patient_set | test.patient_set) == 8
    note = train.manifest["source"]["notes"]["patient"]
    assert note.removesuffix(")").endswith("study counts as its own patient")
    capsys.readouterr()
    torn = simple(tmp_path / "torn", 16, **columns, split=["train", "test"] * 8)
    assert prepare_csv(torn, tmp_path / "t") == 2
    assert "8 of 8 patients are in more than one split" in error_line(capsys)


def test_whole_numbers_that_pandas_wrote_as_floats_are_the_same_ids(tmp_path: Path) -> None:
    """As it does where a column has a gap."""
    whole = simple(tmp_path / "whole", patient=["10001", "10002", "10003", "x.0"], study=[1, 2, 3, 4])
    floats = simple(tmp_path / "floats", patient=["10001.0", " 10002.0 ", "", "x"], study=["1.0", "2.0", "", "4.0"])
    for name, source in (("a", whole), ("b", floats)):
        assert prepare_csv(source, tmp_path / name, "--namespace", "n") == 0
    a, b = (Store.open(str(tmp_path / name)) for name in "ab")
    assert [p == q for p, q in zip(a.patients, b.patients, strict=True)] == [True, True, False, False]
    assert [p == q for p, q in zip(a.studies, b.studies, strict=True)] == [True, True, False, False]
    assert overlap(a, b).patients == 2


def test_records_of_unknown_patients_are_counted(tmp_path: Path) -> None:
    source = simple(tmp_path, 5, patient=["p0", "", "p2", " ", ""])
    (tmp_path / "i1.png").unlink()
    assert prepare_csv(source, tmp_path / "s") == 0
    assert Store.open(str(tmp_path / "s")).manifest["ids"]["patients_unknown"] == 2  # of those kept


def test_labels_without_texts_are_a_set_for_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": image(tmp_path / f"{n}.png", n), "Edema": n % 2, "finding_labels": "x"} for n in range(2)]
    source = table(tmp_path / "t.csv", rows)
    assert prepare_csv(source, tmp_path / "s") == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.texts == ["", ""] and store.labels["Edema"].tolist() == [0, 1]
    assert store.manifest["source"]["without_text"] == 2
    assert store.manifest["source"]["notes"]["text"] == "no column: an evaluation set without texts"
    capsys.readouterr()
    for flags, says in (
        (("--text", "findings"), "no column found for the text"),
        (("--text-column", "report"), "no column 'report' (--text-column)"),
        (("--label-columns", ""), "no column found for the text"),
    ):
        assert prepare_csv(source, tmp_path / "t", *flags) == 2
        assert says in error_line(capsys)


def test_two_tables_of_one_folder_compare_by_patient(tmp_path: Path) -> None:
    rows = [{"image": image(tmp_path / f"{n}.png", n), "text": "t", "patient": f"p{n % 4}"} for n in range(6)]
    table(tmp_path / "train.csv", rows[:4])
    table(tmp_path / "val.csv", rows[4:])
    for name in ("train", "val"):
        assert prepare_csv(tmp_path / f"{name}.csv", tmp_path / name, "--split", name) == 0
    a, b = Store.open(str(tmp_path / "train")), Store.open(str(tmp_path / "val"))
    assert (a.split, b.split) == ("train", "val")
    assert check_comparable(a, b) == "comparable"
    assert overlap(a, b).patients == 2


# --- what is left out ---


def test_every_row_is_kept_or_skipped_for_a_listed_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    rows = [{"image": image(data / f"{n}.png", n), "text": f"Report {n}"} for n in range(4)]
    (data / "empty.png").write_bytes(b"")
    (data / "page.png").write_text("<html>")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(data / "cut.jpg")
    (data / "cut.jpg").write_bytes((data / "cut.jpg").read_bytes()[:900])
    PIL.Image.new("1", (9000, 9000)).save(data / "huge.png")
    (data / "folder.png").mkdir()
    hole = np.full((8, 8), np.nan, np.float32)
    PIL.Image.fromarray(hole).save(data / "nan.tiff")
    rows += [
        {"image": "none.png", "text": "x"},
        {"image": "empty.png", "text": "x"},
        {"image": "page.png", "text": "x"},
        {"image": "cut.jpg", "text": "x"},
        {"image": "huge.png", "text": "x"},
        {"image": "folder.png", "text": "x"},
        {"image": "nan.tiff", "text": "x"},
        {"image": image(data / "blank.png"), "text": " \n"},
        rows[1],
    ]
    expected = {
        5: "missing image file",
        6: "empty image file",
        7: "not an image of a known type",
        8: "truncated or damaged image",
        9: "image larger than 64 megapixels",
        10: "a folder where an image file should be",
        11: "pixel values that are not finite",
        12: "empty text",
        13: "duplicate row",
    }
    assert prepare_csv(table(data / "t.csv", rows), tmp_path / "s") == 0
    lines = (tmp_path / "s" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"row": row, "reason": why} for row, why in expected.items()]
    out = capsys.readouterr().out
    for row, why in expected.items():
        assert re.search(rf"skipped: {why} +1 +{row}\n", out + "\n")
    assert re.search(r"read +13\n", out)
    assert re.search(r"kept +4\n", out)
    store = Store.open(str(tmp_path / "s"))
    assert store.source_rows.tolist() == [1, 2, 3, 4]
    facts = store.manifest["source"]
    assert facts["read"] == facts["kept"] + sum(facts["skipped"].values()) == 13


def test_one_section_can_be_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = simple(tmp_path / "data", count=3, impression=["No edema.", " ", "Left effusion."])
    assert prepare_csv(source, tmp_path / "s", "--text", "impression") == 0
    store = Store.open(str(tmp_path / "s"))
    assert store.texts == ["No edema.", "Left effusion."]
    assert store.n_tokens.tolist() == [2 + len(Tokenizer().encode(text)) for text in store.texts]
    assert store.manifest["text"] == "impression"
    assert re.search(r"skipped: no impression +1 +2\n", capsys.readouterr().out)
    assert prepare_csv(source, tmp_path / "r") == 0
    assert Store.open(str(tmp_path / "r")).texts == [f"No edema. Report {n}." for n in range(3)]
    assert prepare_csv(source, tmp_path / "f", "--text", "findings") == 2
    assert "has no column 'findings' (--text findings)" in error_line(capsys)
    assert prepare_csv(source, tmp_path / "f", "--text", "impression", "--text-column", "text") == 2
    assert "give one of them" in error_line(capsys)


def test_sections_alone_are_not_taken_for_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": image(tmp_path / "data" / "i.png"), "findings": "Clear lungs.", "impression": "Normal."}]
    source = table(tmp_path / "data" / "t.csv", rows)
    assert prepare_csv(source, tmp_path / "s") == 2
    assert "'findings', 'impression' are parts of a report, and no column has all of it" in error_line(capsys)
    assert prepare_csv(source, tmp_path / "s", "--text", "findings") == 0
    assert Store.open(str(tmp_path / "s")).texts == ["Clear lungs."]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 sound rows."""
    return simple(tmp_path_factory.mktemp("many"), 200, patient=[f"p{n % 50}" for n in range(200)])


def first_rows(many: Path, rows: int) -> Path:
    """The same table cut after `rows` rows, beside the same images."""
    path = many.with_name(f"first{rows}.csv")
    path.write_text("\n".join(many.read_text().splitlines()[: rows + 1]) + "\n")
    return path


def with_faults(many: Path, folder: Path, unreadable: int, missing: int = 0, rows: int = 200) -> Path:
    folder.mkdir()
    (folder / "table.csv").write_text(first_rows(many, rows).read_text())
    for n in range(rows):
        if n < unreadable:
            (folder / f"i{n}.png").write_text("no image")
        elif n >= unreadable + missing:
            os.link(many.parent / f"i{n}.png", folder / f"i{n}.png")
    return folder


def test_too_many_unreadable_images_end_the_run(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = with_faults(many, tmp_path / "d", unreadable=3)
    assert prepare_csv(source, tmp_path / "s") == 2
    line = error_line(capsys)
    assert "3 images of the first 3 of 200 cannot be read, above --max-skipped 0.01 of 200 rows (rows 1, 2, 3)" in line
    assert f"no store was made; what is done is kept in {tmp_path / 's.partial'}" in line
    assert prepare_csv(source, tmp_path / "s", "--max-skipped", "0.015") == 0
    assert "going on behind 3 of 200 images" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["d", "s"]
    assert len(Store.open(str(tmp_path / "s"))) == 197


def test_damaged_headers_count_as_unreadable_and_strange_files_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(200):
        path = tmp_path / "d" / f"{n}.dcm"
        dicom_files.save(path, np.full((24, 24), n, np.uint8), SOPInstanceUID=f"1.2.3.{n}", PatientID=f"p{n}")
        if n < 150:
            path.with_suffix(".txt").write_text(f"Report {n}.")
    for n in range(3):
        path = tmp_path / "d" / f"{n}.dcm"
        path.write_bytes(path.read_bytes()[:300])
    for n in range(3, 100):
        (tmp_path / "d" / f"{n}.dcm").write_text("no image")
    flags = ("--format", "dicom", "--source", tmp_path / "d", "--out", tmp_path / "s")
    assert prepare(*flags) == 2
    line = error_line(capsys)
    assert "3 images of the first 3 of 53 cannot be read, above --max-skipped 0.01 of 200 rows" in line
    assert line.endswith("no store was made\n") and sorted(os.listdir(tmp_path)) == ["d"]
    assert prepare(*flags, "--max-skipped", "0.015") == 0
    skipped = Store.open(str(tmp_path / "s")).manifest["source"]["skipped"]
    assert skipped == {"not a DICOM file": 97, "no text file beside the image": 50, "damaged DICOM header": 3}


def test_the_cap_leaves_missing_files_and_small_tables_alone(many: Path, tmp_path: Path) -> None:
    assert prepare_csv(with_faults(many, tmp_path / "a", unreadable=2, missing=150), tmp_path / "sa") == 0
    assert len(Store.open(str(tmp_path / "sa"))) == 48
    assert prepare_csv(with_faults(many, tmp_path / "b", unreadable=190, rows=199), tmp_path / "sb") == 0
    assert len(Store.open(str(tmp_path / "sb"))) == 9


def test_a_set_for_evaluation_may_lack_texts(tmp_path: Path) -> None:
    studies = [
        Study(n, f"i{n}", f"s{n}", f"p{n}", "test", "", text, {}, {}, lazy(tmp_path / image(tmp_path / f"{n}.png", n)))
        for n, text in enumerate(["", "No edema.", "___", " "], start=1)
    ]
    studies[3] = dataclasses.replace(studies[3], load_image=lazy(tmp_path / "none.png"))

    def outcome_of(out: Path, text_optional: bool) -> Outcome:
        source = Source(studies, 4, (), "n", public_ids=True, synthetic=False, notes={}, text_optional=text_optional)
        return prepare_store(source, out, Options(), format_name="test")

    outcome = outcome_of(tmp_path / "s", True)
    assert (outcome.read, outcome.kept, outcome.without_text) == (4, 3, 2)
    assert outcome.skipped == {"missing image file": 1}
    store = Store.open(str(tmp_path / "s"))
    assert store.texts == ["", "No edema.", ""]
    assert store.n_tokens.tolist() == [2, 2 + len(Tokenizer().encode("No edema.")), 2]
    assert store.manifest["source"]["without_text"] == 2
    assert re.search(r"without a text: for evaluation only +2\n", command.describe(tmp_path / "s", outcome))
    with pytest.raises(UserError, match="2 of its 3 records have no text"):
        TrainStream(store, Tokenizer(), batch_size=1, seed=0, image_size=224, crop="random", flip=False, context=32)
    strict = outcome_of(tmp_path / "strict", False)
    assert strict.skipped == {"empty text": 2, "a placeholder in place of a text": 1}


def test_jpeg_is_smaller_near_and_marked_alike(tmp_path: Path) -> None:
    """Of one source, raw and JPEG stores have equal image_sha256: that of the pixels before they are encoded."""
    arguments = ("--format", "phantom", "--count", 12, "--split", "all")
    assert prepare(*arguments, "--out", tmp_path / "raw") == 0
    for name in ("jpeg", "again"):
        assert prepare(*arguments, "--encoding", "jpeg", "--out", tmp_path / name) == 0
    assert contents(tmp_path / "jpeg") == contents(tmp_path / "again")
    raw, jpeg = Store.open(str(tmp_path / "raw")), Store.open(str(tmp_path / "jpeg"))
    assert (raw.encoding, jpeg.encoding) == ("raw", "jpeg")
    assert jpeg.manifest["jpeg"]["quality"] == 95
    assert raw.image_sha256 == jpeg.image_sha256
    assert raw.texts == jpeg.texts
    rows = np.arange(12)
    apart = np.abs(raw.images(rows).astype(int) - jpeg.images(rows))
    assert 0 < apart.mean() < 2
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).glob("images-*")) for name in ("raw", "jpeg")]
    assert sizes[1] < sizes[0] / 2
    assert all(store.intact(row) for store in (raw, jpeg) for row in range(len(store)))


# --- splits ---


def test_split_by_patient_is_a_function_of_the_patient_alone(many: Path, tmp_path: Path) -> None:
    shares = ("--split-by-patient", "train=0.6,val=0.2,test=0.2")
    some = first_rows(many, 60)
    assert prepare_csv(some, tmp_path / "whole", *shares) == 0
    table_all = pq.read_table(tmp_path / "whole" / "table.parquet")
    split_of: dict[str, str] = {}
    for patient, split in zip(table_all["patient"].to_pylist(), table_all["split"].to_pylist(), strict=True):
        assert split_of.setdefault(patient, split) == split
    assert sorted(set(split_of.values())) == ["test", "train", "val"]
    assert 20 <= sum(split == "train" for split in split_of.values()) <= 40
    # Half of the rows, in another order: nobody moves.
    lines = some.read_text().splitlines()
    (many.parent / "half.csv").write_text("\n".join([lines[0], *reversed(lines[1:31])]) + "\n")
    assert prepare_csv(many.parent / "half.csv", tmp_path / "half", *shares) == 0
    table_half = pq.read_table(tmp_path / "half" / "table.parquet")
    pairs = zip(table_half["patient"].to_pylist(), table_half["split"].to_pylist(), strict=True)
    assert all(split_of[patient] == split for patient, split in pairs)


@pytest.mark.parametrize(
    "text", ["train", "train=0.5,val=0.4", "train=x", "train=1,train=0", "=1", "a b=1", "a=2,b=-1", ""]
)
def test_bad_shares_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--split-by-patient"):
        parse_shares(text)
    assert parse_shares(" train=0.9, val=0.1") == {"train": 0.9, "val": 0.1}


# --- privacy, determinism, synthetic data ---


def test_no_raw_id_or_file_name_leaves_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canaries = ("JaneDoe4711", "Acc0815x", "scan-of-jane", "CanaryText42", "Ward17")
    rows = [
        {
            "image": image(tmp_path / "d" / f"scan-of-jane-{n}.png", n),
            "text": "CanaryText42",
            "patient": f"JaneDoe4711-{n}",
            "study": f"Acc0815x-{n}",
            "remark": "Ward17",
        }
        for n in range(3)
    ]
    rows.append({**rows[0], "image": "scan-of-jane-gone.png"})
    (tmp_path / "d" / "scan-of-jane-bad.png").write_text("x")
    rows.append({**rows[1], "image": "scan-of-jane-bad.png"})
    assert prepare_csv(table(tmp_path / "d" / "t.csv", rows), tmp_path / "s") == 0
    stored = b"".join(contents(tmp_path / "s").values())
    for column in pq.read_table(tmp_path / "s" / "table.parquet").to_pydict().values():
        stored += repr(column).encode()  # the file itself is compressed
    said = "".join(capsys.readouterr())
    for canary in canaries:
        assert canary not in said
        if canary != "CanaryText42":  # a store is for the texts
            assert canary.encode() not in stored

    # Nor do complaints repeat what is in a cell.
    faults: list[list[dict[str, object]]] = [
        [rows[0], {**rows[0], "text": "CanaryText42 other"}],
        [rows[0], {**rows[1], "image": " "}],
    ]
    for n, faulty in enumerate(faults):
        assert prepare_csv(table(tmp_path / "d" / f"f{n}.csv", faulty), tmp_path / "f") == 2
        line = error_line(capsys)
        assert not any(canary in line for canary in canaries)
    flags = (("--split-column", "patient"), ("--view-column", "image"), ("--label-columns", "remark"))
    for flag in flags:
        assert prepare_csv(tmp_path / "d" / "t.csv", tmp_path / "f", *flag) == 2
        line = error_line(capsys)
        assert not any(canary in line for canary in canaries)


def test_equal_input_gives_equal_bytes_on_any_number_of_cores(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, cores in (("one", {0}), ("two", {0, 1})):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        assert prepare_csv(first_rows(many, 80), tmp_path / name) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    monkeypatch.setenv("HYBRIDCLIP_PATIENT_KEY", "another key for the tests")
    assert prepare_csv(first_rows(many, 20), tmp_path / "key") == 0
    one, key = Store.open(str(tmp_path / "one")), Store.open(str(tmp_path / "key"))
    assert not set(one.ids + one.studies + one.patients) & set(key.ids + key.studies + key.patients)
    with pytest.raises(UserError, match="different patient keys"):
        check_comparable(one, key)


def test_phantoms_say_that_they_are_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        monkeypatch.setenv("HYBRIDCLIP_PATIENT_KEY", name)  # phantoms have no patients: their key is public
        assert prepare("--format", "phantom", "--count", 12, "--out", tmp_path / name) == 0
    out = capsys.readouterr().out
    assert "synthetic data: no image" in out
    assert "synthetic store:" in out
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "synthetic" in (tmp_path / "a" / "SYNTHETIC.txt").read_text()
    assert pq.read_schema(tmp_path / "a" / "table.parquet").metadata[b"synthetic"] == b"true"
    splits = json.loads((tmp_path / "a" / "manifest.json").read_text())["splits"]
    assert Store.open(f"{tmp_path / 'a'}:{next(iter(splits))}").synthetic


# --- what is refused ---

# File name and content of a table beside the images a.png and b.png, further arguments, what the line says.
FAULTS: list[tuple[str, str | bytes, str, str]] = [
    ("empty.csv", "", "", "empty.csv is empty: it has no data rows"),
    ("header.csv", "image,text\n", "", "header.csv is empty"),
    ("blank.jsonl", "\n \n", "", "blank.jsonl is empty"),
    ("latin.csv", b'image,text\na.png,"x\ny"\nb.png,\xdcber\n', "", "latin.csv row 2 is not UTF-8"),
    ("bom.csv", b"\xef\xbb\xbfimage,text\n\xff.png,x\n", "", "bom.csv row 1 is not UTF-8"),
    ("head.csv", b"image,t\xe9xt\na,b\n", "", "head.csv the header is not UTF-8"),
    ("latin.jsonl", b'{"image":"a"}\n{"text":"\xe9"}\n', "", "latin.jsonl row 2 is not UTF-8"),
    ("utf16.csv", "image,text\na,b\n".encode("utf-16"), "", "is UTF-16, not UTF-8"),
    ("short.csv", "image,text\na.png,x\nb.png\n", "", "row 2 has 1 fields where the header has 2"),
    ("long.csv", "image,text\na.png,x,y\n", "", "row 1 has 3 fields where the header has 2"),
    ("quote.csv", 'image,text\na.png,"' + "x" * 200_000, "", "row 1: .*is a quote left open"),
    ("open.csv", 'image,text\na.png,"x\nb.png,y\n', "", "row 1: .*is a quote left open"),
    ("loose.tsv", 'image\ttext\na.png\t"x\nb.png\tsaid "y"\n', "", "row 1: .*is a quote left open"),
    ("twice.csv", "image,text,text\na,b,c\n", "", "names column 'text' twice"),
    ("no.jsonl", '{"image": "a.png"}\nxx\n', "", r"no.jsonl row 2 \(line 2\) is not JSON"),
    ("array.jsonl", "[1]\n", "", "is not a JSON object"),
    ("list.jsonl", '{"image": ["a"], "text": "x"}\n', "", "row 1: 'image' is a list"),
    ("half.jsonl", '{"image": "a", "text": "\\ud800"}\n', "", "row 1 holds half a character"),
    ("foo.csv", "foo,text\na,b\n", "", "no column found for the image: .* It has 'foo', 'text'"),
    ("two.csv", "image,text,report\na,b,c\n", "", "columns 'text', 'report' could each be the text"),
    (
        "c.csv",
        "image,text\na,b\n",
        "--text-column Text",
        r"no column 'Text' \(--text-column\). It has 'image'",
    ),
    ("c.csv", "image,text\na,b\n", "--label-columns x", r"no column 'x' \(--label-columns\)"),
    ("c.csv", "image,text\na,b\n", "--label-columns text", "already serves as something else"),
    ("c.csv", "image,text\na,b\n", "--split-column text", "cannot be both the text and the split"),
    (
        "l.csv",
        "image,text,L\na,b,1\nc,d,2\n",
        "--label-columns L",
        "l.csv row 2: label column 'L' holds something",
    ),
    ("l.csv", "image,text,L,L2\na,b,1,0\n", "--label-columns L,L", "names 'L' twice"),
    ("i.csv", "image,text\na.png,b\n ,d\n", "", r"i.csv row 2: no image named in column 'image' \(1 such"),
    ("d.csv", "image,text\na.png,b\na.png,d\n", "", "rows 1 and 2 name the same image with different text"),
    ("d.csv", "image,text\na.png,b\nc.png,e\na.png,d\nc.png,f\n", "", "rows 1 and 3, 2 and 4 name the same image"),
    (
        "p.csv",
        "image,text,patient,split\na,x,p,s\nb,y,p,t\n",
        "",
        "1 of 1 patients are in more than one split",
    ),
    ("s.csv", "image,text,split\na,x,s\nb,y,\n", "", r"row 2 names no split while others do \(1 such rows\)"),
    ("o.csv", "image,text,split\na,x,s t\n", "", "row 1: a split's name is made of letters"),
    ("m.csv", "image,text,split\n" + "".join(f"{n},x,s{n}\n" for n in range(30)), "", "30 different splits"),
    ("n.csv", "image,text,n_tokens\na.png,b,1\n", "", "label or section 'n_tokens'"),
    (
        "z.csv",
        "image,text\nq.png,b\n",
        "",
        r"none of the 1 rows could be kept \(missing image file 1\).* with --images",
    ),
    (
        "f.csv",
        "image,text,impression\na.png,b,\n",
        "--text impression",
        r"none of the 1 rows could be kept \(no impression 1\): pair another part of the report with --text;",
    ),
    ("g.csv", "image,text\na.png,b\n", "--split a:b", "--split: a split's name is made of letters"),
    ("g.csv", "image,text\na.png,b\n", "--split-by-patient a=0.5", "the shares add up to 0.5, not 1"),
    ("g.csv", "image,text\na.png,b\n", "--max-skipped 2", "--max-skipped 2 is not a share"),
    ("g.csv", "image,text\na.png,b\n", "--images none", "none: no such folder for --images"),
    (
        "g.csv",
        "image,text\na.png,b\n",
        "--count 3",
        "--count belongs to --format phantom, not to --format csv",
    ),
]


def test_each_fault_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    image(folder / "a.png", 1)
    image(folder / "b.png", 2)
    for name, content, flags, expected in FAULTS:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        assert prepare_csv(folder / name, tmp_path / "s", *flags.split()) == 2, (name, flags)
        assert re.search(expected, error_line(capsys)), (name, flags)
        assert os.listdir(tmp_path) == ["data"], (name, flags)


def test_a_source_that_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    assert prepare("--format", "csv", "--out", out) == 2
    assert "--format csv needs --source PATH" in error_line(capsys)
    assert prepare_csv(tmp_path / "none.csv", out) == 2
    assert "none.csv: no such table; give --source a CSV" in error_line(capsys)
    (tmp_path / "no").mkdir()
    assert prepare_csv(tmp_path / "no", out) == 2
    assert "holds no table" in error_line(capsys)
    for name in ("a.csv", "b.tsv"):
        (tmp_path / "no" / name).touch()
    assert prepare_csv(tmp_path / "no", out) == 2
    assert "holds 2 tables (a.csv, b.tsv): give --source one of them" in error_line(capsys)


def test_phantoms_take_no_source_and_no_other_namespace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--format", "phantom", "--source", tmp_path, "--out", tmp_path / "s") == 2
    assert "--source: --format phantom reads nothing there" in error_line(capsys)
    assert prepare("--format", "phantom", "--namespace", "chexpert", "--out", tmp_path / "s") == 2
    assert "--namespace chexpert: --format phantom has its own" in error_line(capsys)


def test_several_splits_and_none_named(tmp_path: Path) -> None:
    assert prepare_csv(simple(tmp_path, 4, split=["a", "a", "b", "b"]), tmp_path / "s") == 0
    with pytest.raises(UserError, match=r"several splits: name one as .*:SPLIT. It has a \(2\), b \(2\)"):
        Store.open(str(tmp_path / "s"))


def help_after(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    parser = argparse.ArgumentParser(prog="hybridclip prepare", epilog="example: one", formatter_class=RAW)
    command.add_arguments(parser)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_formats_and_the_flags_of_the_one_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    plain = help_after([], capsys)
    for name, reader in FORMATS.items():
        assert f"{name} " in plain
        assert reader.describe in plain
    assert "--text-column" not in plain
    assert "--max-skipped" in plain
    assert plain.endswith("example: one\n")
    assert command.EXAMPLE.startswith("hybridclip prepare --format csv")
    for name, reader in FORMATS.items():
        own = help_after(["--format", name], capsys)
        assert reader.describe in own.replace("\n", " ")
        assert own.endswith(f"example: hybridclip prepare --format {name} {reader.example} --out stores/train\n")
        assert ("--text-column" in own) == (name == "csv")


def test_a_dead_worker_is_told() -> None:
    with pytest.raises(RunStopped, match="a worker process died"):
        list(workers.decode_all([(_die, "text")] * 100, 100, workers.Pixels(1, "pad", "raw"), workers=2))


def _die() -> PIL.Image.Image:
    os._exit(1)
