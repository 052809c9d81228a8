"""Validation on a sample of users, and the test by the length of histories: whole runs."""

from typing import Any

import numpy as np
import pytest

from client_app.data.dataset import Dataset, input_lengths
from shared_model.errors import ConfigError, ManifestError
from shared_model.protocol.lengths import length_groups
from shared_model.protocol.plan import EvaluationPlan
from tests.support.rounds import cut_at, without_seconds
from tests.support.staged import Whole

WANTED = 8  # of the small dataset's 20 users


def sample(dataset: Dataset, seed: int = 0) -> int:
    plan = EvaluationPlan(1, 0, seed, "valid", "", "", share=WANTED / dataset.num_users)
    return int(plan.scores(dataset.user_keys).sum())


def test_a_sample_is_the_same_in_every_round_and_topology_and_the_test_has_everyone(
    run: Any, small_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant 1. A user counts by the hash of seed and key alone."""
    stages = {n: run(n, run=f"nodes-{n}", evaluate_users=WANTED) for n in (1, 7)}
    chosen = sample(small_dataset)
    assert 0 < chosen < 20
    assert chosen != sample(small_dataset, seed=1) or chosen != sample(small_dataset, seed=2)
    first = stages[1]["stages"]["1"]
    for document in stages.values():
        record = document["stages"]["1"]
        assert record["config"]["evaluate_users"] == WANTED
        assert [e["valid"]["all"]["full"]["users"] for e in record["rounds"]] == [chosen] * 4
        assert record["test"]["all"]["full"]["users"] == 20
        for one, other in zip(first["rounds"], record["rounds"], strict=True):
            assert one["valid"]["all"]["full"] == pytest.approx(other["valid"]["all"]["full"])
        assert length_groups(record["test"]) == length_groups(first["test"])
    assert f"valid of {chosen} users NDCG@10" in capsys.readouterr().out


def test_a_cut_off_run_goes_on_with_its_sample(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_rounds": 4, "evaluate_users": WANTED}
    whole = run(2, run="whole", **settings)
    cut_at(run, monkeypatch, 2, settings)
    with pytest.raises(ManifestError, match=r"own settings only.*evaluate_users=0"):
        run(2, run="cut", **(settings | {"evaluate_users": 0}))
    assert without_seconds(run(2, run="cut", **settings)) == without_seconds(whole)


def test_a_stage_starts_where_the_last_one_ended_on_the_same_sample(
    whole: Whole, tmp_path: Any
) -> None:
    """Invariant 2, and another sample is refused, since figures would not be comparable."""
    home = tmp_path / "home"
    first = whole.go(home, stage=1, evaluate_users=12)["stages"]["1"]
    with pytest.raises(ManifestError, match="evaluate_users"):
        whole.go(home, stage=2)
    second = whole.go(home, stage=2, num_rounds=1, evaluate_users=12)["stages"]["2"]
    assert second["rounds"][0]["valid"]["all"]["full"] == pytest.approx(
        first["valid"]["all"]["full"], abs=1e-6
    )


def test_a_sample_of_nobody_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = lambda self, keys: np.zeros(len(keys), bool)  # noqa: E731
    monkeypatch.setattr(EvaluationPlan, "scores", nobody)
    with pytest.raises(ConfigError, match=r"nobody to validate with.*evaluate-users=1"):
        run(1, evaluate_users=1)


def test_the_test_is_told_by_length_of_the_history(whole: Whole, run: Any) -> None:
    """All users are in one part of each kind; cuts come from all nodes' counts."""
    for record in (whole.stage(number) for number in (1, 2, 3)):
        parts = length_groups(record["test"])
        assert parts[0].startswith("length-1-")
        assert len(parts) >= 8
        for protocol in ("full", "full-unseen"):
            cells = [record["test"][part][protocol] for part in parts]
            everyone = record["test"]["all"][protocol]
            assert sum(cell["users"] for cell in cells) == everyone["users"]
            for metric in ("hr@10", "ndcg@10", "mrr"):
                mean = sum(cell[metric] * cell["users"] for cell in cells) / everyone["users"]
                assert mean == pytest.approx(everyone[metric])
        assert not length_groups(record["valid"])


def test_parts_by_length_hold_the_users_they_name(run: Any, small_dataset: Dataset) -> None:
    record = run(3)["stages"]["1"]
    lengths = input_lengths(small_dataset, np.arange(20), "test")
    for part in length_groups(record["test"]):
        low, high = part.removeprefix("length-").split("-")
        inside = lengths >= int(low)
        inside &= lengths <= (10**9 if high == "up" else int(high))
        assert record["test"][part]["full"]["users"] == inside.sum() > 0
