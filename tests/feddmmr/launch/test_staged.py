"""What is submitted of an app's folder makes Flower's bundle of the whole folder."""

from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from feddmmr.launch.bundle import staged

INCLUDE = 'fab-include = ["nodes/**", "/README.md"]'


def write_app(folder: Path, rules: str) -> Path:
    """An app beside an environment and other things."""
    files = {
        "pyproject.toml": f"""
            [project]
            name = "app"
            version = "1.0.0"
            dependencies = ["flwr>=1.40"]
            [tool.flwr.app]
            publisher = "us"
            {rules}
            [tool.flwr.app.components]
            serverapp = "nodes.app:app"
            clientapp = "nodes.app:app"
        """,
        ".gitignore": "*.toml.md\n",
        "README.md": "An app.",
        "nodes/__init__.py": "",
        "nodes/app.py": "app = None",
        "nodes/deep/left.toml.md": "ignored",
        "nodes/deep/more.py": "",
        "nodes/__pycache__/app.cpython-311.pyc": "",
        "other/module.py": "",
        ".venv/lib/module.py": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_bundle_is_the_same_without_the_rest_of_the_folder(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", INCLUDE)
    copy = staged(app, tmp_path / "copy")
    assert copy != app
    assert {path.name for path in copy.iterdir()} == {
        *("nodes", "README.md", "pyproject.toml", ".gitignore")
    }
    assert not list(copy.rglob("*.pyc"))
    assert build_fab_from_disk(copy) == build_fab_from_disk(app)


@pytest.mark.parametrize(
    "rules",
    [
        *("", "fab-include = []", 'fab-include = ["**/*.py"]', 'fab-include = ["nodes/deep/**"]'),
        *(
            'fab-include = ["../**"]',
            'fab-include = ["none/**"]',
            "fab-include = 7",
            "fab-include = 7 = 8",
        ),
        f'{INCLUDE}\nfab-exclude = ["nodes/deep/**"]',
    ],
)
def test_what_is_not_sure_is_left_to_flower(tmp_path: Path, rules: str) -> None:
    app = write_app(tmp_path / "app", rules)
    assert staged(app, tmp_path / "copy") == app
    assert staged(tmp_path / "nothing", tmp_path / "copy") == tmp_path / "nothing"
