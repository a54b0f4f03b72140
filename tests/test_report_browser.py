"""The pages in a real browser, at the widths of a phone and a desk: they fit, load nothing and say nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import PIL.Image
import pytest
from report_files import make_evaluation, make_run

from hybridclip_jax.report import evaluation, render, side_by_side

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
LONG = "Enlarged Cardiomediastinum" * 2


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind, with names that no line holds."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [make_run(folder / f"{name}-{'a-long-run-name_' * 6}", label=LONG) for name in "ab"]
    set_alike = json.loads((runs[1] / "config.json").read_text())
    (runs[1] / "config.json").write_text(json.dumps(set_alike | {"seed": 1, "note": LONG * 4}))
    return {
        "run": render(runs[0]),
        "side_by_side": side_by_side.render(runs, folder / "side.html"),
        "evaluation": evaluation.render(make_evaluation(folder / "out", note=LONG * 4), unverified=True),
    }


def chromium(page: Path, *flags: str) -> str:
    """What the browser says on its console. No name is looked up: it would ask its maker for updates."""
    profile = page.with_name(f"profile-of-{page.stem}")
    every = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    command = ["chromium", *every, "--host-resolver-rules=MAP * ~NOTFOUND", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr


def framed(page: Path, folder: Path, width: int, height: int) -> Path:
    """A page that shows `page` in a frame of this width: chromium makes no window under 500 px."""
    text = page.read_text(encoding="utf-8").replace("<details>", "<details open>")
    measure = "f=document.querySelector('iframe');f.onload=()=>{let e=f.contentDocument.documentElement;"
    measure += "console.log('SIZE',[f.contentWindow.innerWidth,e.scrollWidth].join('x'))}"
    probe = folder / "probe.html"
    probe.write_text(
        "<meta charset=utf-8><style>body{margin:0}</style>"
        f"<iframe style='border:0;width:{width}px;height:{height}px' srcdoc=\"{escape(text)}\"></iframe>"
        f"<script>{measure}</script>",
        encoding="utf-8",
    )
    return probe


def asked(log: Path) -> list[str]:
    """The addresses that a page asked for, by the browser's log of its network; its own questions have no origin."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    told = [event["params"] for event in events if {"url", "initiator"} <= event.get("params", {}).keys()]
    return [one["url"] for one in told if one["initiator"] != "not an origin" and one["url"].startswith(("http", "ws"))]


@pytest.mark.parametrize("kind", ["run", "side_by_side", "evaluation"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_is_drawn_and_loads_nothing(
    pages: dict[str, Path], tmp_path: Path, kind: str, width: int
) -> None:
    shot, log = tmp_path / f"{kind}-{width}.png", tmp_path / "net.json"
    flags = (f"--window-size={max(width, 500)},1600", "--hide-scrollbars", f"--screenshot={shot}")
    console = chromium(framed(pages[kind], tmp_path, width, 1600), *flags, f"--log-net-log={log}")
    size = re.search(r"SIZE (\d+)x(\d+)", console)
    assert size is not None
    assert int(size[1]) == width
    assert int(size[2]) <= width, "the page is wider than its window"
    assert console.count("CONSOLE") == 1, "it says more than its size"
    assert asked(log) == []
    with PIL.Image.open(shot) as image:
        darkest, lightest = image.convert("L").crop((0, 0, width, 1600)).getextrema()
    assert darkest < 60 and lightest > 250, "dark ink on light paper"


def test_the_log_of_the_browser_would_name_a_request(tmp_path: Path) -> None:
    page, log = tmp_path / "loud.html", tmp_path / "net.json"
    page.write_text("<img src='http://127.0.0.1:9/picture.png'><script>console.log('x')</script>")
    console = chromium(page, "--dump-dom", f"--log-net-log={log}")
    assert "CONSOLE" in console
    assert asked(log) == ["http://127.0.0.1:9/picture.png"]


def test_in_the_dark_the_paper_is_dark(pages: dict[str, Path], tmp_path: Path) -> None:
    probe, shots = framed(pages["run"], tmp_path, 800, 1200), []
    for scheme in ("0", "1"):  # Blink's numbers of dark and light
        shot = tmp_path / f"{scheme}.png"
        chromium(
            probe, "--window-size=800,1200", f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}"
        )
        with PIL.Image.open(shot) as image:
            shots.append(image.convert("L").getpixel((4, 4)))
    assert isinstance(shots[0], int) and isinstance(shots[1], int)
    assert shots[0] < 60 < 200 < shots[1]
