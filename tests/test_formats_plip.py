"""`prepare --format plip` on tables as PLIP's scripts write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prepared
import pytest


def images(folder: Path, count: int) -> None:
    for number in range(count):
        prepared.save(folder / "tiles" / f"{number}.png", number, "RGB")


def test_captions_in_colour(tmp_path: Path) -> None:
    images(tmp_path, 2)
    lines = [",image,caption", '0,tiles/0.png,"H&E, sheets of cells"', "1,tiles/1.png,Mucin"]
    source = prepared.write(tmp_path / "openpath_train.csv", lines)
    assert prepared.prepare("plip", "--source", source, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "train")
    assert store.texts == ["H&E, sheets of cells", "Mucin"]
    assert store.channels == 3
    np.testing.assert_array_equal(store.image(1), prepared.stored(prepared.picture(1, "RGB"), channels=3))
    assert store.manifest["ids"]["namespace"] == f"plip:{tmp_path.name}"
    assert store.manifest["ids"]["patients_unknown"] == 2
    assert prepared.notes(tmp_path / "s")["columns not used"] == "(no name)"
    assert prepared.prepare("plip", "--source", source, "--no-colour", "--out", tmp_path / "grey") == 0
    assert prepared.split(tmp_path / "grey", "train").channels == 1


def test_retrieval_tables_are_tab_separated(tmp_path: Path) -> None:
    images(tmp_path, 1)
    source = prepared.write(tmp_path / "pubmed_retrieval.tsv", ["images\tcaptions", "tiles/0.png\tA, with commas"])
    assert prepared.prepare("plip", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").texts == ["A, with commas"]


def test_classes_become_one_label_each(tmp_path: Path) -> None:
    """The class's words name the labels, not its number; the text is the sentence that PLIP's evaluation takes."""
    images(tmp_path, 3)
    head = ",image,label,label_text,text_style_0,text_style_1,text_style_4"
    lines = [
        head,
        "0,tiles/0.png,1,malignant,malignant,malignant colon,An H&E image of malignant colon tissue.",
        "1,tiles/1.png,0,benign,benign,benign colon,An H&E image of benign colon tissue.",
        "2,tiles/2.png,,,benign,benign lung,An H&E image of benign lung tissue.",
    ]
    source = prepared.write(tmp_path / "PanNuke_test.csv", lines)
    assert prepared.prepare("plip", "--source", source, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "test")
    assert store.label_names == ("benign", "malignant")
    np.testing.assert_array_equal(store.labels["malignant"], [1, 0, np.nan])
    np.testing.assert_array_equal(store.labels["benign"], [0, 1, np.nan])
    assert store.texts[0] == "An H&E image of malignant colon tissue."
    out = tmp_path / "named"
    assert prepared.prepare("plip", "--source", source, "--plip-text", "text_style_0", "--out", out) == 0
    assert prepared.split(out, "test").texts == ["malignant", "benign", "benign"]


def test_a_table_of_classes_alone_is_kept_without_text(tmp_path: Path) -> None:
    images(tmp_path, 2)
    source = prepared.write(tmp_path / "KIMIA_Path24_test.csv", [",image,label", "0,tiles/0.png,3", "1,tiles/1.png,11"])
    assert prepared.prepare("plip", "--source", source, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "test")
    assert store.texts == ["", ""]
    np.testing.assert_array_equal(store.labels["3"], [1, 0])


def test_absolute_paths_hold_inside_the_images_folder_only(tmp_path: Path) -> None:
    """PLIP's scripts write the paths of their machine."""
    images(tmp_path, 2)
    lines = [
        "image,caption",
        f"{tmp_path}/tiles/0.png,Here",
        "/elsewhere/tiles/1.png,There",
        "tiles/1.png,",
        ",Nothing",
    ]
    source = prepared.write(tmp_path / "t.csv", lines)
    assert prepared.prepare("plip", "--source", source, "--images", tmp_path, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").texts == ["Here"]
    assert prepared.skipped(tmp_path / "s") == {
        "empty text": 1,
        "no image named": 1,
        "path outside the images folder": 1,
    }


def test_what_the_user_can_mend_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(lines: list[str], *flags: str) -> str:
        source = prepared.write(tmp_path / "t.csv", lines)
        assert prepared.prepare("plip", "--source", source, *flags, "--out", tmp_path / "s") == 2
        return prepared.error_line(capsys)

    assert "lacks column 'image'" in line(["picture,caption", "a.png,b"])
    assert "neither a caption nor a label" in line(["image,weight", "a.png,3"])
    assert "lacks column 'style'" in line(["image,caption", "a.png,b"], "--plip-text", "style")
    assert "300 different values" in line(["image,label", *(f"{n}.png,c{n}" for n in range(300))])
    texts = line(["image,label", "a.png,Doe: the lungs are clear."])
    assert "not the names of classes" in texts and "Doe" not in texts
