"""Private runs that were cut off: under the same noise, or redone, and never paid for twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from server_app.privacy.accountant import Mechanism, epsilon
from server_app.privacy.mechanism import Noising
from server_app.rounds.loop import StageRun
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import ConfigError, ManifestError
from tests.conftest import CutError
from tests.support.private_runs import DP, cut_in
from tests.support.rounds import last_round, without_seconds


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
        patch.setattr(StageStrategy, "step", lost)
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
    for module in (
        "server_app.privacy.ledger",
        "server_app.app",
        "server_app.nodes.census",
        "client_app.node",
    ):
        patch.setattr(f"{module}.app_sha256", lambda: "0" * 64)
    patch.setattr("server_app.rounds.strategy.app_sha256", lambda: "0" * 64)


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
