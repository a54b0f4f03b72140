"""`prepare --format openi` on reports and images as the collection ships them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prepared
import pytest

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def report(
    number: int,
    images: tuple[str, ...] = (),
    *,
    findings: str = "",
    impression: str = "",
    comparison: str = "None.",
    indication: str = "Chest pain, XXXX-year-old.",
    major: tuple[str, ...] = (),
    automatic: tuple[str, ...] = (),
) -> str:
    """One report as the collection has it, blanks between elements included."""

    def part(label: str, text: str) -> str:
        return f'<AbstractText Label="{label}">{text}</AbstractText>' if text else f'<AbstractText Label="{label}"/>'

    parts = "\n\n".join(
        part(label, text)
        for label, text in (
            ("COMPARISON", comparison),
            ("INDICATION", indication),
            ("FINDINGS", findings),
            ("IMPRESSION", impression),
        )
    )
    mesh = "".join(f"<major>{name}</major>" for name in major)
    mesh += "".join(f"<automatic>{name}</automatic>" for name in automatic)
    pictures = "".join(
        f'<parentImage id="{name}">\n<figureId>F{i}</figureId>\n<caption> PA and lateral XXXX </caption>\n'
        f"<panel><url>/hadoop/storage/radiology/extract/{name}.jpg</url></panel></parentImage>"
        for i, name in enumerate(images, start=1)
    )
    return (
        f'{HEAD}<eCitation>\n   <meta type="rr"/>\n   <uId id="CXR{number}"/>\n   <pmcId id="{number}"/>\n'
        "   <licenseType>open-access</licenseType>\n"
        "   <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>\n"
        f"   <MedlineCitation><Article><Abstract>{parts}</Abstract></Article></MedlineCitation>\n"
        f"   <MeSH>{mesh}</MeSH>\n   {pictures}\n</eCitation>\n"
    )


def write(folder: Path, reports: dict[int, str | bytes]) -> None:
    place = folder / "ecgen-radiology"
    place.mkdir(parents=True)
    for number, text in reports.items():
        (place / f"{number}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())


def names(number: int, count: int = 2) -> tuple[str, ...]:
    return tuple(f"CXR{number}_IM-{number:04d}-{view}001" for view in range(1, count + 1))


def images(folder: Path, *ids: str) -> None:
    for seed, name in enumerate(ids):
        prepared.save(folder / "NLMCXR_png" / f"{name}.png", seed)


def test_sections_images_labels_and_order(tmp_path: Path) -> None:
    """Files come in the order of their numbers, not 1, 10, 2; each image of a report is a record with its text."""
    write(
        tmp_path,
        {
            10: report(10, names(10), impression="Stable &lt; 2 cm nodule.", major=("Nodule/lung", "normal")),
            2: report(2, names(2, 1), findings="Clear lungs.", major=("no indexing",)),
            1: report(1, names(1, 1), findings="Heart big.", impression="Cardiomegaly.", major=("Cardiomegaly/mild",)),
        },
    )
    images(tmp_path, *names(1, 1), *names(2, 1), *names(10))
    assert prepared.prepare("openi", "--source", tmp_path, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s")
    # The default pairs findings and impression, of which one may be missing.
    assert store.texts == ["Heart big.\n\nCardiomegaly.", "Clear lungs.", *["Stable < 2 cm nodule."] * 2]
    assert store.sections["findings"] == ["Heart big.", "Clear lungs.", "", ""]
    assert store.sections["comparison"] == ["None."] * 4
    np.testing.assert_array_equal(store.labels["normal"], [0, np.nan, 1, 1])
    assert len(set(store.patients)) == len(set(store.studies)) == 3
    assert set(store.licences) == {"CC BY-NC-ND 4.0"}
    assert store.manifest["ids"]["namespace"] == "openi"
    for row in range(4):
        np.testing.assert_array_equal(store.image(row), prepared.stored(prepared.picture(row)))


def test_the_whole_report_has_each_part_behind_its_label(tmp_path: Path) -> None:
    write(tmp_path, {1: report(1, names(1, 1), impression="No active disease.", findings="")})
    images(tmp_path, *names(1, 1))
    for policy, text in (
        ("report", "COMPARISON: None.\nINDICATION: Chest pain, XXXX-year-old.\nIMPRESSION: No active disease."),
        ("impression", "No active disease."),
    ):
        out = tmp_path / policy
        assert prepared.prepare("openi", "--source", tmp_path, "--text", policy, "--out", out) == 0
        assert prepared.split(out).texts == [text]


def test_automatic_headings_are_not_labels(tmp_path: Path) -> None:
    write(tmp_path, {1: report(1, names(1, 1), impression="Fine.", automatic=("normal",))})
    images(tmp_path, *names(1, 1))
    assert prepared.prepare("openi", "--source", tmp_path, "--out", tmp_path / "s") == 0
    assert np.isnan(prepared.split(tmp_path / "s").labels["normal"]).all()
    assert "MeSH/automatic" in prepared.notes(tmp_path / "s")["not used"]


def test_folders_may_be_named(tmp_path: Path) -> None:
    write(tmp_path, {1: report(1, names(1, 1), impression="Fine.")})
    images(tmp_path, *names(1, 1))
    (tmp_path / "ecgen-radiology").rename(tmp_path / "xml")
    (tmp_path / "NLMCXR_png").rename(tmp_path / "png")
    named = ("--reports", tmp_path / "xml", "--images", tmp_path / "png")
    assert prepared.prepare("openi", "--source", tmp_path, *named, "--out", tmp_path / "s") == 0
    assert len(prepared.split(tmp_path / "s")) == 1


def test_reports_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    good = report(1, names(1, 1), impression="Fine.")
    entity = good.replace("<eCitation>", '<!DOCTYPE e [<!ENTITY a "aaaa">]><eCitation>', 1)
    write(
        tmp_path,
        {
            1: "\ufeff" + good,
            2: report(2, (), impression="No image."),
            3: good[:300],
            4: entity,
            5: good.encode("utf-16"),
            6: good.replace("No", "N\xf3").replace("Fine", "F\xefne").encode("latin-1"),
            7: report(7, ("../../secret",), impression="Outside."),
            8: good.replace('<uId id="CXR1"/>', ""),
            9: HEAD + "<a>" * 300_000,
            10: report(10, names(10), impression="One image is missing."),
            11: report(11, names(11, 1), findings="", impression=""),
            12: good + " " * 1_000_000,
            13: "",
            14: report(14, names(14, 1), impression="XXXX."),
        },
    )
    images(tmp_path, *names(1, 1), *names(10, 1), *names(11, 1), *names(14, 1))
    assert prepared.prepare("openi", "--source", tmp_path, "--out", tmp_path / "s") == 0
    assert prepared.skipped(tmp_path / "s") == {
        "damaged XML": 3,
        "report that is not UTF-8": 2,
        "XML with a document type": 1,
        "a placeholder in place of a text": 1,
        "missing image file": 1,
        "no findings or impression": 1,
        "path outside the images folder": 1,
        "report larger than 1 MB": 1,
        "report without an image": 1,
        "report without uId": 1,
    }
    assert len(prepared.split(tmp_path / "s")) == 2


def test_what_the_user_can_mend_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared.prepare("openi", "--source", tmp_path / "none", "--out", tmp_path / "s") == 2
    assert "no such folder" in prepared.error_line(capsys)
    assert prepared.prepare("openi", "--source", tmp_path, "--out", tmp_path / "s") == 2
    assert "holds no XML reports" in prepared.error_line(capsys)
