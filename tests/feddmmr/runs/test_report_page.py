"""The report as a browser shows it: headless Chromium finds its tables, and draws its plots."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feddmmr.runs.read import read_run
from feddmmr.runs.report import write_report

PLOTS = ["validation", "mixture", "results", "cold-items", "buckets", "spread", "loss", "traffic"]
TABLES = {"test": 3, "groups": 15, "settings": 30}  # and at least so many rows below the head
BLUE, RED, ORANGE = (0x1F, 0x4E, 0x8C), (0xC2, 0x3B, 0x3B), (0xD9, 0x82, 0x2B)


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium; .ci/run installs it where it may."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of all stages, alone in its folder: the PNG files are moved away."""
    home, dataset = runs
    out = tmp_path_factory.mktemp("page") / "report"
    path = write_report(read_run(home, "whole"), home, dataset, out)
    alone = out.parent / "alone.html"
    path.rename(alone)
    return alone


def ask(browser: str, page: Path, folder: Path, *options: str) -> str:
    """What the browser prints; it has a profile of its own and reaches no network."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--proxy-server=127.0.0.1:9"]
    command += ["--virtual-time-budget=5000", *options, page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return result.stdout


def picture(browser: str, page: Path, folder: Path, width: int, height: int) -> np.ndarray:
    path = folder / f"shot-{width}.png"
    ask(browser, page, folder, f"--window-size={width},{height}", f"--screenshot={path}")
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(pixels: np.ndarray, color: tuple[int, int, int]) -> Any:
    return (np.abs(pixels - color).max(-1) < 24).sum()


def test_the_browser_finds_tables_and_plots(browser: str, page: Path, tmp_path: Path) -> None:
    dom = ask(browser, page, tmp_path, "--dump-dom")
    assert re.findall(r'<figure id="plot-([\w-]+)"', dom) == PLOTS
    for name, least in TABLES.items():
        table = re.search(rf'<table id="{name}">(.*?)</table>', dom, re.DOTALL)
        assert table is not None
        assert table.group(1).count("<tr") - 1 >= least, name
    assert dom.count('<section class="card">') == 3


@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_shows_every_plot(browser: str, page: Path, tmp_path: Path, width: int) -> None:
    """Colours that only the plots have, over the length that they take; blank without them."""
    shown = picture(browser, page, tmp_path, width, 6000)
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r'<img src="[^"]*"', "<img ", page.read_text()))
    without = picture(browser, bare, tmp_path, width, 6000)
    for color in (RED, ORANGE, BLUE):
        assert near(shown, color) > near(without, color) + 40
    rows = (np.abs(shown - 255).max((1, 2)) > 24).nonzero()[0]
    plots = (shown.max(-1) - shown.min(-1) > 60).any(1).nonzero()[0]
    assert plots[-1] - plots[0] > 1200  # pixels from the first to the last colour
    assert rows[-1] > plots[-1]  # the settings come below
    # Nothing is cut off: the page is not wider than its window.
    assert (np.abs(shown[:, -3:] - 255) < 24).all()
