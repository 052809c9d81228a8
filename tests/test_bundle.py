"""The bundle as Flower builds it and Flower Hub takes it: format 1, licence, a page."""

import io
import re
import tomllib
import zipfile

import pytest
from flwr.cli.build import build_fab_from_disk

from tests.support.paths import ROOT

LARGEST = 10 * 2**20  # bytes that Flower takes


@pytest.fixture(scope="module")
def bundle() -> dict[str, bytes]:
    """What is in it, by path."""
    content = build_fab_from_disk(ROOT)
    assert len(content) < LARGEST
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_has_the_apps_the_licence_and_the_page_and_nothing_else(
    bundle: dict[str, bytes],
) -> None:
    assert bundle["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert bundle["README.md"] == (ROOT / "README.md").read_bytes()
    rooms = {name.split("/")[0] for name in bundle if "/" in name}
    assert rooms == {"client_app", "server_app", "shared_model", ".info"}
    for room in ("client_app", "server_app", "shared_model"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.py")}
        assert files <= set(bundle)


def test_it_says_which_flower_it_needs(bundle: dict[str, bytes]) -> None:
    """Format 1: a range with a lower bound, and the version that it was tried with."""
    config = tomllib.loads(bundle["pyproject.toml"].decode())
    app = config["tool"]["flwr"]["app"]
    assert app["fab-format-version"] == 1
    assert config["project"]["license"] == {"file": "LICENSE"}
    (flower,) = (d for d in config["project"]["dependencies"] if d.startswith("flwr"))
    assert ">=" in flower
    assert re.fullmatch(r"\d+\.\d+\.\d+", app["flwr-version-target"])


def test_no_picture_of_the_page_lies_outside_it(bundle: dict[str, bytes]) -> None:
    """A bundle holds no pictures: what the page shows has to be text, or at an address."""
    page = bundle["README.md"].decode()
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img[^>]+src=[\"']([^\"']+)", page)
    assert all("".join(one).startswith("https://") for one in shown)
