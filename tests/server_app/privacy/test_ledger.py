"""Private runs in process: topology, noise, redo, budget, and what is written down.

What goes on after a cut, and what must not, is in test_ledger_resume.py.
"""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from feddmmr.launch.in_process import run_in_process
from server_app.privacy.accountant import Mechanism, epsilon
from server_app.privacy.releases import spending
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import ConfigError, RoundError
from shared_model.model.recommender import ModelShape, build, read_groups
from shared_model.stages import stage_of
from tests.support.private_runs import DP, cut_in, losing
from tests.support.rounds import last_round
from tests.support.staged import SETTINGS as STAGED
from tests.support.staged import write_mixed


@pytest.mark.parametrize("steps", [1, 2])
def test_topology_changes_nothing_not_even_the_noise(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_secret: Callable[[], None],
    steps: int,
) -> None:
    """Invariant 1 with clipping and noise: one SuperNode, seven, or one a user."""
    arrays = last_round(tmp_path, monkeypatch)
    settings = DP | {"local_steps": steps, "client_learning_rate": 0.5, "dropout": 0.3}
    reports = {n: run(n, run=f"nodes-{n}", **settings)["stages"]["1"] for n in (1, 7, 20)}
    one_secret()
    run(1, run="other-noise", **settings)
    run(1, run="no-noise", **(settings | {"dp_noise_multiplier": 0.0}))
    for n in (7, 20):
        for name, value in arrays["nodes-1"].items():
            assert (value - arrays[f"nodes-{n}"][name]).abs().max() <= 1e-5, name
        assert reports[n]["privacy"] == reports[1]["privacy"]
    for other in ("other-noise", "no-noise"):
        assert max((arrays[other][n] - v).abs().max() for n, v in arrays["nodes-1"].items()) > 1e-3


def test_the_sum_gets_the_noise_that_was_asked_for(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD of rate 1 moves by (sum + noise) / expected users, and the sum is 0.05 a user at most."""
    arrays = last_round(tmp_path, monkeypatch)
    sgd = {"server_optimizer": "sgd", "server_learning_rate": 1.0, "server_schedule": "constant"}
    for where in ("server", "nodes"):
        run(5, run=where, num_rounds=1, dp_noise_on=where, **DP, **sgd)
        start = read_groups(build(ModelShape(30, 16, 2, 1, 10), 0), stage_of(1).trained)
        moved = [arrays[where][n] - start[n] for n in start if n != "item_embedding.weight"]
        noise = torch.cat([part.flatten() for part in moved])
        expected = 0.05 * 2.0 / (0.6 * 20)
        assert float(noise.double().std()) == pytest.approx(expected, rel=0.05)
        secrets = sorted((tmp_path / "home" / "noise").glob("*"))
        assert len(secrets) == (5 if where == "nodes" else 0)
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in secrets)


def test_what_is_written_down(run: Any, tmp_path: Path) -> None:
    manifest = run(2, num_rounds=4, evaluate_every=2, **DP)
    stage = manifest["stages"]["1"]
    privacy = stage["privacy"]
    spent = Counter({Mechanism(0.6, 2.0): 4})
    assert privacy["epsilon"] == epsilon(spent, 1e-5) == stage["rounds"][-1]["epsilon"]
    assert privacy["epsilon_after"] == 4
    assert [(r["round"], r["absent"]) for r in privacy["releases"]] == [
        (n, []) for n in (1, 2, 3, 4)
    ]
    assert [e["round"] for e in stage["rounds"] if "epsilon" in e] == [2, 4]
    facts = ("clip_norm", "noise_multiplier", "sampling_rate", "delta", "users", "attempt")
    assert [privacy[name] for name in facts] == [0.05, 2.0, 0.6, 1e-5, 20, 0]
    assert all(entry["loss"] is None for entry in stage["rounds"])
    folder = tmp_path / "home" / "runs" / "default"
    assert not list(folder.glob("noise-secret*"))  # nobody needs it any more
    assert run(2, run="plain")["stages"]["1"]["privacy"] == {}


def test_who_takes_part_is_no_function_of_public_settings(run: Any) -> None:
    """Sampling amplifies only what others do not know: two runs of one seed draw other users."""
    drawn = [
        [e["participants"] for e in run(1, run=name, num_rounds=8, **DP)["stages"]["1"]["rounds"]]
        for name in ("a", "b", "c")
    ]
    assert len({tuple(found) for found in drawn}) == 3
    assert sum(map(sum, drawn)) == pytest.approx(3 * 8 * 0.6 * 20, rel=0.2)


def test_a_redone_stage_stays_charged_and_gets_other_noise(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    first = run(2, **DP)["stages"]["1"]["privacy"]
    before = {name: value.clone() for name, value in arrays["default"].items()}
    manifest = run(2, redo=True, **DP)
    second = manifest["stages"]["1"]["privacy"]
    assert manifest["superseded"][0]["privacy"] == first
    assert (first["attempt"], second["attempt"]) == (0, 1)
    assert [r["round"] for r in second["releases"]] == [r["round"] for r in first["releases"]]
    assert not {r["noise"] for r in second["releases"]} & {r["noise"] for r in first["releases"]}
    assert second["epsilon"] == epsilon(Counter({Mechanism(0.6, 2.0): 6}), 1e-5)
    assert max((arrays["default"][n] - v).abs().max() for n, v in before.items()) > 1e-3
    cheaper = DP | {"dp_noise_multiplier": 3.0}
    third = run(2, redo=True, num_rounds=1, **cheaper)["stages"]["1"]["privacy"]
    spent = Counter({Mechanism(0.6, 2.0): 6, Mechanism(0.6, 3.0): 1})
    assert third["epsilon"] == epsilon(spent, 1e-5)


def test_a_stage_ends_before_the_budget_is_passed_and_the_next_is_refused(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DP | {"num_rounds": 30, "evaluate_every": 30, "dp_epsilon": 4.0}
    stage = run(2, **settings)["stages"]["1"]
    rounds = stage["privacy"]["rounds"]
    assert f"room for {rounds} of 30 rounds" in capsys.readouterr().out
    assert [entry["round"] for entry in stage["rounds"]] == list(range(rounds + 1))
    assert epsilon(Counter({Mechanism(0.6, 2.0): rounds + 1}), 1e-5) > 4.0
    assert stage["privacy"]["epsilon"] == epsilon(Counter({Mechanism(0.6, 2.0): rounds}), 1e-5)
    assert 3.0 < stage["privacy"]["epsilon"] <= 4.0
    assert (stage["status"], "valid" in stage["rounds"][-1]) == ("complete", True)
    with pytest.raises(ConfigError, match=r"no round of stage 1 left.*spent") as raised:
        run(2, redo=True, **settings)
    assert "\n" not in str(raised.value)
    assert run(2, **settings)["stages"]["1"] == stage  # the refusal changed nothing


def test_noised_and_other_training_do_not_mix_in_a_run(run: Any) -> None:
    run(2, **DP)
    with pytest.raises(ConfigError, match="trained with noise, so all of it"):
        run(2, redo=True)
    run(2, run="plain")
    with pytest.raises(ConfigError, match="trained without noise, so all of it"):
        run(2, run="plain", redo=True, **DP)


def test_rounds_that_nobody_saved_count_as_training(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their arrays were on the nodes, and the next stage's noise would not cover them."""
    cut_in(monkeypatch, "_finish_round", 3, run, checkpoint_every=9)
    with pytest.raises(ConfigError, match="trained without noise, so all of it"):
        run(2, run="cut", redo=True, **DP)


def test_a_round_released_twice_with_other_nodes_has_other_noise_and_is_charged_twice(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same noise, the difference of the two would be the absent node's sum."""
    seen: list[Any] = []
    original = StageStrategy._mean

    def spy(self: StageStrategy, *args: Any) -> Any:
        found, release = original(self, *args)
        seen.append((args[0], release["absent"], found))
        return found, release

    monkeypatch.setattr(StageStrategy, "_mean", spy)
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    with monkeypatch.context() as patch:
        losing(patch, lambda round_, node: round_ == 2 and node == 1001)
        privacy = run(2, run="cut", **DP)["stages"]["1"]["privacy"]
    expected = [(1, []), (2, []), (2, ["partition-1"]), (3, [])]
    assert [(r["round"], r["absent"]) for r in privacy["releases"]] == expected
    twice = Counter({Mechanism(0.6, 2.0): 2, Mechanism(0.6, 2.0 / math.sqrt(2)): 1})
    assert spending(privacy) == twice
    assert privacy["epsilon"] == epsilon(twice, 1e-5)
    whole, less = (
        found.delta
        for round_, absent, found in seen
        if round_ == 2 and absent in ([], expected[2][1])
    )
    difference = torch.cat([(whole[n] - less[n]).flatten() for n in whole]).double()
    # a node's sum is at most 0.05 for each of its 10 users; the difference is two noises
    noise = math.sqrt(2) * 0.05 * 2.0 / (0.6 * 20)
    assert float(difference.std()) == pytest.approx(noise, rel=0.05)


def test_a_second_release_that_would_pass_the_budget_stops_the_run(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DP | {"dp_epsilon": 1.001 * epsilon(Counter({Mechanism(0.6, 2.0): 3}), 1e-5)}
    cut_in(monkeypatch, "_validate", 3, run, **settings)
    with monkeypatch.context() as patch:
        losing(patch, lambda round_, node: round_ == 3 and node == 1001)
        with pytest.raises(RoundError, match=r"released before.*without partition-1"):
            run(2, run="cut", **settings)
    assert run(2, run="cut", **settings)["stages"]["1"]["status"] == "complete"


def test_a_stage_that_ends_early_for_a_round_charged_twice_is_validated(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DP | {"num_rounds": 5, "evaluate_every": 5}
    settings |= {"dp_epsilon": 1.001 * epsilon(Counter({Mechanism(0.6, 2.0): 5}), 1e-5)}
    cut_in(monkeypatch, "_finish_round", 2, run, **settings)
    with monkeypatch.context() as patch:
        losing(patch, lambda round_, node: round_ == 2 and node == 1001)
        stage = run(2, run="cut", **settings)["stages"]["1"]
    last = stage["rounds"][-1]["round"]
    assert f"the privacy budget is spent before round {last + 1}" in capsys.readouterr().out
    assert [e["round"] for e in stage["rounds"] if "valid" in e] == [0, last]
    assert 2 < stage["privacy"]["epsilon_after"] == last < 5
    assert stage["privacy"]["epsilon"] <= settings["dp_epsilon"]


@pytest.mark.parametrize("changed", [{"dp_epsilon": 0.0}, {"dp_epsilon": 10.0}, {"dp_delta": 0.01}])
def test_the_budget_is_that_of_the_run(run: Any, changed: dict[str, float]) -> None:
    settings = DP | {"dp_epsilon": 9.0}
    first = run(2, **settings)
    with pytest.raises(ConfigError, match=r"dp-delta=1e-05 and dp-epsilon=9 or less") as raised:
        run(2, redo=True, **(settings | changed))
    assert "\n" not in str(raised.value)
    assert run(2, redo=True, **(settings | {"dp_epsilon": 8.0}))["superseded"] != []
    assert run(2, run="more", **DP)["stages"].keys() == first["stages"].keys()
    run(2, run="more", redo=True, **settings)  # a budget may be set later


def test_what_released_nothing_has_no_budget(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_in(monkeypatch, "_round", 1, run, **(DP | {"dp_epsilon": 3.0}))
    assert run(2, run="cut", redo=True, **(DP | {"dp_epsilon": 9.0}))["superseded"] != []


def test_with_noise_on_the_nodes_all_of_them_have_to_answer(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, lambda round_, node: node == 1001)
    with pytest.raises(RoundError, match=r"nodes answered, twice.*expected 100% of the nodes"):
        run(4, dp_noise_on="nodes", **DP)
    privacy = run(4, run="server", **DP)["stages"]["1"]["privacy"]
    assert {tuple(release["absent"]) for release in privacy["releases"]} == {("partition-1",)}


@pytest.mark.parametrize("where", ["server", "nodes", "secure"])
def test_all_stages_share_one_budget(tmp_path: Path, where: str) -> None:
    """Stages 2 and 3, too: clipped, noised, without logs, charged on top of what came before."""
    folder = write_mixed(tmp_path / "dataset")
    settings = STAGED | DP | {"home": str(tmp_path / "home"), "dataset": str(folder), "stage": 0}
    settings |= {"num_rounds": 2, "memory_novelty": 0.3, "dp_noise_on": where}
    settings |= {"aggregation": "secure"} if where == "secure" else {}
    stages = run_in_process(3, **settings)["stages"]
    rate = settings.get("fraction_train", 0.1)
    noise = 2.0 * math.sqrt(3 / 2) if where == "secure" else 2.0  # of three sites, two are enough
    for number, stage in stages.items():
        spent = Counter({Mechanism(rate, noise): 2 * int(number)})
        assert stage["privacy"]["epsilon"] == epsilon(spent, 1e-5)
        assert ("gate" in stage["rounds"][-1]) == (number != "1")
        assert not {"router", "losses", "memory", "clipped"} & stage["rounds"][-1].keys()
        assert stage["memory_novelty"] == (None if number == "1" else 0.3)
