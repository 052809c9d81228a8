"""Runs whose sites add the noise: charged before a sum is opened, and resumed with the same sum."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from feddmmr.launch.in_process import InProcessGrid
from server_app.privacy.accountant import Mechanism, epsilon, planned
from server_app.rounds.exchange import Asking
from server_app.rounds.loop import StageRun
from server_app.rounds.secure import SecureSums
from shared_model.errors import ConfigError, RoundError
from tests.conftest import CutError
from tests.support.private_runs import losing
from tests.support.rounds import last_round, without_seconds
from tests.support.secure_noise import PRIVATE
from tests.support.secure_rounds import differ

SETTINGS: dict[str, Any] = {**PRIVATE, "evaluate_every": 2, "num_rounds": 3, "evaluate_users": 5}
OF_ALL = 2.0 * math.sqrt(3 / 2)  # noise in a sum of all three sites, of which two are enough
STEPS = [
    (SecureSums, "attempt", 2, 1),  # masked vectors are there: nothing is opened or charged yet
    (SecureSums, "_shares", 2, 2),
    (StageRun, "_validate", 2, 2),  # of round 0, and of round 2
    (StageRun, "_save_last", 3, 2),  # of round 2, after that of round 0
]


def cut_after(monkeypatch: pytest.MonkeyPatch, of: type, step: str, call: int) -> None:
    """The server dies after this call of a step, and says goodbye to nobody."""
    original, calls = getattr(of, step), []

    def cut(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        calls.append(step)
        if len(calls) == call:
            raise CutError
        return result

    monkeypatch.setattr(of, step, cut)
    monkeypatch.setattr(Asking, "close", lambda _: None)


def cut_run(monkeypatch: pytest.MonkeyPatch, run: Any, name: str, *where: Any) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, *where)
        with pytest.raises(CutError):
            run(3, run=name, **SETTINGS)


def stage_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Stage 1 without what a session's keys add to a round's bytes, and times."""
    stage = without_seconds(manifest)
    for entry in stage["rounds"]:
        del entry["bytes_down"], entry["bytes_up"]
    return stage


def released(tmp_path: Path, name: str = "cut") -> list[tuple[int, list[str]]]:
    path = tmp_path / "home" / "runs" / name / "manifest.json"
    releases = json.loads(path.read_text())["stages"]["1"]["privacy"]["releases"]
    return [(release["round"], release["absent"]) for release in releases]


@pytest.mark.usefixtures("one_secret")
def test_a_server_that_dies_in_any_step_ends_in_the_same_bytes_and_pays_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    whole = stage_of(run(3, run="whole", **SETTINGS))
    privacy = whole["privacy"]
    assert privacy["epsilon"] == epsilon(Counter({Mechanism(0.6, OF_ALL): 3}), 1e-5)
    assert (privacy["noise_on"], next(iter(privacy["nodes"]))) == ("secure", "partition-0")
    for *where, charged in STEPS:
        name = f"cut-{where[1]}"
        cut_run(monkeypatch, run, name, *where)
        assert released(tmp_path, name) == [(round_ + 1, []) for round_ in range(charged)]
        assert stage_of(run(3, run=name, **SETTINGS)) == whole
        assert differ(arrays["whole"], arrays[name]) == 0.0
    assert not any((tmp_path / "home" / "secure").iterdir())


@pytest.mark.usefixtures("one_secret")
def test_a_site_that_was_lost_is_not_in_the_sum_when_its_round_is_repeated(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its share of the same noise: with it, the difference would be its update and that."""

    def lost(round_: int, node: int) -> bool:
        return (round_, node) == (2, 1001)

    arrays = last_round(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        losing(patch, lost)
        whole = run(3, run="whole", **SETTINGS)
        cut_run(monkeypatch, run, "cut", SecureSums, "open", 2)
    asked: list[int] = []
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Any) -> Any:
        if message.metadata.message_type == "train":
            asked.append(message.metadata.dst_node_id)
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_handle", handle)
    resumed = run(3, run="cut", **SETTINGS)
    assert asked == [1000, 1002, 1000, 1001, 1002]  # rounds 2 and 3
    assert released(tmp_path) == [(1, []), (2, ["partition-1"]), (3, [])]
    assert differ(arrays["whole"], arrays["cut"]) == 0.0
    ends = [manifest["stages"]["1"] for manifest in (whole, resumed)]
    assert ends[0]["privacy"] == ends[1]["privacy"]
    spent = Counter(
        {Mechanism(0.6, OF_ALL): 2, Mechanism(0.6, 2.0): 1}
    )  # less noise, so it costs more
    assert ends[0]["privacy"]["epsilon"] == epsilon(spent, 1e-5)


@pytest.mark.usefixtures("one_secret")
def test_a_repeated_round_is_opened_with_the_same_sites_only(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    whole = stage_of(run(3, run="whole", **SETTINGS))
    cut_run(monkeypatch, run, "cut", SecureSums, "open", 2)
    with monkeypatch.context() as patch:
        losing(patch, lambda round_, node: (round_, node) == (2, 1001))
        patch.setattr(SecureSums, "open", lambda *_: pytest.fail("opened"))
        match = r"its noise is on that sum.*expected without nobody; got without partition-1"
        with pytest.raises(RoundError, match=match):
            run(3, run="cut", **SETTINGS)
    assert released(tmp_path) == [(1, []), (2, [])]
    assert stage_of(run(3, run="cut", **SETTINGS)) == whole
    assert differ(arrays["whole"], arrays["cut"]) == 0.0


def test_other_nodes_do_not_go_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_run(monkeypatch, run, "cut", SecureSums, "open", 2)
    with pytest.raises(ConfigError, match=r"began with other secure sums.*'sites': 4"):
        run(4, run="cut", **SETTINGS)
    assert released(tmp_path) == [(1, []), (2, [])]


def test_a_redone_stage_is_charged_and_has_other_noise(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_run(monkeypatch, run, "cut", SecureSums, "open", 2)
    redone = run(3, run="cut", redo=True, local_steps=2, **SETTINGS)
    [old], new = redone["superseded"], redone["stages"]["1"]["privacy"]
    names = [r["noise"] for r in old["privacy"]["releases"] + new["releases"]]
    assert len(set(names)) == len(names) == 5
    assert new["epsilon"] == epsilon(Counter({Mechanism(0.6, OF_ALL): 5}), 1e-5)


def test_the_budget_has_all_planned_rounds_if_nobody_is_lost_before_the_last_one(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one less, here, if a site is: what is left would not hold another round without it."""
    rounds = 6
    budget = epsilon(planned(0.6, 2.0, rounds, math.sqrt(3 / 2)), 1e-5)
    given = SETTINGS | {"dp_epsilon": budget, "num_rounds": 99, "evaluate_every": 99}
    ends = {}
    for lost in (0, 2, rounds):
        with monkeypatch.context() as patch:
            losing(patch, lambda round_, node, lost=lost: (round_, node) == (lost, 1001))
            ends[lost] = run(3, run=f"lost-in-{lost}", **given)["stages"]["1"]["privacy"]
    assert [end["rounds"] for end in ends.values()] == [rounds] * 3
    assert [len(end["releases"]) for end in ends.values()] == [rounds, rounds - 1, rounds]
    assert ends[0]["epsilon"] < budget
    assert ends[rounds]["epsilon"] == budget


@pytest.mark.usefixtures("one_secret")
@pytest.mark.parametrize("budget", [0.0, 1.01 * epsilon(planned(0.6, 2.0, 2), 1e-5)])
def test_a_repeated_round_that_comes_out_otherwise_is_charged_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    """A node that lost its secret, here: other noise on the same sum. Or a budget forbids it."""
    given = SETTINGS | {"dp_epsilon": budget, "evaluate_every": 1, "num_rounds": 2}
    with monkeypatch.context() as patch:
        cut_after(patch, StageRun, "_validate", 3)  # of the last round
        with pytest.raises(CutError):
            run(3, run="cut", **given)
    for path in (tmp_path / "home" / "noise").iterdir():
        path.unlink()
    if budget:
        with pytest.raises(RoundError, match="another one than before; both would pass dp-eps"):
            run(3, run="cut", **given)
        return
    privacy = run(3, run="cut", **given)["stages"]["1"]["privacy"]
    first, *twice = privacy["releases"]
    assert [release["round"] for release in twice] == [2, 2]
    assert len({release["arrays"] for release in (first, *twice)}) == 3
    spent = Counter({Mechanism(0.6, OF_ALL): 1, Mechanism(0.6, OF_ALL / 2**0.5): 1})
    assert privacy["epsilon"] == epsilon(spent, 1e-5)
