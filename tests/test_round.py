"""Whole rounds in process: topology, order, best checkpoint, early stopping, resume, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from client_app.data import Dataset
from server_app import rounds
from server_app.app import federate
from server_app.rounds import StageRun, selected
from shared_model.config import default_config, parse_settings
from shared_model.errors import FedDMMRError, ManifestError, NodeError
from tests.conftest import MakeDataset
from tools.in_process import InProcessGrid, run_in_process

SMALL: dict[str, Any] = {
    "num_rounds": 3,
    "evaluate_every": 1,
    "fraction_train": 0.6,
    "hidden_size": 16,
    "num_blocks": 1,
    "max_length": 10,
    "dropout": 0.0,
    "users_per_batch": 4,
}


@pytest.fixture
def run(tmp_path: Path, small_dataset: Dataset) -> Any:
    """Runs the app in process on the small dataset, under a home of its own."""

    def go(nodes: int = 1, **overrides: Any) -> dict[str, Any]:
        settings = {"home": str(tmp_path / "home"), "dataset": str(small_dataset.folder)}
        return run_in_process(nodes, **(settings | SMALL | overrides))

    return go


def checkpoint(tmp_path: Path, run: str, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder = tmp_path / "home" / "runs" / run
    return load_file(folder / manifest["stages"]["1"]["checkpoint"])


def last_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Collects the arrays of each stage's last round, whatever round was the best."""
    seen: dict[str, Any] = {}
    original = StageRun._save_last

    def spy(self: StageRun, round_: int, arrays: Any) -> None:
        seen[self.manifest.data["run"]] = {n: v.clone() for n, v in arrays.items()}
        original(self, round_, arrays)

    monkeypatch.setattr(StageRun, "_save_last", spy)
    return seen


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_topology_changes_nothing(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dropout: float,
    steps: int,
) -> None:
    """Invariant 1: one SuperNode, seven, or one a user; even with dropout."""
    arrays = last_round(tmp_path, monkeypatch)
    settings = {"dropout": dropout, "local_steps": steps, "client_learning_rate": 0.5}
    reports = {n: run(n, run=f"nodes-{n}", **settings) for n in (1, 7, 20)}
    for n in (7, 20):
        for name, value in arrays["nodes-1"].items():
            assert (value - arrays[f"nodes-{n}"][name]).abs().max() <= 1e-5, name
        assert reports[n]["dataset"] == reports[1]["dataset"]
        for one, other in zip(
            reports[1]["stages"]["1"]["rounds"], reports[n]["stages"]["1"]["rounds"], strict=True
        ):
            assert one["participants"] == other["participants"]
    moved = run(1, run="untrained", num_rounds=1, server_learning_rate=1e-9)
    assert moved["stages"]["1"]["status"] == "complete"
    first = arrays["untrained"]
    assert max((first[n] - v).abs().max() for n, v in arrays["nodes-1"].items()) > 1e-3


def test_topology_changes_nothing_with_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_folder: Path
) -> None:
    """The same with the full model and Adam, which multiplies errors where gradients vanish."""
    arrays = last_round(tmp_path, monkeypatch)
    settings = {"home": str(tmp_path / "home"), "dataset": str(demo_folder), "dropout": 0.0}
    for n in (1, 7):
        run_in_process(n, run=f"nodes-{n}", num_rounds=3, evaluate_every=3, **settings)  # type: ignore
    for name, value in arrays["nodes-1"].items():
        assert (value - arrays["nodes-7"][name]).abs().max() <= 1e-5, name


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("a", 0, 1), ("b", 0, 1)], "same name or partition"),
        ([("a", 0, 2), ("a", 1, 2)], "same name or partition"),
        ([("a", 0, 2), ("b", 1, 2), ("c", 2, 3)], "disagree on the number of partitions"),
        ([("a", 0, 2)], r"partitions \[1\] of 2"),
    ],
)
def test_nodes_that_do_not_belong_together_are_refused(
    tmp_path: Path, small_dataset: Dataset, nodes: list[tuple[str, int, int]], message: str
) -> None:
    overrides = {"home": str(tmp_path / "home"), "dataset": str(small_dataset.folder)}
    config = default_config(Path(__file__).parents[1] / "pyproject.toml") | overrides
    config["node-timeout"] = 0.5
    grid = InProcessGrid(
        [{"name": n, "partition-id": p, "num-partitions": of} for n, p, of in nodes], config
    )
    with pytest.raises(NodeError, match=message):
        federate(grid, parse_settings(config))
    assert not (tmp_path / "home").exists()


def test_the_same_seed_gives_the_same_bytes(run: Any, tmp_path: Path) -> None:
    first, second = run(2, run="a"), run(2, run="b")
    other = run(2, run="c", seed=1)
    assert first["stages"]["1"]["sha256"] == second["stages"]["1"]["sha256"]
    assert first["stages"]["1"]["sha256"] != other["stages"]["1"]["sha256"]


def test_the_manifest_keeps_its_contract(run: Any, tmp_path: Path) -> None:
    manifest = run(2)
    on_disk = json.loads((tmp_path / "home/runs/default/manifest.json").read_text())
    assert on_disk == json.loads(json.dumps(manifest))
    assert set(manifest["dataset"]) == {"users", "items", "interactions", "cold_items", "sha256"}
    assert manifest["dataset"]["users"] == 20
    stage = manifest["stages"]["1"]
    fields = "status parent_sha256 checkpoint sha256 loaded trained frozen config seed best_round"
    assert {*fields.split(), "rounds", "valid", "test", "privacy"} <= set(stage)
    assert stage["trained"] == ["item_embedding", "backbone"]
    for entry in stage["rounds"]:
        keys = "round participants nodes loss valid seconds bytes_down bytes_up dropped"
        assert set(keys.split()) == set(entry)
    metrics = {"hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "users"}
    for split in ("valid", "test"):
        assert set(stage[split]["all"]) == {"uniform-100", "full", "full-unseen"}
        for cell in stage[split]["all"].values():
            assert set(cell) == metrics
            assert cell["users"] == 20


def test_the_best_round_is_kept_and_validation_is_never_stale(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that wrecks the model late: the last round must not win."""
    by_round: dict[int, Any] = {}
    original = StageRun._validate

    def spy(self: StageRun, round_: int, arrays: Any, entry: Any) -> None:
        by_round[round_] = {name: value.clone() for name, value in arrays.items()}
        original(self, round_, arrays, entry)

    monkeypatch.setattr(StageRun, "_validate", spy)
    manifest = run(1, num_rounds=5, server_optimizer="sgd", server_learning_rate=30.0)
    stage = manifest["stages"]["1"]
    scores = {entry["round"]: selected(entry) for entry in stage["rounds"]}
    best = max(scores, key=lambda r: (scores[r], -r))
    assert stage["best_round"] == best
    assert stage["valid"] == stage["rounds"][best]["valid"]
    assert best < 5
    kept = checkpoint(tmp_path, "default", manifest)
    assert all((kept[f"model/{n}"] == v).all() for n, v in by_round[best].items())
    assert len(set(scores.values())) > 2  # each evaluation saw other arrays
    files = sorted(p.name for p in (tmp_path / "home/runs/default").glob("*.safetensors"))
    assert files == [stage["checkpoint"]]


def test_early_stopping_waits_for_patience(run: Any) -> None:
    wrecked = {"server_learning_rate": 0.3, "server_schedule": "constant"}
    stage = run(1, num_rounds=40, patience=2, **wrecked)["stages"]["1"]
    rounds_after_best = stage["rounds"][-1]["round"] - stage["best_round"]
    assert rounds_after_best == 2
    assert stage["rounds"][-1]["round"] < 40


def test_test_split_is_opened_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[tuple[int, str]] = []
    original = StageRun._evaluate

    def spy(self: StageRun, round_: int, arrays: Any, split: Any) -> Any:
        splits.append((round_, split))
        return original(self, round_, arrays, split)

    monkeypatch.setattr(StageRun, "_evaluate", spy)
    stage = run(1)["stages"]["1"]
    assert [s for s in splits if s[1] == "test"] == [(stage["best_round"], "test")]
    assert splits[-1][1] == "test"


class CutError(Exception):
    """The server process dies."""


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_cut_off_run_ends_in_the_same_bytes(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    settings = {"num_rounds": 5, "evaluate_every": 2, "dropout": 0.2}
    whole = run(2, run="whole", **settings)
    original = StageRun._finish_round

    def cut(self: StageRun, entry: Any, started: float, save: Any) -> None:
        original(self, entry, started, save)
        if entry["round"] == at:
            raise CutError

    monkeypatch.setattr(StageRun, "_finish_round", cut)
    with pytest.raises(CutError):
        run(2, run="cut", **settings)
    monkeypatch.setattr(StageRun, "_finish_round", original)
    with pytest.raises(ManifestError, match=r"goes on with its own settings only.*seed=1"):
        run(2, run="cut", **(settings | {"seed": 1}))
    resumed = run(2, run="cut", **settings)
    for stage in (whole["stages"]["1"], resumed["stages"]["1"]):
        for entry in stage["rounds"]:
            entry.pop("seconds")
    assert resumed["stages"]["1"] == whole["stages"]["1"]


def test_a_complete_stage_is_left_alone_and_can_be_redone(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(1)
    path = tmp_path / "home/runs/default/manifest.json"
    before = path.read_bytes()
    capsys.readouterr()
    run(1)
    said = capsys.readouterr().out
    assert "complete: nothing to do" in said
    assert "redo=true" in said
    assert f"{first['stages']['1']['test']['all']['full']['hr@10']:.4f}" in said
    assert path.read_bytes() == before
    redone = run(1, redo=True, seed=5)
    assert redone["superseded"][0]["sha256"] == first["stages"]["1"]["sha256"]
    assert redone["stages"]["1"]["sha256"] != first["stages"]["1"]["sha256"]
    assert checkpoint(tmp_path, "default", first)  # the superseded one is still there
    assert checkpoint(tmp_path, "default", redone)


def test_a_redone_stage_that_was_cut_off_resumes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run(1)
    original = StageRun._finish_round

    def cut(self: StageRun, entry: Any, started: float, save: Any) -> None:
        original(self, entry, started, save)
        if entry["round"] == 2:
            raise CutError

    monkeypatch.setattr(StageRun, "_finish_round", cut)
    with pytest.raises(CutError):
        run(1, redo=True, seed=5)
    monkeypatch.setattr(StageRun, "_finish_round", original)
    manifest = run(1, redo=True, seed=5)
    assert len(manifest["superseded"]) == 1
    assert [entry["round"] for entry in manifest["stages"]["1"]["rounds"]] == [0, 1, 2, 3]


def test_a_node_that_fails_once_in_a_retried_round_is_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_all, failures = InProcessGrid.push_messages, [1, 1]

    def push(self: InProcessGrid, messages: Any) -> list[str]:
        kept = list(messages)
        if kept[0].metadata.message_type == "train" and failures:
            failures.pop()
            kept = kept[: len(failures)]  # one node of three answers, then none
        return list(push_all(self, kept))

    monkeypatch.setattr(InProcessGrid, "push_messages", push)
    with pytest.raises(rounds.RoundError):
        run(3)
    failures.append(1)
    stage = run(3)["stages"]["1"]
    assert [drop["node"] for drop in stage["rounds"][1]["dropped"]] == [
        "partition-0",
        "partition-1",
        "partition-2",
    ]
    assert stage["rounds"][1]["nodes"] == 3


def test_another_dataset_under_the_same_name_is_refused(
    run: Any, tmp_path: Path, make_dataset: MakeDataset, small_histories: Any
) -> None:
    run(1)
    path = tmp_path / "home/runs/default/manifest.json"
    before = path.read_bytes()
    user = next(iter(small_histories))
    other = make_dataset(small_histories | {user: small_histories[user][::-1]}, num_items=30)
    with pytest.raises(ManifestError, match="another dataset"):
        run(1, dataset=str(other.folder))
    assert path.read_bytes() == before


def test_stages_that_do_not_exist_yet_are_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(FedDMMRError, match="no such stage"):
        run(1, stage=3)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "node count"])
def test_bad_data_is_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, small_dataset: Dataset, damage: str
) -> None:
    broken = tmp_path / "broken"
    nodes = 1
    if damage == "cut":
        shutil.copytree(small_dataset.folder, broken)
        items = broken / "arrays" / "items.npy"
        items.write_bytes(items.read_bytes()[:-4])
    if damage == "node count":
        broken, nodes = small_dataset.folder, 21
    with pytest.raises(NodeError) as raised:
        run(nodes, dataset=str(broken))
    assert "\n" not in str(raised.value)
    assert str(broken) in str(raised.value)
    assert not (tmp_path / "home").exists()


def test_two_processes_cannot_write_one_run(run: Any, tmp_path: Path) -> None:
    from server_app.manifest import open_manifest

    with (
        open_manifest(tmp_path / "home", "default"),
        pytest.raises(ManifestError, match="another process"),
    ):
        run(1)
    assert run(1)["stages"]["1"]["status"] == "complete"


def test_a_changed_checkpoint_is_refused_on_use(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StageRun._complete

    def damage(self: StageRun) -> None:
        path = self.manifest.folder / self.record["checkpoint"]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        original(self)

    monkeypatch.setattr(StageRun, "_complete", damage)
    with pytest.raises(ManifestError, match="was changed"):
        run(1)


def test_a_silent_node_is_named_and_the_run_goes_on(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(self: InProcessGrid, messages: Any) -> list[str]:
        silent = [m.metadata for m in messages if m.metadata.message_type == "train"][1:2]
        return list(push_all(self, [m for m in messages if m.metadata not in silent]))

    push_all = InProcessGrid.push_messages
    monkeypatch.setattr(InProcessGrid, "push_messages", push)
    stage = run(3)["stages"]["1"]
    assert stage["status"] == "complete"
    for entry in stage["rounds"][1:]:
        assert [drop["node"] for drop in entry["dropped"]] == ["partition-1"]
        assert entry["nodes"] == 2


def test_a_round_is_tried_again_and_then_the_run_stops(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[int] = []
    original = StageRun._try_train

    def fail(self: StageRun, round_: int, arrays: Any) -> Any:
        tries.append(round_)
        if round_ == 2 and len(tries) < limit:
            raise rounds.RoundError("too few nodes answered")
        return original(self, round_, arrays)

    monkeypatch.setattr(StageRun, "_try_train", fail)
    limit = 3
    assert run(1, run="once")["stages"]["1"]["status"] == "complete"
    assert tries == [1, 2, 2, 3]
    tries.clear()
    limit = 99
    with pytest.raises(rounds.RoundError):
        run(1, run="twice")
    assert tries == [1, 2, 2]
    path = tmp_path / "home/runs/twice/manifest.json"
    assert json.loads(path.read_text())["stages"]["1"]["status"] == "failed"
    limit = 0
    assert run(1, run="twice")["stages"]["1"]["status"] == "complete"
