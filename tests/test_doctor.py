"""`hybridclip doctor` as it is called: tables, files, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from planted import clouds, crop, prepared
from test_report import Page

from hybridclip_jax import cli
from hybridclip_jax.errors import run_or_exit


def doctor(*arguments: object) -> int:
    parsed = cli.parse(["doctor", *map(str, arguments)])
    return run_or_exit(lambda: parsed.run(parsed))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training store, and a test store with a near copy and a failed image."""
    folder = tmp_path_factory.mktemp("stores")
    names = {"text": "Clear lungs in Mr Doe {}.", "patient": "Doe^{}", "Edema": "{}", "findings": "Clear {}."}

    def row(n: int, image: np.ndarray) -> dict[str, object]:
        cells: dict[str, object] = {name: cell.format(n) for name, cell in names.items()}
        return {**cells, "image": image, "Edema": n % 2}

    train = [row(n, clouds(n)) for n in range(8)]
    test = [row(20, clouds(20)), row(21, crop(clouds(2), 0.1, 0)), row(22, np.zeros((320, 320), np.uint8))]
    flags = ("--text", "findings")
    return prepared(folder / "train", train, *flags), prepared(folder / "test", test, *flags)


def test_sound_stores_pass_with_a_list_to_look_at(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = stores
    files = tmp_path / "a.json", tmp_path / "a.html"
    assert doctor(train, test, "--json", files[0], "--html", files[1], "--deep") == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.split("\n")]
    assert f"{train}:all 8 8 8 0 0 0 0 0 0" in said
    assert f"{test}:all 3 3 3 0 1 1 0 0 0" in said
    assert f"{train}:all and {test}:all 0 0 0 1 0" in said
    assert any(line.startswith(f"{train}:all row 3 {test}:all row 2 0.9") for line in said)
    audit = json.loads(files[0].read_text())
    assert audit["problems"] == []
    assert len(audit["pairs"][0]["near_copies"]) == 1
    first = [path.read_bytes() for path in files]
    assert doctor(train, test, "--json", files[0], "--html", files[1], "--deep") == 0
    assert [path.read_bytes() for path in files] == first


def test_a_shared_patient_or_image_is_exit_code_2_after_everything_is_said(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, _ = stores
    rows = [
        {"image": clouds(5), "text": "Other.", "patient": "Roe^1"},
        {"image": clouds(40), "text": "More.", "patient": "Doe^3"},
    ]
    other = prepared(tmp_path / "other", rows)
    assert doctor(train, other, "--quick", "--json", tmp_path / "a.json") == 2
    out, err = capsys.readouterr()
    assert "near copies: not looked for" in out
    assert err == (
        f"error: {train}:all and {other}:all share 1 patient and 1 image: mend the stores, or leave one out of the "
        "comparison\n"
    )
    assert json.loads((tmp_path / "a.json").read_text())["near_copies"] == {"looked_for": False}


def test_nothing_that_is_said_or_written_names_a_patient(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(*stores, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    out, err = capsys.readouterr()
    for text in (out, err, (tmp_path / "a.json").read_text(), (tmp_path / "a.html").read_text()):
        text = re.sub(r"data:image/jpeg;base64,[^\"]*", "", text)
        assert not re.search(r"Doe|Clear|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", text)


def test_splits_of_one_phantom_store_are_compared(phantom_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(phantom_store, "--quick") == 0
    out = capsys.readouterr().out
    names = sorted(f"{phantom_store}:{split}" for split in ("train", "val"))
    assert re.search(rf"^{names[0]} and {names[1]} +0 +0 +0 +- +", out, re.MULTILINE)
    assert "synthetic data" in out
    assert re.search(r"^views of .*: PA 100%$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such store"),
        (["{store}:tset"], "has no split 'tset'"),
        (["{store}", "--json", "{tmp}/none/a.json"], "no such folder as"),
        (["{store}", "--quick", "--html", "{tmp}"], "is a folder: name the file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = doctor(*(word.format(store=stores[0], tmp=tmp_path) for word in arguments))
    err = capsys.readouterr().err
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert said in err


def test_the_page_holds_everything_itself(stores: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    assert doctor(*stores, "--html", path) == 0
    page = Page(path.read_text(encoding="utf-8"))
    for said in ("Audit of stores", "2 splits, 11 images", "Near copies", "Text length", "Edema 4 4 0", "all zero 1"):
        assert said in page.text, said
    sources = [attributes["src"] or "" for tag, attributes in page.elements if "src" in attributes]
    assert len(sources) == 2 + 6 + 3, "a near copy's two and some of each split"
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert policy.endswith("img-src data:")
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "form"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_chromium_the_pictures_are_drawn_and_the_console_is_silent(
    stores: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.html"
    doctor(*stores, "--html", path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=800,2400"]
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert shot.stat().st_size > 20_000
