"""What an earlier attempt of `prepare` left: used as far as it is whole and of the same inputs, and no further."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hybridclip_jax.data import store_writer
from hybridclip_jax.data.formats import Source, Study
from hybridclip_jax.data.pixels import lazy
from hybridclip_jax.data.plan import Options
from hybridclip_jax.data.prepare import prepare
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.errors import StorageError, UserError

ROWS, STOP = 11, 9
RAW, JPEG = Options(), Options(encoding="jpeg")
both = pytest.mark.parametrize("options", [RAW, JPEG], ids=["raw", "jpeg"])


@pytest.fixture(autouse=True)
def files_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "SHARD_RECORDS", 3)


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    """Eleven rows; the image of the fourth is missing."""
    (tmp_path / "d").mkdir()
    for n in range(1, ROWS + 1):
        if n != 4:
            draw(tmp_path / "d" / f"{n}.png", n)
    return [
        Study(
            n,
            f"i{n}",
            f"s{n}",
            f"p{n % 4}",
            "",
            "PA",
            f"Report {n}.",
            {},
            {"Edema": 1.0},
            lazy(tmp_path / f"d/{n}.png"),
        )
        for n in range(1, ROWS + 1)
    ]


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)


def source_of(studies: list[Study], **changes: object) -> Source:
    made = Source(studies, len(studies), ("Edema",), "n", public_ids=False, synthetic=False, notes={})
    return dataclasses.replace(made, **changes)


def attempt(studies: list[Study], out: Path, options: Options = RAW, stop: int = 0, **changes: object) -> list[str]:
    """What it said. With `stop`, Ctrl-C comes when so many images are done."""
    said: list[str] = []

    def told(stage: str, done: int, total: int) -> None:
        if stage == "prepare" and done == stop:
            raise KeyboardInterrupt

    prepare(source_of(studies, **changes), out, options, format_name="test", progress=told, say=said.append)
    return said


def interrupted(studies: list[Study], out: Path, options: Options = RAW, stop: int = STOP) -> Path:
    with pytest.raises(KeyboardInterrupt):
        attempt(studies, out, options, stop)
    return out.with_name(out.name + ".partial")


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


def going_on(done: int, partial: Path) -> list[str]:
    return [f"going on behind {done} of {ROWS} images that an earlier attempt left in {partial}"]


@both
def test_goes_on_from_every_image(studies: list[Study], tmp_path: Path, options: Options) -> None:
    assert attempt(studies, tmp_path / "whole", options) == []
    for stop in (1, 3, 4, 7, 8, ROWS):
        partial = interrupted(studies, tmp_path / "s", options, stop)
        assert attempt(studies, tmp_path / "s", options) == going_on(stop, partial)
        assert contents(tmp_path / "s") == contents(tmp_path / "whole")
        assert sorted(os.listdir(tmp_path)) == ["d", "s", "whole"]
        shutil.rmtree(tmp_path / "s")


def test_progress_is_told_of_all_that_takes_time(studies: list[Study], tmp_path: Path) -> None:
    interrupted(studies, tmp_path / "s", stop=4)
    told: dict[str, list[tuple[int, int]]] = {}

    def note(stage: str, done: int, total: int) -> None:
        told.setdefault(stage, []).append((done, total))

    prepare(source_of(studies), tmp_path / "s", RAW, format_name="test", progress=note)
    assert told == {
        "scan": [(n, ROWS) for n in range(1, ROWS + 1)],
        "check": [(n, ROWS) for n in range(1, 5)],
        "prepare": [(n, ROWS) for n in range(5, ROWS + 1)],
    }


def test_an_image_is_decoded_once_over_all_attempts(studies: list[Study], tmp_path: Path) -> None:
    (tmp_path / "reads").mkdir()
    counted = [
        dataclasses.replace(study, load_image=functools.partial(counted_read, study.source_row, str(tmp_path)))
        for study in studies
    ]
    interrupted(counted, tmp_path / "s")
    attempt(counted, tmp_path / "s")
    assert sorted(len(path.read_text()) for path in (tmp_path / "reads").iterdir()) == [1] * ROWS


def counted_read(row: int, folder: str) -> PIL.Image.Image:
    """Reads an image as `lazy` does and leaves a mark each time."""
    with (Path(folder) / "reads" / str(row)).open("a") as file:
        file.write("x")
    return lazy(Path(folder) / f"d/{row}.png")()


CHANGES: dict[str, Callable[[Study], Study]] = {
    "text": lambda study: dataclasses.replace(study, text="Another."),
    "patient": lambda study: dataclasses.replace(study, patient="p9"),
    "label": lambda study: dataclasses.replace(study, labels={"Edema": None}),
    "licence": lambda study: dataclasses.replace(study, licence="CC0"),
    "row": lambda study: dataclasses.replace(study, source_row=50),
    "file": lambda study: dataclasses.replace(study, load_image=lazy(study.load_image.args[0].with_name("7.png"))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_row_starts_over(studies: list[Study], tmp_path: Path, what: str) -> None:
    partial = interrupted(studies, tmp_path / "s")
    others = [*studies[:5], CHANGES[what](studies[5]), *studies[6:]]
    [said] = attempt(others, tmp_path / "s")
    assert said == f"starting over: {partial} was made from another source, options, key or versions"
    attempt(others, tmp_path / "whole")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "options",
    [JPEG, Options(resize="crop"), Options(colour=True), Options(split="train"), Options(blank="negative")],
    ids=["encoding", "resize", "colour", "split", "blank"],
)
def test_other_options_start_over(studies: list[Study], tmp_path: Path, options: Options) -> None:
    interrupted(studies, tmp_path / "s")
    [said] = attempt(studies, tmp_path / "s", options)
    assert said.startswith("starting over: ")
    attempt(studies, tmp_path / "whole", options)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_another_key_or_namespace_starts_over(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(studies, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        attempt(studies, tmp_path / "s", stop=3, namespace="m")
    monkeypatch.setenv("HYBRIDCLIP_PATIENT_KEY", "another key of the same user")
    [said] = attempt(studies, tmp_path / "s")
    assert said.startswith("starting over: ")


@both
@pytest.mark.parametrize("row", [1, 2, 5, 8, 9])
def test_an_image_that_changed_meanwhile_is_read_again(
    studies: list[Study], tmp_path: Path, options: Options, row: int
) -> None:
    interrupted(studies, tmp_path / "s", options)
    draw(tmp_path / "d" / f"{row}.png", 100)
    attempt(studies, tmp_path / "s", options)
    attempt(studies, tmp_path / "whole", options)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@both
def test_a_missing_image_that_has_come_is_taken(studies: list[Study], tmp_path: Path, options: Options) -> None:
    interrupted(studies, tmp_path / "s", options)
    draw(tmp_path / "d" / "4.png", 4)
    attempt(studies, tmp_path / "s", options)
    assert len(Store.open(str(tmp_path / "s"))) == ROWS


@pytest.mark.parametrize("comes_back", [False, True])
def test_what_could_not_be_read_is_tried_again(studies: list[Study], tmp_path: Path, comes_back: bool) -> None:
    """The disk, and not the file, was at fault, so that nothing of the file has changed."""
    faulty = [
        dataclasses.replace(study, load_image=functools.partial(read_where_the_disk_is, tmp_path, study.source_row))
        for study in studies
    ]
    partial = interrupted(faulty, tmp_path / "s")
    if comes_back:
        (tmp_path / "disk").touch()
    assert attempt(faulty, tmp_path / "s") == going_on(3 if comes_back else STOP, partial)
    reasons = Store.open(str(tmp_path / "s")).manifest["source"]["skipped"]
    assert reasons == {"missing image file": 1} | ({} if comes_back else {"image file cannot be read (disk)": 1})
    attempt(faulty, tmp_path / "whole")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def read_where_the_disk_is(folder: Path, row: int) -> PIL.Image.Image:
    """Image 5 is on a disk that is there when `folder` has the file "disk"."""
    if row == 5 and not (folder / "disk").exists():
        raise RecordError("image file cannot be read (disk)")
    return lazy(folder / f"d/{row}.png")()


def test_another_version_of_a_library_that_decodes_starts_over(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(studies, tmp_path / "s")
    (tmp_path / "site" / "python_gdcm-3.0.24.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "python_gdcm-3.0.24.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: python-gdcm\nVersion: 3.0.24\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    [said] = attempt(studies, tmp_path / "s")
    assert said == f"starting over: {partial} was made from another source, options, key or versions"
    versions = Store.open(str(tmp_path / "s")).manifest["versions"]
    assert versions["python-gdcm"] == "3.0.24"
    assert versions["pydicom"] == importlib.metadata.version("pydicom")


@both
def test_damage_to_what_was_left_never_reaches_the_store(
    studies: list[Study], tmp_path: Path, options: Options
) -> None:
    """Each file cut, flipped or gone, as after a power cut: what is whole is used, the rest made again."""
    attempt(studies, tmp_path / "whole", options)
    left = interrupted(studies, tmp_path / "s", options)
    kept = tmp_path / "kept"
    left.rename(kept)
    places = np.random.default_rng(0)
    for path in sorted(kept.iterdir()):
        size = path.stat().st_size
        for fault in ("gone", "empty", *(("cut", "flipped") * 2)):
            if fault == "flipped" and path.suffix in (".npy", ".array_record") and path.name < "images-00002":
                continue  # a sealed file, on the disk before the journal said so, is trusted: `verify` finds it
            shutil.copytree(kept, left)
            data = bytearray(path.read_bytes())
            place = int(places.integers(size))
            if fault == "gone":
                (left / path.name).unlink()
            elif fault == "flipped":
                data[place] ^= 1
                (left / path.name).write_bytes(data)
            else:
                (left / path.name).write_bytes(data[: place if fault == "cut" else 0])
            attempt(studies, tmp_path / "s", options)
            assert contents(tmp_path / "s") == contents(tmp_path / "whole"), (path.name, fault, place)
            shutil.rmtree(tmp_path / "s")


@both
def test_an_end_while_the_table_is_written(studies: list[Study], tmp_path: Path, options: Options) -> None:
    """All images are done then, and the last file is sealed though it is not full."""

    def block(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("prepare", ROWS):
            (tmp_path / "s.partial" / "table.parquet").mkdir()

    attempt(studies, tmp_path / "whole", options)
    for change in (False, True):
        with pytest.raises(StorageError, match="cannot write the store: Is a directory; what is done is kept"):
            prepare(source_of(studies), tmp_path / "s", options, format_name="test", progress=block)
        if change:
            draw(tmp_path / "d" / "11.png", 100)
            attempt(studies, tmp_path / "other", options)
        said = attempt(studies, tmp_path / "s", options)
        assert said == going_on(ROWS if not change else 10, tmp_path / "s.partial")
        assert contents(tmp_path / "s") == contents(tmp_path / ("other" if change else "whole"))
        shutil.rmtree(tmp_path / "s")


def test_an_error_of_the_source_leaves_nothing(studies: list[Study], tmp_path: Path) -> None:
    def unreadable() -> list[Study]:
        (tmp_path / "d" / "page.png").write_text("no image")
        return [dataclasses.replace(study, load_image=lazy(tmp_path / "d/page.png")) for study in studies]

    with pytest.raises(UserError, match="none of the 11 rows could be kept"):
        attempt(unreadable(), tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == ["d"]


def test_nothing_of_a_patient_is_in_what_is_left(studies: list[Study], tmp_path: Path) -> None:
    named = [dataclasses.replace(study, patient="JaneDoe", text=f"Canary {study.source_row}") for study in studies]
    partial = interrupted(named, tmp_path / "s")
    left = b"".join(path.read_bytes() for path in partial.iterdir())
    assert b"JaneDoe" not in left
    assert b"Canary" not in left
    assert b".png" not in left
