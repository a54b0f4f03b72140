"""Paths of tables stay inside the folder of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridclip_jax.data.formats.paths import inside, suffix_in_use


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.png", "a/b.png"),
        ("./a//b.png", "a/b.png"),
        ("a/../b.png", "b.png"),
        ("../root/a.png", "a.png"),
        ("..a/b..png", "..a/b..png"),
        (" a.png", " a.png"),
        ("ü/日.png", "ü/日.png"),
    ],
)
def test_names_inside(tmp_path: Path, name: str, expected: str) -> None:
    assert inside(tmp_path / "root", name) == tmp_path / "root" / expected


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../a.png", "a/../../b.png", "../root2/a.png", "/etc/passwd", "a\0b"]
)
def test_names_outside(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path / "root", name) is None


def test_an_absolute_path_counts_by_where_it_lies(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert inside(root, str(root / "a" / "b.png")) == root / "a" / "b.png"
    assert inside(root, str(tmp_path / "other" / "b.png")) is None
    assert inside(Path("/"), "etc/passwd") == Path("/etc/passwd")


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside(Path("root"), "a/b.png") == Path("root/a/b.png")
    assert inside(Path("."), "a.png") == Path("a.png")
    assert inside(Path("."), "../a.png") is None


def test_the_first_file_found_tells_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "b.c.png").touch()
    (tmp_path / "d.jpg").touch()
    stems = [tmp_path / name for name in ("a", "b.c", "d")]
    assert suffix_in_use(stems, (".jpg", ".png")) == ".png"
    assert suffix_in_use(stems[:1], (".jpg", ".png")) == ".jpg"
    assert suffix_in_use([], (".jpg", ".png")) == ".jpg"
