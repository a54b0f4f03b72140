"""`prepare --format webdataset` on shards of every tar form, and on hostile ones."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import prepared
import pytest

from hybridclip_jax.data.formats import tar_index

GNU, PAX, USTAR = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT


def shard(path: Path, members: list[tuple[str, bytes]], form: int = PAX) -> Path:
    """A plain tar; a name that ends in "/" is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(
    key: str, seed: int, text: str | None = None, kind: str = "png", **fields: object
) -> list[tuple[str, bytes]]:
    image = prepared.encoded(prepared.picture(seed), "JPEG" if kind.lower() == "jpg" else "PNG")
    members = [(f"{key}.{kind}", image)]
    members += [(f"{key}.txt", text.encode())] if text is not None else []
    return members + ([(f"{key}.json", json.dumps(fields).encode())] if fields else [])


def test_images_and_texts_of_several_shards(tmp_path: Path) -> None:
    """Folders, "./" before names, types in capitals and members of other types, as found in the wild."""
    first = [("./", b""), ("./a/", b""), *((f"./a/{n}", d) for n, d in sample("0001", 1, "Lungs clear.", "PNG"))]
    shard(
        tmp_path / "d" / "cxr-train-000000.tar",
        [*first, ("./a/0001.cls", b"3"), ("./a/0001.Doe.dat", b""), *sample("0002", 2, "No edema.")],
    )
    shard(tmp_path / "d" / "cxr-train-000001.tar", sample("0003", 3, "\ufeffThird."))
    shard(tmp_path / "d" / "cxr-val-000000.tar", sample("0004", 4, "Fourth."))
    (tmp_path / "d" / "readme.md").write_text("shards")
    assert prepared.prepare("webdataset", "--source", tmp_path / "d", "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "train")
    assert store.texts == ["Lungs clear.", "No edema.", "Third."]
    for row in range(3):
        np.testing.assert_array_equal(store.image(row), prepared.stored(prepared.picture(row + 1)))
    assert prepared.split(tmp_path / "s", "val").texts == ["Fourth."]
    assert prepared.notes(tmp_path / "s")["members not used"] == ".cls 1, other types 1"
    assert store.manifest["ids"]["namespace"] == "webdataset:d"


def test_fields_of_json_are_columns(tmp_path: Path) -> None:
    more = {"patient_id": "p1", "study": "s1", "view": "AP", "license": "CC0", "split": "val", "width": 512}
    members = [
        *sample("1", 1, report="R1", findings="F1", impression="I1", labels={"edema": 1, "mass": None}, **more),
        *sample("2", 2, report="R2", findings="F2", labels={"edema": -1, "mass": False}, tags=["x"], **more),
        *sample("3", 3, report="R3", labels={"edema": 0.0, "mass": True}, **{**more, "patient_id": "p2"}),
    ]
    source = shard(tmp_path / "x.tar", members)
    assert prepared.prepare("webdataset", "--source", source, "--uncertain", "one", "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "val")
    assert store.texts == ["R1", "R2", "R3"] and store.views == ["AP"] * 3 and store.licences == ["CC0"] * 3
    assert store.sections["findings"] == ["F1", "F2", ""]
    np.testing.assert_array_equal(store.labels["edema"], [1, 1, 0])
    np.testing.assert_array_equal(store.labels["mass"], [np.nan, 0, 1])
    assert len(set(store.patients)) == len(set(store.studies)) == 2
    said = prepared.notes(tmp_path / "s")
    assert said["columns not used"] == "width" and said["members not used"] == ".json 'tags' 1"


def test_samples_of_one_study_stay_in_one_split_and_may_have_labels_alone(tmp_path: Path) -> None:
    members = [member for n in range(16) for member in sample(f"{n}", n, study_id=f"s{n // 2}", edema=n % 2)]
    source = shard(tmp_path / "x.tar", members)
    flags = ("--split-by-patient", "train=0.5,test=0.5", "--out", tmp_path / "s")
    assert prepared.prepare("webdataset", "--source", source, *flags) == 0
    train, test = (prepared.split(tmp_path / "s", name) for name in ("train", "test"))
    assert len(train) + len(test) == 16 and not set(train.studies) & set(test.studies)
    assert set(train.texts) == {""} and train.manifest["source"]["without_text"] == 16


def test_a_txt_is_the_text_whatever_the_json_says(tmp_path: Path) -> None:
    """img2dataset writes the caption twice, and facts of the download."""
    facts = {"caption": "from json", "url": "https://example.org", "status": "success", "original_width": 640}
    source = shard(tmp_path / "00000.tar", sample("000000000", 1, "from txt", "jpg", **facts))
    assert prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").texts == ["from txt"]
    assert "(.txt is the text)" in prepared.notes(tmp_path / "s")["members not used"]


@pytest.mark.parametrize("form", [GNU, PAX, USTAR])
def test_long_names_in_every_tar_form(tmp_path: Path, form: int) -> None:
    """Longer than a header's 100 bytes; GNU and pax put such a name in a member of its own, ustar in a prefix."""
    key = f"{'d' * 90}/{'k' * 60}"
    long = "\u00e9" * 70 + "/" + "k" * 150 if form != USTAR else "e" * 140 + "/" + "k" * 90
    members = [*sample(key, 1, "One"), *sample(long, 2, "Two"), *sample("last", 3, "Three")]
    source = shard(tmp_path / "x.tar", members, form)
    assert prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    assert store.texts == ["One", "Two", "Three"]
    np.testing.assert_array_equal(store.image(2), prepared.stored(prepared.picture(3)))
    with tarfile.open(source) as archive:
        files = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    assert [(m.name, m.offset, m.size) for m in tar_index.members(source)] == files


def test_braces_name_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(8, 12):
        shard(tmp_path / f"x-{n:03d}.tar", sample(f"k{n}", n, f"Text {n}"))
    pattern = tmp_path / "x-{008..011}.tar"
    assert prepared.prepare("webdataset", "--source", pattern, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").texts == [f"Text {n}" for n in range(8, 12)]
    assert prepared.prepare("webdataset", "--source", tmp_path / "x-0{08,10}.tar", "--out", tmp_path / "t") == 0
    assert prepared.split(tmp_path / "t").texts == ["Text 8", "Text 10"]
    for wrong, said in (
        ("x-{000..011}.tar", "no such shard (8 of 12 are missing)"),
        ("x-{011..008}.tar", "is no range"),
        ("x-{0..999999999999}.tar", "is no range"),
        ("x-{0..9999}{0..9999}.tar", "more than 100000 shards"),
        ("none.tar", "no such shard"),
    ):
        assert prepared.prepare("webdataset", "--source", tmp_path / wrong, "--out", tmp_path / "u") == 2
        assert said in prepared.error_line(capsys)


def hostile(name: str, kind: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info, io.BytesIO()


def test_what_leaves_the_shard_is_counted_and_never_read(tmp_path: Path) -> None:
    source = tmp_path / "x.tar"
    with tarfile.open(source, "w") as archive:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            archive.addfile(*hostile(name, kind))
        files = [
            ("/abs.png", b"x"),
            ("a/../../up.png", b"x"),
            ("README", b"x"),
            ("a/._0001.png", b"x"),
            *sample("good", 1, "Good."),
            *sample("lonely", 2),
            ("no_image.txt", b"Text alone."),
            *sample("two", 3, "Two images."),
            ("two.jpg", b"x"),
            *sample("latin", 4),
            ("latin.txt", b"K\xf6rper"),
            *sample("json", 5),
            ("json.json", b'{"report": '),
            *sample("deep", 6),
            ("deep.json", b"[" * 100_000),
            *sample("list", 7),
            ("list.json", b"[1]"),
            *sample("keyed", 11),
            ("keyed.json", b'{"patient64741/study1/view1.jpg": "Lungs clear."}'),
            *sample("half", 8),
            ("half.json", rb'{"report": "\ud800"}'),
            *sample("long", 9),
            ("long.txt", b"x" * 1_000_001),
            ("cut.png", prepared.encoded(prepared.picture(10))[:150]),
            ("cut.txt", b"Cut."),
        ]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.split(tmp_path / "s").texts == ["Good."]
    assert prepared.skipped(tmp_path / "s") == {
        "a link or device in the shard": 3,
        "JSON that is no object of named fields": 4,
        "a file without key and type": 2,
        "a path that leaves the shard": 2,
        "text that is not UTF-8": 2,
        "empty text": 1,
        "sample with several images": 1,
        "sample without an image": 1,
        "text larger than 1 MB": 1,
        "truncated or damaged image": 1,
    }


def test_names_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "x.tar"
    with tarfile.open(source, "w", format=GNU, encoding="latin-1") as archive:
        for name, data in [("k\xf6.png", b"x"), *sample("good", 1, "Good.")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {"a name that is not UTF-8": 1}


def test_an_image_above_the_cap_is_counted_without_reading_it(tmp_path: Path) -> None:
    source = tmp_path / "x.tar"
    with source.open("wb") as file:  # a hole, not 300 MB on disk
        info = tarfile.TarInfo("big.png")
        info.size = 300_000_000
        file.write(info.tobuf())
        file.seek(info.size + -info.size % 512, 1)
        for name, data in sample("good", 1, "Good."):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.write(info.tobuf() + data + b"\0" * (-len(data) % 512))
        file.write(b"\0" * 1024)
    assert prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {"image larger than 256 MB": 1}


def _damaged(source: Path, at: int, data: bytes) -> Path:
    raw = bytearray(source.read_bytes())
    raw[at : at + len(data)] = data
    other = source.with_name(f"damaged-{at}.tar")
    other.write_bytes(raw)
    return other


def test_damaged_shards_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(source: Path) -> str:
        assert prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s") == 2
        return prepared.error_line(capsys)

    members = [*sample("a", 1, "A."), *sample("b", 2, "B.")]
    good = shard(tmp_path / "good.tar", members, USTAR)
    raw = good.read_bytes()
    second = next(m.offset for m in tar_index.members(good) if m.name == "b.png") - 512
    (tmp_path / "cut.tar").write_bytes(raw[: second + 700])
    assert f"is cut off after {second + 700} bytes" in line(tmp_path / "cut.tar")
    (tmp_path / "ends.tar").write_bytes(raw[:second])  # between two members, where other readers see the end
    assert "is cut off" in line(tmp_path / "ends.tar")
    (tmp_path / "joined.tar").write_bytes(raw + raw)
    assert "goes on behind its end" in line(tmp_path / "joined.tar")
    assert f"is damaged at byte {second}" in line(_damaged(good, second + 5, b"\xff"))
    assert "is not a tar archive" in line(prepared.write(tmp_path / "text.tar", ["x" * 2000]))
    (tmp_path / "empty.tar").write_bytes(b"")
    assert "is cut off after 0 bytes" in line(tmp_path / "empty.tar")
    (tmp_path / "zeros.tar").write_bytes(b"\0" * 10240)
    assert "holds no samples" in line(tmp_path / "zeros.tar")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(good, "a.png")
    assert "is compressed" in line(tmp_path / "x.tar.gz") and "gunzip" in line(tmp_path / "x.tar.gz")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "holds no .tar files" in line(folder)
    (folder / "x.tar.gz").write_bytes(b"")
    assert "unpack the compressed ones first" in line(folder)
    twice = shard(tmp_path / "twice.tar", [*members, *sample("a", 3, "Again.")])
    assert "samples 1 and 3 have one key" in line(twice)
    assert "no column found for the text: name it with --webdataset-text-column" in line(
        shard(tmp_path / "textless.tar", sample("a", 1, age=50))
    )
    outside = shard(tmp_path / "outside.tar", [("../a.png", b""), ("../a.txt", b"")])
    assert "none of the 2 samples can be used (a path that leaves the shard 2)" in line(outside)
    both = shard(tmp_path / "both.tar", sample("a", 1, caption="x", report="y"))
    assert "could each be the text" in line(both)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (124, b"99999999999\0"),  # far behind the end
        (124, b"\xff" * 12),  # GNU's negative numbers
        (124, b"\x80" + b"\xff" * 11),
        (124, b"00000z00000\0"),
        (156, b"L"),  # a long name, made of the image's bytes
        (156, b"x"),
    ],
)
def test_headers_that_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str], field: int, value: bytes) -> None:
    source = shard(tmp_path / "x.tar", [*sample("a", 1, "A."), *sample("b", 2, "B.")], USTAR)
    raw = bytearray(source.read_bytes())
    raw[field : field + len(value)] = value
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))
    source.write_bytes(raw)
    code = prepared.prepare("webdataset", "--source", source, "--out", tmp_path / "s")
    if value == b"L":  # the name says what it likes; the next file bears it
        assert code == 0 and prepared.skipped(tmp_path / "s")
    else:
        assert code == 2
        prepared.error_line(capsys)
