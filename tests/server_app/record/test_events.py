"""`tensorboard=true`: what TensorBoard reads is what the manifest says, each point once."""

import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from feddmmr.launch.in_process import run_in_process
from server_app.record.tensorboard import Events
from server_app.rounds.loop import StageRun
from shared_model.errors import ConfigError, ManifestError
from shared_model.stages import STAGES
from tests.conftest import CutError
from tests.support.outcomes import outcome
from tests.support.staged import SETTINGS, write_mixed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("events") / "dataset")


@pytest.fixture(scope="module")
def plain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the same run without event files."""
    home = tmp_path_factory.mktemp("plain")
    go(home, dataset)
    return home


def go(home: Path, dataset: Path, **overrides: Any) -> dict[str, Any]:
    given = {"home": str(home), "dataset": str(dataset), "num_rounds": 2}
    return run_in_process(2, **(SETTINGS | given | overrides))


def read(home: Path, stage: int) -> EventAccumulator:
    found = EventAccumulator(str(home / f"runs/default/tensorboard/stage-{stage}"))
    found.Reload()
    return found


def points(found: EventAccumulator, tag: str) -> dict[int, float]:
    """Value by step; a step that comes twice is an error."""
    scalars = found.Scalars(tag)
    assert len({one.step for one in scalars}) == len(scalars)
    return {one.step: one.value for one in scalars}


def values(record: Any, *path: str) -> dict[int, Any]:
    """What the rounds of a record hold there."""
    found = {}
    for entry in record["rounds"]:
        value = entry
        for key in path:
            value = value.get(key) if value is not None else None
        if value is not None:
            found[entry["round"]] = pytest.approx(value, rel=1e-6)
    return found


def test_tensorboard_reads_what_the_manifest_says(dataset: Path, tmp_path: Path) -> None:
    stages = go(tmp_path, dataset, tensorboard=True)["stages"]
    for number in STAGES:
        found, record = read(tmp_path, number), stages[str(number)]
        for tag, path in {
            "train/loss": ("loss",),
            "cost/bytes_up": ("bytes_up",),
            "cost/seconds": ("seconds",),
            "valid_full/all/ndcg@10": ("valid", "all", "full", "ndcg@10"),
            "valid_uniform-100/all-with-cold/hr@10": (
                *("valid", "all-with-cold", "uniform-100", "hr@10"),
            ),
        }.items():
            assert points(found, tag) == values(record, *path) != {}, tag
        for tag, path in {
            "train/gate": ("gate",),
            "router/visual": ("router", "visual"),
            "losses/alignment": ("losses", "alignment"),
            "memory/write_rate": ("memory", "write_rate"),
        }.items():
            assert (tag in found.Tags()["scalars"]) == (number > 1), tag
            if number > 1:
                assert points(found, tag) == values(record, *path)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("at", [(1, 0), (1, 1), (2, 1), (3, 2)])
def test_a_resumed_run_has_each_point_once_and_the_same_bytes(
    dataset: Path, plain: Path, tmp_path: Path, at: tuple[int, int], saved: bool
) -> None:
    """Invariant 9; also where the event was written and its round was not saved."""
    assert not (plain / "runs/default/tensorboard").exists()
    save = StageRun._save_last

    def cut(self: StageRun, round_: int, arrays: Any) -> None:
        if saved:
            save(self, round_, arrays)
        if (self.stage, round_) == at:
            raise CutError
        if not saved:
            save(self, round_, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "_save_last", cut)
        with pytest.raises(CutError):
            go(tmp_path, dataset, tensorboard=True)
    stages = go(tmp_path, dataset, tensorboard=True)["stages"]
    for number in STAGES:
        found, record = read(tmp_path, number), stages[str(number)]
        for tag, path in (("train/loss", ("loss",)), ("cost/seconds", ("seconds",))):
            assert points(found, tag) == values(record, *path) != {}
    assert outcome(tmp_path) == outcome(plain)


def test_what_is_said_again_replaces_what_was_said(tmp_path: Path) -> None:
    """A process that died after round 3 was told, and one that goes on with round 2."""
    for first, loss in ((0, 1.0), (2, 5.0)):
        events = Events(tmp_path / "runs/default", 1, first, wanted=True)
        for round_ in range(first, 4 if first == 0 else 3):
            entry = {"round": round_, "participants": 1, "loss": loss, "dropped": []}
            events.add(entry | ({"epsilon": 0.5 + round_} if round_ != 1 else {}))
        # Not closed: the first process was killed.
    found = read(tmp_path, 1)
    assert points(found, "train/loss") == {0: 1.0, 1: 1.0, 2: 5.0}
    assert points(found, "privacy/epsilon") == {0: 0.5, 2: 2.5}  # told where it was worked out


def test_without_the_package_the_run_is_refused_before_it_begins(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="pip install tensorboardX") as raised:
        go(tmp_path / "home", dataset, tensorboard=True)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "home").exists()
    go(tmp_path / "home", dataset, stage=1, num_rounds=1)


def test_a_full_disk_is_one_line_and_the_round_is_repeated(
    dataset: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],  # what is printed is not a file then
) -> None:
    """The disk is full while round 1 is told, and still is when the file is closed."""
    add, limits = Events.add, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self: Events, entry: dict[str, Any]) -> None:
        if entry["round"] == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        add(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Events, "add", full)
        try:
            with pytest.raises(ManifestError, match=r"File too large.*free disk space"):
                go(tmp_path, dataset, tensorboard=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    go(tmp_path, dataset, tensorboard=True)
    assert outcome(tmp_path) == outcome(plain)


def test_a_folder_that_cannot_be_written_is_one_line(dataset: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "runs/default").mkdir(parents=True)
    (home / "runs/default/tensorboard").write_text("a file")
    with pytest.raises(ManifestError, match=r"cannot write the event files.*tensorboard=false"):
        go(home, dataset, tensorboard=True, stage=1)
    assert go(home, dataset, stage=1)["stages"]["1"]["status"] == "complete"
