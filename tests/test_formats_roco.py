"""`prepare --format roco` on each form in which ROCO and ROCOv2 are passed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import prepared
import pytest

from hybridclip_jax.data.store import read_manifest

LICENCES = ("CC BY 4.0", "CC BY-NC-SA 4.0", "CC0", "NO-CC", "CC BY")


def captions(first: int, count: int) -> list[str]:
    return [f"Axial CT, figure {n}, 39.1 \u2103\x85 (arrow)." for n in range(first, first + count)]


def v1(root: Path, sizes: dict[str, int], part: str = "radiology", licences: bool = True) -> dict[str, list[str]]:
    """ROCO's own files: no header, a tab and a blank before the caption, empty first fields in the others."""
    texts: dict[str, list[str]] = {}
    first = 1 if part == "radiology" else 501
    for split, count in sizes.items():
        folder = root / "data" / split / part
        names = [f"ROCO_{n:05d}" for n in range(first, first + count)]
        texts[split] = captions(first, count)
        lines = zip(names, texts[split], strict=True)
        prepared.write(folder / "captions.txt", [f"{name}\t {text}" for name, text in lines])
        prepared.write(folder / "keywords.txt", [f"{name}\t\tchest\tarrow" for name in names])
        rows = [f"{n},PMC{100 + i // 2}_{n}.jpg,{LICENCES[i % 5]}" for i, n in enumerate(names)]
        if licences:
            prepared.write(folder / "licences.txt", ["ROCO_ID,PMC_ID,CC", *rows])
        for seed, name in enumerate(names, start=first):
            prepared.save(folder / "images" / f"{name}.jpg", seed, "RGB")
        first += count
    return texts


def test_own_text_files(tmp_path: Path) -> None:
    texts = v1(tmp_path, {"train": 3, "validation": 2, "test": 1})
    v1(tmp_path, {"train": 2}, part="non-radiology")
    assert prepared.prepare("roco", "--source", tmp_path, "--out", tmp_path / "s") == 0
    for split, expected in texts.items():
        store = prepared.split(tmp_path / "s", split)
        assert store.texts == expected  # one blank before the caption is cut, and no line but at a line feed
        assert store.channels == 3
    train = prepared.split(tmp_path / "s", "train")
    assert train.licences == list(LICENCES[:3])
    with PIL.Image.open(tmp_path / "data/train/radiology/images/ROCO_00001.jpg") as image:
        np.testing.assert_array_equal(train.image(0), prepared.stored(image, channels=3))
    assert train.manifest["ids"]["namespace"] == "roco"
    assert train.manifest["ids"]["patients_unknown"] == 6  # of all splits
    said = prepared.notes(tmp_path / "s")
    assert said["articles"].startswith("2; 1 of them have figures in more than one split")


def test_parts_are_chosen(tmp_path: Path) -> None:
    v1(tmp_path, {"train": 3})
    v1(tmp_path, {"train": 2}, part="non-radiology", licences=False)
    for part, count in (("radiology", 3), ("non-radiology", 2), ("both", 5)):
        assert prepared.prepare("roco", "--source", tmp_path, "--roco-part", part, "--out", tmp_path / part) == 0
        assert len(prepared.split(tmp_path / part, "train")) == count


def test_every_form_gives_the_same_records(tmp_path: Path) -> None:
    """Text files, the CSV mirror and PubMedCLIP's JSON lines of the same figures."""
    texts = v1(tmp_path, {"train": 3}, licences=False)
    folder = tmp_path / "data" / "train"
    names = [f"ROCO_{n:05d}.jpg" for n in range(1, 4)]
    rows = [f'{i},{name},"{text}\n"' for i, (name, text) in enumerate(zip(names, texts["train"], strict=True))]
    mirror = prepared.write(folder / "radiologytraindata.csv", ["id,name,caption", *rows])
    beside = prepared.write(folder / "radiology" / "traindata.csv", ["id,name,caption", *rows])
    objects = [
        f'{{"image_path": "data/train/radiology/images/{name}", "caption": "{text}"}}'
        for name, text in zip(names, texts["train"], strict=True)
    ]
    lines = prepared.write(tmp_path / "train.jsonl", objects)
    forms = {"text": tmp_path, "mirror": mirror, "beside": beside, "lines": lines, "captions": folder / "radiology"}
    tables = {}
    for name, source in forms.items():
        assert prepared.prepare("roco", "--source", source, "--split", "train", "--out", tmp_path / name) == 0
        tables[name] = (tmp_path / name / "table.parquet").read_bytes()
    assert set(tables.values()) == {tables["text"]}
    out = tmp_path / "named"
    assert prepared.prepare("roco", "--source", mirror, "--out", out) == 0  # the split is in the folder's name
    assert list(read_manifest(out)[0]["splits"]) == ["train"]


def test_the_mirror_is_found_by_its_folders(tmp_path: Path) -> None:
    for split, name in (("train", "radiologytraindata.csv"), ("test", "radiologytestdata.csv")):
        folder = tmp_path / "all_data" / split
        prepared.write(folder / name, ["id,name,caption", f"1,{split}.jpg,A {split} figure"])
        prepared.write(folder / f"non{name}", ["id,name,caption", f"1,{split}.jpg,No radiology"])
        prepared.save(folder / "radiology" / "images" / f"{split}.jpg", 1, "RGB")
    assert prepared.prepare("roco", "--source", tmp_path, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s", "test").texts == ["A test figure"]
    assert prepared.split(tmp_path / "s", "train").texts == ["A train figure"]


def v2(root: Path, folder: str = "{split}") -> None:
    for number, split in enumerate(("train", "valid", "test")):
        names = [f"ROCOv2_2023_{split}_{n:06d}" for n in range(1, 3)]
        rows = [f'{name},"Caption of {name}, with a comma"' for name in names]
        prepared.write(root / f"{split}_captions.csv", ["ID,Caption", *rows])
        prepared.write(root / f"{split}_concepts.csv", ["ID,CUIs", *(f"{name},C0040405;C0043299" for name in names)])
        for seed, name in enumerate(names):
            prepared.save(root / folder.format(split=split) / f"{name}.jpg", 10 * number + seed, "RGB")
    rows = [
        f"ROCOv2_2023_{split}_00000{n},PMC{n},CC BY{'-NC' * (n - 1)} [Doe et al. (2020)],https://example.org/{n}"
        for split in ("train", "valid", "test")
        for n in (1, 2)
    ]
    prepared.write(root / "license_information.csv", ["ID,PMCID,Attribution,Link", *rows])


@pytest.mark.parametrize("folder", ["{split}", "{split}_images", "{split}_images/{split}"])
def test_second_version(tmp_path: Path, folder: str) -> None:
    v2(tmp_path, folder)
    assert prepared.prepare("roco", "--source", tmp_path, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "valid")
    assert store.texts[1] == "Caption of ROCOv2_2023_valid_000002, with a comma"
    assert store.licences == ["CC BY", "CC BY-NC"]  # the authors' names behind it are not part of it
    assert list(store.manifest["splits"]) == ["train", "valid", "test"]


def test_only_the_licences_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v1(tmp_path, {"train": 5})
    asked = ("--source", tmp_path, "--roco-licences")
    assert prepared.prepare("roco", *asked, "cc-by, CC0", "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s", "train").licences == ["CC BY 4.0", "CC0", "CC BY"]
    assert prepared.skipped(tmp_path / "s") == {"licence not asked for": 2}
    assert prepared.prepare("roco", *asked, "MIT", "--out", tmp_path / "t") == 2
    assert "no figure has MIT; there are CC BY, CC BY-NC-SA, CC0, NO-CC" in prepared.error_line(capsys)


def test_missing_empty_and_odd_rows_are_counted(tmp_path: Path) -> None:
    v1(tmp_path, {"train": 4})
    folder = tmp_path / "data" / "train" / "radiology"
    (folder / "images" / "ROCO_00002.jpg").write_bytes(b"")
    (folder / "images" / "ROCO_00003.jpg").unlink()
    with (folder / "captions.txt").open("a", encoding="utf-8") as file:
        file.write("ROCO_00005\t \nROCO_00006 no tab\n../../../../secret\t A caption\n\n")
    assert prepared.prepare("roco", "--source", tmp_path, "--out", tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {
        "empty image file": 1,
        "empty text": 1,
        "line without an id and a caption": 1,
        "missing image file": 1,
        "path outside the images folder": 1,
    }


def test_what_the_user_can_mend_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(source: Path) -> str:
        assert prepared.prepare("roco", "--source", source, "--out", tmp_path / "s") == 2
        return prepared.error_line(capsys)

    assert "holds none of ROCO's files" in line(tmp_path)
    assert "no such file or folder" in line(tmp_path / "none")
    v1(tmp_path, {"train": 2})
    folder = tmp_path / "data" / "train" / "radiology"
    (folder / "captions.txt").write_bytes("ROCO_1\t a\nROCO_2\t K\xf6rper\n".encode("latin-1"))
    assert "captions.txt line 2 is not UTF-8" in line(tmp_path)
    (folder / "captions.txt").write_text("ROCO_1\t a\n")
    (folder / "images").rename(folder / "pictures")
    assert "no such folder of images; name it with --images" in line(tmp_path)
    assert "lacks column 'name', 'caption'" in line(prepared.write(tmp_path / "other.csv", ["a,b", "1,2"]))
