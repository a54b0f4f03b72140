"""`prepare --format parquet` on files as dataset hubs keep them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import prepared
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridclip_jax.data.formats import parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pictures(seeds: Sequence[int]) -> pa.Array:
    """The image column of a hub: bytes and the name that the file once had."""
    return pa.array(
        [{"bytes": prepared.encoded(prepared.picture(seed)), "path": f"{seed}.png"} for seed in seeds], STRUCT
    )


def write(path: Path, columns: dict[str, object], rows_a_group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    hub = {"info": {"features": {"image": {"_type": "Image"}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(hub).encode()})
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def simple(path: Path, seeds: Sequence[int], **more: object) -> Path:
    return write(path, {"image": pictures(seeds), "report": [f"Report {seed}." for seed in seeds], **more})


def test_a_hub_folder_with_splits_in_the_names(tmp_path: Path) -> None:
    data = tmp_path / "data"
    more = {"patient_id": [f"p{seed // 2}" for seed in range(7)], "age": [60.5] * 7}
    labels = {"edema": pa.array([1, 0, -1, None, 1, 0, 0], pa.int64()), "sure": [True, False] * 3 + [None]}
    simple(data / "train-00000-of-00002-4fb5.parquet", range(7), **more, **labels, tags=[["a"], ["b"]] * 3 + [[]])
    rest = {"patient_id": ["p8"], "age": [1.5], "edema": pa.array([1], pa.int64()), "sure": [True], "tags": [["c"]]}
    simple(data / "train-00001-of-00002-4fb5.parquet", [8], **rest)
    simple(data / "validation-00000-of-00001.parquet", [9], **{**rest, "patient_id": ["p9"]})
    assert prepared.prepare("parquet", "--source", tmp_path, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "train")
    assert store.texts == [f"Report {seed}." for seed in (*range(7), 8)]
    assert len(set(store.patients)) == 5
    np.testing.assert_array_equal(store.labels["edema"], [1, 0, np.nan, np.nan, 1, 0, 0, 1])
    np.testing.assert_array_equal(store.labels["sure"], [1, 0, 1, 0, 1, 0, np.nan, 1])
    for row, seed in enumerate((*range(7), 8)):
        np.testing.assert_array_equal(store.image(row), prepared.stored(prepared.picture(seed)))
    assert len(prepared.split(tmp_path / "s", "validation")) == 1
    said = prepared.notes(tmp_path / "s")
    assert said["image"] == "column 'image' (struct)"
    assert said["columns not used"] == "age" and said["nested columns not used"] == "tags"


def test_numbers_of_patients_are_the_same_with_and_without_gaps(tmp_path: Path) -> None:
    for name, patients in (("whole", [10001, 10002, 10003]), ("gap", [10001.0, None, 10003.0])):
        source = simple(tmp_path / f"{name}.parquet", range(3), patient=patients)
        assert prepared.prepare("parquet", "--source", source, "--out", tmp_path / name) == 0
    whole, gap = (prepared.split(tmp_path / name) for name in ("whole", "gap"))
    assert [a == b for a, b in zip(whole.patients, gap.patients, strict=True)] == [True, False, True]
    assert gap.manifest["ids"]["patients_unknown"] == 1


def test_labels_without_texts_are_a_set_for_evaluation(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": pictures(range(2)), "edema": [1, 0]})
    assert prepared.prepare("parquet", "--source", source, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    assert store.texts == ["", ""] and store.labels["edema"].tolist() == [1, 0]


def test_more_rows_than_are_read_at_once_in_worker_processes(tmp_path: Path) -> None:
    seeds = range(70)
    columns = {"image": pictures(seeds), "text": [f"Text {seed}" for seed in seeds]}
    source = write(tmp_path / "one.parquet", columns, 40)
    assert prepared.prepare("parquet", "--source", source, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    for row in seeds:
        np.testing.assert_array_equal(store.image(row), prepared.stored(prepared.picture(row)))


@pytest.mark.parametrize("rows_a_group", [1, 7, 16, 1000])
def test_rows_in_any_order(tmp_path: Path, rows_a_group: int) -> None:
    columns = {"image": pictures(range(40)), "text": ["x"] * 40}
    source = write(tmp_path / "one.parquet", columns, rows_a_group)
    for row in (39, 0, 17, 16, 15, 38, 38):
        image = parquet.open_row(source, row // rows_a_group, row % rows_a_group, "image")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(prepared.picture(row)))


def test_split_folders_bytes_and_named_columns(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        columns = {
            "jpg": [prepared.encoded(prepared.picture(seed))],
            "mask": [b"no image"],
            "words": [f"Words {seed}"],
            "Findings": [f"F {seed}"],
            "Impression": ["I"],
        }
        write(tmp_path / "d" / split / "0000.parquet", columns)
    flags = ("--parquet-image-column", "jpg", "--parquet-text-column", "words")
    assert prepared.prepare("parquet", "--source", tmp_path / "d", *flags, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "test")
    assert store.texts == ["Words 2"] and store.sections["findings"] == ["F 2"]
    np.testing.assert_array_equal(store.image(0), prepared.stored(prepared.picture(2)))


def test_paths_of_image_files(tmp_path: Path) -> None:
    prepared.save(tmp_path / "png" / "a" / "1.png", 1)
    paths = ["a/1.png", "a/2.png", "../secret.png", None]
    source = write(tmp_path / "t.parquet", {"image_path": paths, "caption": ["A caption"] * 4})
    assert prepared.prepare("parquet", "--source", source, "--images", tmp_path / "png", "--out", tmp_path / "s") == 0
    assert len(prepared.split(tmp_path / "s")) == 1
    assert prepared.skipped(tmp_path / "s") == {
        "missing image file": 1,
        "no image named": 1,
        "path outside the images folder": 1,
    }


def test_rows_without_an_image_or_with_a_broken_one_are_counted(tmp_path: Path) -> None:
    good = {"bytes": prepared.encoded(prepared.picture(1)), "path": None}
    cut = {"bytes": good["bytes"][:200], "path": None}
    cells = [good, {"bytes": None, "path": "1.png"}, None, cut, {"bytes": b"", "path": None}]
    source = write(tmp_path / "t.parquet", {"image": pa.array(cells, STRUCT), "text": ["a", "b", "c", "d", "e"]})
    assert prepared.prepare("parquet", "--source", source, "--out", tmp_path / "s") == 0
    assert len(prepared.split(tmp_path / "s")) == 1
    assert prepared.skipped(tmp_path / "s") == {
        "row without image bytes": 2,
        "empty image file": 1,
        "truncated or damaged image": 1,
    }


def test_what_the_user_can_mend_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(source: Path, *flags: object) -> str:
        assert prepared.prepare("parquet", "--source", source, *flags, "--out", tmp_path / "s") == 2
        return prepared.error_line(capsys)

    assert "no such file or folder" in line(tmp_path / "none")
    assert "holds no parquet files" in line(tmp_path)
    good = simple(tmp_path / "good.parquet", range(40))
    assert "leave it out" in line(good, "--images", tmp_path)
    assert "no column 'x' of images" in line(good, "--parquet-image-column", "x")
    raw = good.read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(raw[: len(raw) // 2])
    assert "damaged, cut off or no parquet file" in line(cut)
    cut.write_bytes(raw.replace(b"report", b"repor\xad"))
    assert "damaged, cut off or no parquet file" in line(cut)
    cut.write_bytes(b"PAR1 not really")
    assert "damaged, cut off or no parquet file" in line(cut)
    two = write(tmp_path / "two.parquet", {"image": pictures([1]), "scan": pictures([1]), "text": ["a"]})
    assert "columns 'image', 'scan' could each be the image" in line(two)
    assert "no column found for the image" in line(write(tmp_path / "none.parquet", {"text": ["a"]}))
    assert "no column found for the text: name it with --parquet-text-column" in line(
        write(tmp_path / "textless.parquet", {"image": pictures([1])})
    )
    assert "is empty: it has no rows" in line(write(tmp_path / "empty.parquet", {"image": pictures([]), "text": []}))
    headless = write(tmp_path / "headless.parquet", {"image": pictures([1]), "patient64741/view1.jpg": ["a"]})
    assert "its column names look like data" in (said := line(headless)) and "64741" not in said
    many = pa.table({"image": pa.nulls(2_000_000, pa.binary()), "text": pa.nulls(2_000_000, pa.string())})
    pq.write_table(many, tmp_path / "many.parquet")
    assert "2000000 rows" in line(tmp_path / "many.parquet")
    long = pa.table({"image": pictures([1]), "text": ["x" * 100_000_000]})
    pq.write_table(long, tmp_path / "long.parquet", compression="zstd", write_statistics=False)
    assert "no images are so small" in line(tmp_path / "long.parquet")
    folder = tmp_path / "mixed"
    simple(folder / "a.parquet", [1])
    simple(folder / "b.parquet", [2], more=["x"])
    assert "b.parquet has other columns than" in line(folder)
