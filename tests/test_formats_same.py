"""The same images and texts give the same records whichever layout they come in, and no layout leaks a name."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import prepared
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_formats_openi as openi
import test_formats_padchest as padchest

from hybridclip_jax.data.store import Store

COUNT = 4
CANARY = "Zacharias"  # in every image name, patient and text, sound or not


def text(number: int) -> str:
    return f"{CANARY} {number}: no edema, \u201cclear\u201d lungs."


def table(folder: Path, name: str, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> Path:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    (folder / name).write_text(file.getvalue(), encoding="utf-8", newline="")
    return folder / name


def names(folder: Path, where: str = "images") -> list[str]:
    """Saves the images; the last name has no file behind it."""
    found = [f"{where}/{CANARY}_{number}.png" for number in range(COUNT)]
    for number, name in enumerate(found):
        prepared.save(folder / name, number)
    return [*found, f"{where}/{CANARY}_gone.png"]


def as_csv(folder: Path) -> list[object]:
    rows: list[tuple[object, ...]] = [(name, text(n), f"{CANARY}{n}") for n, name in enumerate(names(folder))]
    return ["csv", "--source", table(folder, "t.csv", ("image", "report", "patient"), rows)]


def as_plip(folder: Path) -> list[object]:
    rows: list[tuple[object, ...]] = [(n, name, text(n)) for n, name in enumerate(names(folder))]
    rows += [(9, f"../{CANARY}.png", text(9))]
    return ["plip", "--source", table(folder, "t.csv", ("", "image", "caption"), rows), "--no-colour"]


def as_roco(folder: Path) -> list[object]:
    rows: list[tuple[object, ...]] = [(n, Path(name).name, text(n)) for n, name in enumerate(names(folder))]
    return ["roco", "--source", table(folder, "roco.csv", ("id", "name", "caption"), rows), "--no-colour"]


def as_openi(folder: Path) -> list[object]:
    images = [Path(name).stem for name in names(folder, "NLMCXR_png")]
    reports: dict[int, str | bytes] = {n: openi.report(n, (name,), findings=text(n)) for n, name in enumerate(images)}
    openi.write(folder, {**reports, 90: f"<{CANARY}", 91: openi.report(91, (f"../{CANARY}",), findings=text(91))})
    return ["openi", "--source", folder]


def as_padchest(folder: Path) -> list[object]:
    rows = [
        padchest.row(n, ImageID=Path(name).name, ImageDir="images", PatientID=f"{CANARY}{n}", Report=text(n))
        for n, name in enumerate(names(folder))
    ]
    rows += [padchest.row(9, ImageID=f"{CANARY}.png", Labels=f"['{CANARY}'", Report=text(9))]
    return ["padchest", "--source", padchest.write(folder, rows)]


def as_webdataset(folder: Path) -> list[object]:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for number, name in enumerate(names(folder)):
            patient = json.dumps({"report": text(number), "patient": f"{CANARY}{number}"}).encode()
            image = (folder / name).read_bytes() if number < COUNT else b"no image"
            key = f"{CANARY}_{number}"
            for member, data in ((f"{key}.png", image), (f"{key}.json", patient), (f"{key}.{CANARY}.png", b"")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo(f"/{CANARY}/x.png")
        archive.addfile(info)
    return ["webdataset", "--source", folder / "x.tar"]


def as_parquet(folder: Path) -> list[object]:
    images: list[dict[str, object]] = [{"bytes": (folder / n).read_bytes(), "path": n} for n in names(folder)[:COUNT]]
    images += [{"bytes": None, "path": f"{CANARY}.png"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind), "report": [text(n) for n in range(COUNT + 1)]}
    pq.write_table(pa.table({**columns, "patient": [f"{CANARY}{n}" for n in range(COUNT + 1)]}), folder / "x.parquet")
    return ["parquet", "--source", folder / "x.parquet"]


LAYOUTS: tuple[Callable[[Path], list[object]], ...] = (
    as_csv,
    as_plip,
    as_roco,
    as_openi,
    as_padchest,
    as_webdataset,
    as_parquet,
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.removeprefix("as_"))
def test_same_records_and_no_name_leaks(
    layout: Callable[[Path], list[object]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    name, *flags = layout(folder)
    out = tmp_path / "s"
    assert prepared.prepare(str(name), *flags, "--out", out) == 0
    store = Store.open(str(out))
    assert store.texts == [text(number) for number in range(COUNT)]
    for number in range(COUNT):
        assert (store.image(number) == prepared.stored(prepared.picture(number))).all()
    assert sum(prepared.skipped(out).values()) >= 1

    printed = capfd.readouterr()
    for said in (printed.out, printed.err, *(path.read_text() for path in out.glob("*.json*"))):
        assert CANARY.lower() not in said.lower()
    ids = {*store.ids, *store.studies, *store.patients}
    assert all(len(value) == 32 for value in ids)
