"""One changed byte, half a file or none: refused before it is used, and the file is named.

Wrong acceptances are a damaged file of a dataset that opens, a damaged checkpoint or manifest that
a run goes on with, and a run that ends in other bytes because a node's cache was damaged.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app import node
from client_app.data.content import open_content
from client_app.data.dataset import open_dataset
from client_app.frozen import read_frozen
from feddmmr.launch.in_process import run_in_process
from server_app.record.manifest_file import unsealed
from server_app.rounds.loop import StageRun
from shared_model.errors import DataError, FedDMMRError, ManifestError
from shared_model.fingerprint import arrays_sha256
from shared_model.model.recommender import Arrays
from shared_model.seeds import stable_hash
from tests.conftest import CutError
from tests.support.staged import SETTINGS, write_mixed

DATASET = ["dataset.json", "interactions.parquet", "items.csv", "features.safetensors"]
ARRAYS = ["user_keys", "indptr", "items", "cold_target", "cold_length"]
DATASET += [f"arrays/{name}.npy" for name in ARRAYS] + ["arrays/user_ids.parquet"]


def damages(path: Path) -> Iterator[bytes]:
    """The file with one bit of another byte, at its ends, header, middle and five drawn places;
    half of it; nothing."""
    content = path.read_bytes()
    drawn = np.random.default_rng(stable_hash("corruption", path.name)).integers(
        len(content), size=5
    )
    for place in {0, 9, 70, len(content) // 2, len(content) - 1, *drawn.tolist()}:
        broken = bytearray(content)
        broken[place] ^= 1
        yield bytes(broken)
    yield content[: len(content) // 2]
    yield b""


def assert_one_line_about(error: FedDMMRError, path: Path) -> None:
    assert "\n" not in str(error)
    assert str(path) in str(error)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("corruption") / "dataset")


@pytest.mark.parametrize("file", DATASET)
def test_a_damaged_file_of_a_dataset_is_refused(dataset: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} == set(DATASET)
    path = folder / file
    whole = path.read_bytes()
    for broken in damages(path):
        path.write_bytes(broken)
        with pytest.raises(DataError) as raised:
            open_dataset(folder)
        assert_one_line_about(raised.value, path)
    path.write_bytes(whole)
    assert open_dataset(folder).num_users == 24


def test_features_are_checked_when_they_are_read(dataset: Path, tmp_path: Path) -> None:
    """A node opens its dataset at once and its features in Stage 2, which may be hours later."""
    opened = open_dataset(shutil.copytree(dataset, tmp_path / "dataset"))
    path = opened.folder / "features.safetensors"
    for broken in damages(path):
        path.write_bytes(broken)
        with pytest.raises(DataError) as raised:
            open_content(opened, "both")
        assert_one_line_about(raised.value, path)


@dataclass(frozen=True)
class Cut:
    """A run of Stages 1 and 2, and a copy of its home from when Stage 2 had finished round 1."""

    dataset: Path
    home: Path
    cut: Path

    def go(self, home: Path, **overrides: Any) -> dict[str, Any]:
        given = {"home": str(home), "dataset": str(self.dataset), "num_rounds": 4, "stage": 2}
        given["server_learning_rate"] = 0.05  # so that the best round is not the first
        return run_in_process(2, **(SETTINGS | given | overrides))


@pytest.fixture(scope="module")
def cut(dataset: Path) -> Cut:
    runs = Cut(dataset, dataset.parent / "home", dataset.parent / "cut")
    finish = StageRun._finish_round

    def cutting(self: StageRun, entry: Any, started: float, save: Any) -> None:
        finish(self, entry, started, save)
        if (self.stage, entry["round"]) == (2, 1):
            raise CutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "_finish_round", cutting)
        runs.go(runs.home, stage=1)
        with pytest.raises(CutError):
            runs.go(runs.home)
    shutil.copytree(runs.home, runs.cut)
    runs.go(runs.home)
    return runs


def named_files(home: Path) -> dict[str, str]:
    """Which file of a cut-off run is what."""
    stages = json.loads((home / "runs/default/manifest.json").read_bytes())["stages"]
    return {
        "manifest": "manifest.json",
        "parent": stages["1"]["checkpoint"],
        "best": stages["2"]["checkpoint"],
        "last": stages["2"]["last"]["file"],
    }


def results(home: Path) -> dict[str, bytes]:
    """Every checkpoint of a run by name."""
    return {path.name: path.read_bytes() for path in (home / "runs/default").glob("*.safetensors")}


def test_every_file_of_a_run_is_damaged_below(cut: Cut) -> None:
    files = {path.name for path in (cut.cut / "runs/default").iterdir()}
    assert files == {*named_files(cut.cut).values(), "lock"}  # an empty file: nothing reads it


@pytest.mark.parametrize("what", ["parent", "best", "last"])
def test_a_damaged_checkpoint_stops_a_run_that_goes_on(cut: Cut, tmp_path: Path, what: str) -> None:
    home = Path(shutil.copytree(cut.cut, tmp_path / "home"))
    path = home / "runs/default" / named_files(home)[what]
    whole = path.read_bytes()
    for broken in damages(path):
        path.write_bytes(broken)
        with pytest.raises(ManifestError, match="missing or was changed") as raised:
            cut.go(home)
        assert_one_line_about(raised.value, path)
    path.write_bytes(whole)  # what was restored goes on as if nothing had been
    cut.go(home)
    assert results(home) == results(cut.home)


@pytest.mark.parametrize("what", ["best", "last"])
def test_a_stage_with_a_damaged_checkpoint_can_be_redone(
    cut: Cut, tmp_path: Path, what: str
) -> None:
    """As the error says: otherwise the stage would go on from the same file again, for ever."""
    home = Path(shutil.copytree(cut.cut, tmp_path / "home"))
    path = home / "runs/default" / named_files(home)[what]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ManifestError, match="redo=true"):
        cut.go(home)
    manifest = cut.go(home, redo=True)
    assert [old["stage"] for old in manifest["superseded"]] == [2]
    for name, content in results(cut.home).items():
        assert what == "best" or results(home)[name] == content
    assert manifest["stages"]["2"]["status"] == "complete"


def test_a_damaged_manifest_stops_the_run(cut: Cut, tmp_path: Path) -> None:
    home = Path(shutil.copytree(cut.cut, tmp_path / "home"))
    path = home / "runs/default/manifest.json"
    for broken in damages(path):
        path.write_bytes(broken)
        with pytest.raises(ManifestError) as raised:
            cut.go(home)
        assert_one_line_about(raised.value, path)
        assert path.read_bytes() == broken
    content = (cut.cut / "runs/default/manifest.json").read_bytes()
    for place in range(0, len(content), 41):
        broken = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with pytest.raises(ManifestError) as raised:
            unsealed(broken, path)
        assert_one_line_about(raised.value, path)


def test_a_damaged_cache_of_a_node_is_asked_for_again(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's file is damaged before every single use; the run ends in the same bytes."""
    home = Path(shutil.copytree(cut.cut, tmp_path / "home"))
    (path,) = (home / "frozen").iterdir()
    damaged, uses = cycle(damages(path)), []

    def damaging(home: Path, sha256: str) -> Arrays | None:
        path.write_bytes(next(damaged))
        uses.append(read_frozen(home, sha256))
        return uses[-1]

    monkeypatch.setattr(node, "read_frozen", damaging)
    manifest = cut.go(home, redo=True, seed=0)
    assert len(uses) > 8
    assert all(found is None or arrays_sha256(found) == path.stem for found in uses)
    assert sum(found is None for found in uses) > len(uses) / 2
    assert manifest["stages"]["2"]["status"] == "complete"
    assert results(home) == results(cut.home)
