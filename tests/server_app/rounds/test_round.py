"""Whole rounds in process: topology, best checkpoint, early stopping, resume."""

from pathlib import Path
from typing import Any

import pytest

from feddmmr.launch.in_process import InProcessGrid, run_in_process
from server_app.record.selection import selected
from server_app.rounds.exchange import Asking
from server_app.rounds.loop import StageRun
from shared_model.errors import ManifestError
from shared_model.model.recommender import ModelShape, build, read_groups
from shared_model.stages import stage_of
from tests.conftest import checkpoint
from tests.support.rounds import (
    cut_at,
    last_round,
    without_seconds,
)


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
    rounds = {"stage": 1, "num_rounds": 3, "evaluate_every": 3}
    for n in (1, 7):
        run_in_process(n, run=f"nodes-{n}", **rounds, **settings)  # type: ignore
    for name, value in arrays["nodes-1"].items():
        assert (value - arrays["nodes-7"][name]).abs().max() <= 1e-5, name


def test_the_same_seed_gives_the_same_bytes(run: Any, tmp_path: Path) -> None:
    first, second = run(2, run="a"), run(2, run="b")
    other = run(2, run="c", seed=1)
    assert first["stages"]["1"]["sha256"] == second["stages"]["1"]["sha256"]
    assert first["stages"]["1"]["sha256"] != other["stages"]["1"]["sha256"]


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
    original = Asking.evaluate

    def spy(self: Asking, round_: int, arrays: Any, split: Any) -> Any:
        splits.append((round_, split))
        return original(self, round_, arrays, split)

    monkeypatch.setattr(Asking, "evaluate", spy)
    stage = run(1)["stages"]["1"]
    assert [s for s in splits if s[1] == "test"] == [(stage["best_round"], "test")]
    assert splits[-1][1] == "test"


# Validated are rounds 0, 2, 4 and 5; the others are saved as often as checkpoint-every says.
@pytest.mark.parametrize(
    ("every", "at", "saved"),
    [(1, 0, 0), (1, 1, 1), (1, 3, 3), (1, 4, 4), (3, 1, 0), (3, 3, 3), (9, 3, 2)],
)
def test_a_cut_off_run_ends_in_the_same_bytes(
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    every: int,
    at: int,
    saved: int,
) -> None:
    settings = {"num_rounds": 5, "evaluate_every": 2, "dropout": 0.2, "checkpoint_every": every}
    whole = run(2, run="whole", **settings)
    cut_at(run, monkeypatch, at, settings)
    with pytest.raises(ManifestError, match=r"goes on with its own settings only.*seed=1"):
        run(2, run="cut", **(settings | {"seed": 1}))
    resumed = run(2, run="cut", **settings)
    assert f"resumed after round {saved}\n" in capsys.readouterr().out
    assert without_seconds(resumed) == without_seconds(whole)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_early_stopping_is_exact_over_a_resume(
    run: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Patience counts validations before the cut, and the best checkpoint outlives it."""
    wrecked = {"server_learning_rate": 0.3, "server_schedule": "constant"}
    settings = {"num_rounds": 40, "patience": 2, "evaluate_every": 2, **wrecked}
    whole = run(2, run="whole", **settings)
    last = whole["stages"]["1"]["rounds"][-1]["round"]
    assert at < last < 40
    cut_at(run, monkeypatch, at, settings)
    resumed = run(2, run="cut", **settings)
    assert without_seconds(resumed) == without_seconds(whole)


def test_only_the_stages_groups_travel(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 5: messages hold exactly the arrays of the groups that the stage trains."""
    names: list[tuple[str, list[str]]] = []
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Any) -> Any:
        reply = original(self, message)
        kind = message.metadata.message_type
        for content in (message.content, reply.content):
            names.extend((kind, sorted(record)) for record in content.array_records.values())
        return reply

    monkeypatch.setattr(InProcessGrid, "_handle", handle)
    stage = run(2)["stages"]["1"]
    model = build(ModelShape(30, 16, 2, 1, 10), 0)
    trained = sorted(read_groups(model, stage_of(1).trained))
    size = sum(4 * value.numel() for value in read_groups(model, stage_of(1).trained).values())
    assert {tuple(found) for _, found in names} == {tuple(trained)}
    assert len([kind for kind, _ in names if kind == "train"]) == 2 * 2 * 3  # nodes, ways, rounds
    overhead = 2 * (128 * len(trained) + 4096)  # two nodes: array headers, metrics
    for entry in stage["rounds"][1:]:
        assert 2 * size < entry["bytes_up"] < 2 * size + overhead


def test_a_disk_that_fills_up_before_the_first_save_leaves_no_double_round(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StageRun._save_last

    def full(self: StageRun, round_: int, arrays: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(StageRun, "_save_last", full)
    with pytest.raises(OSError, match="No space"):
        run(1)
    monkeypatch.setattr(StageRun, "_save_last", original)
    assert [entry["round"] for entry in run(1)["stages"]["1"]["rounds"]] == [0, 1, 2, 3]
