"""Private runs in process: topology, resume, redo, budget, and what is written down."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from server_app import ledger
from server_app.ledger import spending
from server_app.noising import Noising
from server_app.privacy import Mechanism, epsilon
from server_app.rounds import StageRun
from server_app.strategy import StageStrategy
from shared_model.errors import ConfigError, ManifestError, RoundError
from shared_model.model import ModelShape, build, read_groups
from shared_model.noise import draw_secret
from shared_model.stages import stage_of
from tests.conftest import CutError
from tests.test_round import last_round, without_seconds
from tests.test_stages import SETTINGS as STAGED
from tests.test_stages import write_mixed
from tools.in_process import InProcessGrid, run_in_process

DP: dict[str, Any] = {
    "dp_clip_norm": 0.05,
    "dp_noise_multiplier": 2.0,
    "weighting": "uniform",
    "aggregation": "mean",
}


@pytest.fixture
def one_secret(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on all runs draw the same secret, so that they can be compared; or draw again."""
    monkeypatch.setattr(ledger, "draw_secret", lambda: bytes(range(32)))
    return lambda: monkeypatch.setattr(ledger, "draw_secret", draw_secret)


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


def cut_in(
    monkeypatch: pytest.MonkeyPatch, method: str, at: int, run: Any, **settings: Any
) -> None:
    """Run 'cut' until this round's call of a method of StageRun; there the server dies."""
    original = getattr(StageRun, method)

    def cut(self: StageRun, *args: Any) -> Any:
        if (args[0]["round"] if method == "_finish_round" else args[0]) == at:
            raise CutError
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, method, cut)
        with pytest.raises(CutError):
            run(2, run="cut", **settings)


@pytest.mark.usefixtures("one_secret")
@pytest.mark.parametrize("where", ["server", "nodes"])
@pytest.mark.parametrize(("method", "at"), [("_validate", 2), ("_finish_round", 3), ("_round", 1)])
def test_a_cut_off_run_ends_in_the_same_bytes_and_pays_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, at: int, where: str
) -> None:
    settings = DP | {"num_rounds": 5, "evaluate_every": 2, "checkpoint_every": 3}
    settings |= {"dp_noise_on": where}
    whole = without_seconds(run(2, run="whole", **settings))
    cut_in(monkeypatch, method, at, run, **settings)
    path = tmp_path / "home" / "runs" / "cut" / "manifest.json"
    saved = json.loads(path.read_text())["stages"]["1"]["privacy"]["releases"]
    released = at if method != "_round" else 0  # written down before anyone could see it
    assert saved == whole["privacy"]["releases"][:released]
    assert without_seconds(run(2, run="cut", **settings)) == whole


def test_no_more_than_the_last_release_is_ever_replayed(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a replay without another node, rounds would repeat noise that is out on other sums."""
    settings = DP | {"num_rounds": 5, "evaluate_every": 5, "checkpoint_every": 5}
    cut_in(monkeypatch, "_finish_round", 4, run, **settings)
    path = tmp_path / "home" / "runs" / "cut" / "manifest.json"
    stage = json.loads(path.read_text())["stages"]["1"]
    assert stage["last"]["round"] == 3
    assert len(stage["privacy"]["releases"]) == 4


def test_a_run_does_not_go_on_without_its_secret(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    secret = secret_of(tmp_path)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text() not in secret.with_name("manifest.json").read_text()
    secret.unlink()
    with pytest.raises(ManifestError, match=r"noise secret of this stage is missing.*redo=true"):
        run(2, run="cut", **DP)
    assert_redone(run(2, run="cut", redo=True, **DP))


def secret_of(tmp_path: Path) -> Path:
    """The only one of the run "cut"."""
    (path,) = (tmp_path / "home" / "runs" / "cut").glob("noise-secret-*")
    return path


def test_a_redo_that_ends_before_it_saved_anything_takes_nothing_away(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage that it was to replace goes on, with the noise it had."""
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    first = secret_of(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt  # after which nothing is saved

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_validate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(2, run="cut", redo=True, **(DP | {"local_steps": 2}))
    assert first.is_file()
    assert run(2, run="cut", **DP)["stages"]["1"]["status"] == "complete"
    assert not list(first.parent.glob("noise-secret*"))


def test_nodes_never_send_a_round_under_two_noises(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noised sum is out once a node has sent it, whatever becomes of the round."""
    draws: list[tuple[int, str]] = []
    original = Noising.plan

    def spy(self: Noising, round_: int) -> dict[str, Any]:
        found = original(self, round_)
        draws.append((round_, found["draw"]))
        return found

    monkeypatch.setattr(Noising, "plan", spy)
    settings = DP | {"dp_noise_on": "nodes"}

    def lost(*_: Any) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(StageStrategy, "aggregate_train", lost)
        for _ in range(2):
            with pytest.raises(CutError):
                run(2, run="cut", **settings)
    privacy = run(2, run="cut", **settings)["stages"]["1"]["privacy"]
    assert [round_ for round_, _ in draws] == [1, 1, 1, 2, 3]
    assert len(set(draws)) == 3
    assert [release["round"] for release in privacy["releases"]] == [1, 2, 3]


def assert_redone(manifest: dict[str, Any]) -> None:
    """With two releases charged before."""
    [old], new = manifest["superseded"], manifest["stages"]["1"]["privacy"]
    assert [len(old["privacy"]["releases"]), len(new["releases"]), new["attempt"]] == [2, 3, 1]
    assert new["epsilon"] == epsilon(Counter({Mechanism(0.6, 2.0): 5}), 1e-5)


@pytest.mark.parametrize("damage", ["cut", "readable"])
def test_a_damaged_secret_is_replaced_by_redoing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    secret = secret_of(tmp_path)
    secret.write_text("00ff") if damage == "cut" else secret.chmod(0o644)
    with pytest.raises(ConfigError, match="noise secret"):
        run(2, run="cut", **DP)
    assert_redone(run(2, run="cut", redo=True, **DP))


def test_no_two_trainings_ever_have_the_same_noise(run: Any, tmp_path: Path) -> None:
    """Not even where the manifest was lost, or is that of an older day, and the secret is there."""
    folder = tmp_path / "home" / "runs" / "default"
    names = [r["noise"] for r in run(2, **DP)["stages"]["1"]["privacy"]["releases"]]
    older = (folder / "manifest.json").read_bytes()
    for keeps in (None, older, older):
        (folder / "manifest.json").unlink()
        if keeps is not None:
            (folder / "manifest.json").write_bytes(keeps)
        manifest = run(2, redo=keeps is not None, **(DP | {"local_steps": 2}))
        names += [r["noise"] for r in manifest["stages"]["1"]["privacy"]["releases"]]
    assert len(set(names)) == len(names) == 4 * 3


def test_what_released_nothing_goes_on_with_other_code_and_other_noise(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say its first round failed by a fault that was mended; then the new code is the stage's."""
    with monkeypatch.context() as patch:
        other_code(patch)
        cut_in(monkeypatch, "_round", 1, run, **DP)
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    with monkeypatch.context() as patch:
        other_code(patch)
        with pytest.raises(ManifestError, match=r"code or its packages changed"):
            run(2, run="cut", **DP)
    assert run(2, run="cut", **DP)["stages"]["1"]["status"] == "complete"


def other_code(patch: pytest.MonkeyPatch) -> None:
    """On server and nodes."""
    for module in ("server_app.ledger", "server_app.app", "server_app.census", "client_app.node"):
        patch.setattr(f"{module}.app_sha256", lambda: "0" * 64)
    patch.setattr("server_app.strategy.app_sha256", lambda: "0" * 64)


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


def test_a_noised_run_does_not_go_on_with_other_code(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    with monkeypatch.context() as patch:
        patch.setattr("server_app.app.version", lambda name: "0.0")
        with pytest.raises(ManifestError, match=r"packages changed.*got code .* torch 0.0.*redo"):
            run(2, run="cut", **DP)
    with monkeypatch.context() as patch:
        other_code(patch)
        with pytest.raises(ManifestError, match=r"code or its packages changed.*redo=true"):
            run(2, run="cut", **DP)
        assert_redone(run(2, run="cut", redo=True, **DP))


def test_other_nodes_do_not_go_on_where_they_draw_the_noise(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nodes would release the last round again with other noise, for which nobody paid."""
    nodes = DP | {"dp_noise_on": "nodes"}
    cut_in(monkeypatch, "_validate", 2, run, **nodes)
    with pytest.raises(ManifestError, match=r"2 nodes with .*partition-0, partition-1; got.*-2;"):
        run(3, run="cut", **nodes)
    assert run(2, run="cut", **nodes)["stages"]["1"]["status"] == "complete"
    cut_in(monkeypatch, "_validate", 2, run, **(nodes | {"seed": 1}), redo=True)
    redone = run(3, run="cut", **(nodes | {"seed": 1}), redo=True)
    assert [len(old["privacy"]["releases"]) for old in redone["superseded"]] == [3, 2]


@pytest.mark.usefixtures("one_secret")
def test_other_partitions_go_on_where_the_server_draws_the_noise(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    run(2, run="whole", **DP)
    cut_in(monkeypatch, "_validate", 2, run, **DP)
    privacy = run(5, run="cut", **DP)["stages"]["1"]["privacy"]
    assert [r["round"] for r in privacy["releases"]] == [1, 2, 3]
    for name, value in arrays["whole"].items():
        assert (value - arrays["cut"][name]).abs().max() <= 1e-5, name


def losing(monkeypatch: pytest.MonkeyPatch, lost: Any) -> None:
    """Training requests (round, node id) that ``lost`` holds for are answered by an exception."""
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Any) -> Any:
        plan = message.content.config_records.get("plan", {})
        if message.metadata.message_type == "train" and lost(
            plan["round"], message.metadata.dst_node_id
        ):
            message.metadata.__dict__["_dst_node_id"] = -1  # no such context: an error reply
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_handle", handle)


def test_a_round_released_twice_with_other_nodes_has_other_noise_and_is_charged_twice(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same noise, the difference of the two would be the absent node's sum."""
    seen: list[Any] = []
    original = StageStrategy._mean

    def spy(self: StageStrategy, *args: Any) -> Any:
        found = original(self, *args)
        seen.append((args[0], self.release["absent"], found))
        return found

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


@pytest.mark.parametrize("where", ["server", "nodes"])
def test_all_stages_share_one_budget(tmp_path: Path, where: str) -> None:
    """Stages 2 and 3, too: clipped, noised, without logs, charged on top of what came before."""
    folder = write_mixed(tmp_path / "dataset")
    settings = STAGED | DP | {"home": str(tmp_path / "home"), "dataset": str(folder), "stage": 0}
    settings |= {"num_rounds": 2, "memory_novelty": 0.3, "dp_noise_on": where}
    stages = run_in_process(3, **settings)["stages"]
    rate = settings.get("fraction_train", 0.1)
    for number, stage in stages.items():
        spent = Counter({Mechanism(rate, 2.0): 2 * int(number)})
        assert stage["privacy"]["epsilon"] == epsilon(spent, 1e-5)
        assert ("gate" in stage["rounds"][-1]) == (number != "1")
        assert not {"router", "losses", "memory", "clipped"} & stage["rounds"][-1].keys()
        assert stage["memory_novelty"] == (None if number == "1" else 0.3)
