"""Rounds of secure sums in process: the same model, lost nodes, refusals, and nothing bare sent."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client_app import secure as client_secure
from feddmmr.launch.in_process import InProcessGrid
from server_app.admission import secure_record
from server_app.rounds.exchange import Asking
from server_app.rounds.secure import SecureSums
from shared_model.errors import ConfigError, RoundError
from shared_model.protocol import messages, secure_messages
from shared_model.protocol.config import parse_settings
from tests.conftest import checkpoint
from tests.support.private_runs import DP
from tests.support.rounds import cut_at, last_round, without_seconds
from tests.support.strategy import DEFAULTS

CLIPPED: dict[str, Any] = {"dp_clip_norm": 0.05, "weighting": "uniform"}
MEAN = {**CLIPPED, "aggregation": "mean", "num_rounds": 1}
SECURE = {**CLIPPED, "aggregation": "secure", "num_rounds": 1}
NODES = 4  # threshold 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Message, Message]]:
    """All requests and their replies."""
    seen: list[tuple[Message, Message]] = []
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Message) -> Message:
        reply = original(self, message)
        seen.append((message, reply))
        return reply

    monkeypatch.setattr(InProcessGrid, "_handle", handle)
    return seen


def lose(monkeypatch: pytest.MonkeyPatch, lost: set[tuple[str, int]]) -> None:
    """Messages of a type to a node (of 0 to 3) are answered by an exception."""
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Any) -> Any:
        if (message.metadata.message_type, message.metadata.dst_node_id - 1000) in lost:
            message.metadata.__dict__["_dst_node_id"] = -1  # no such context: an error reply
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_handle", handle)


def _differ(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float((one[name] - value).abs().max()) for name, value in other.items())


@pytest.mark.parametrize("against", ["lying", "curious"])
def test_the_model_is_that_of_the_plain_sum_and_no_update_is_sent(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[Message, Message]],
    against: str,
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    plain = run(NODES, run="plain", **MEAN)
    asked.clear()
    secure = run(NODES, run="secure", secure_against=against, **SECURE)
    assert _differ(arrays["plain"], arrays["secure"]) < 1e-5
    rounds = [manifest["stages"]["1"]["rounds"] for manifest in (plain, secure)]
    assert [r["participants"] for r in rounds[0]] == [r["participants"] for r in rounds[1]]
    assert all(r["loss"] is None for r in rounds[1])
    assert secure["stages"]["1"]["secure"] == {"against": against, "threshold": 3, "sites": 4}
    trained = [reply for request, reply in asked if request.metadata.message_type == "train"]
    assert len(trained) == NODES
    for reply in trained:
        assert set(reply.content) == {"masked", "envelopes"}
    kinds = Counter(request.metadata.message_type for request, _ in asked)
    assert kinds["query.keys"] == kinds["query.forget"] == NODES  # once a stage
    assert kinds["query.reveal"] == (NODES if against == "lying" else 0)
    assert not list((tmp_path / "home" / "secure").iterdir())


@pytest.mark.parametrize("against", ["lying", "curious"])
def test_a_lost_node_leaves_the_sum_of_the_others(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, against: str
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    lose(monkeypatch, {("train", 2)})
    plain = run(NODES, run="plain", **MEAN)
    secure = run(NODES, run="secure", secure_against=against, **SECURE)
    assert _differ(arrays["plain"], arrays["secure"]) < 1e-5
    for manifest in (plain, secure):
        for entry in manifest["stages"]["1"]["rounds"][1:]:
            assert [drop["node"] for drop in entry["dropped"]] == ["partition-2"]


@pytest.mark.parametrize("kind", ["query.keys", "query.reveal"])
def test_a_node_that_is_lost_elsewhere(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without a key it is not in the sum; if it does not help to open the sum it is."""
    arrays = last_round(tmp_path, monkeypatch)
    run(NODES, run="all", **MEAN)
    with monkeypatch.context() as patch:
        lose(patch, {("train", 1)})
        run(NODES, run="without", **MEAN)
    with monkeypatch.context() as patch:
        lose(patch, {(kind, 1)})
        run(NODES, run="secure", **SECURE)
    equal, other = ("without", "all") if kind == "query.keys" else ("all", "without")
    assert _differ(arrays[equal], arrays["secure"]) < 1e-5
    assert _differ(arrays[other], arrays["secure"]) > 1e-4


def test_a_node_that_left_is_not_asked_and_may_come_back(
    run: Any, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Message, Message]]
) -> None:
    """Two of three nodes are left in round 2; in round 3 the third masks under its old key."""
    here, train = InProcessGrid.get_node_ids, Asking.train
    rounds = [0]

    def online(self: InProcessGrid) -> list[int]:
        return [node for node in here(self) if rounds[-1] != 2 or node != 1002]

    def counted(self: Asking, round_: int, arrays: Any) -> Any:
        rounds.append(round_)
        return train(self, round_, arrays)

    monkeypatch.setattr(InProcessGrid, "get_node_ids", online)
    monkeypatch.setattr(Asking, "train", counted)
    entries = run(3, **SECURE | {"num_rounds": 3, "evaluate_every": 3})["stages"]["1"]["rounds"]
    assert [entry["nodes"] for entry in entries] == [3, 3, 2, 3]
    assert (entries[2]["left"], entries[3]["joined"]) == (["partition-2"], ["partition-2"])
    kinds = Counter(request.metadata.message_type for request, _ in asked)
    assert kinds["query.keys"] == 3


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("train", "too few nodes answered, twice"),
        ("query.keys", "too few nodes answered, twice"),
        ("query.reveal", "too few sites sent shares: the sum stays closed"),
    ],
)
def test_too_many_lost_stop_the_round(
    run: Any, monkeypatch: pytest.MonkeyPatch, kind: str, match: str
) -> None:
    lose(monkeypatch, {(kind, 1), (kind, 3)})
    with pytest.raises(RoundError, match=match):
        run(NODES, **SECURE)


def test_nonsense_stops_the_round_with_names(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original, sent = client_secure.packed, []

    def packed(update: Any, *args: Any) -> Any:
        words = original(update, *args)
        words[0] += np.uint32(0 if sent else 2**30)  # the first node's alone
        sent.append(update)
        return words

    monkeypatch.setattr(client_secure, "packed", packed)
    with pytest.raises(RoundError, match=r"nonsense.*partition-0, partition-1, .*norm beyond"):
        run(NODES, **SECURE)


def test_a_cut_run_ends_in_the_same_bytes(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = SECURE | {"num_rounds": 2}
    whole = run(3, run="whole", **two)
    with monkeypatch.context() as patch:
        patch.setattr(SecureSums, "forget", lambda _: None)  # nobody says goodbye
        cut_at(lambda _, **kwargs: run(3, **kwargs), monkeypatch, 1, two)
    left = {path.read_text() for path in (tmp_path / "home" / "secure").iterdir()}
    assert len(left) == 3
    resumed = run(3, run="cut", **two)
    one, other = checkpoint(tmp_path, "whole", whole), checkpoint(tmp_path, "cut", resumed)
    assert all((one[name] == other[name]).all() for name in one)
    assert without_seconds(whole)["test"] == without_seconds(resumed)["test"]
    assert not list((tmp_path / "home" / "secure").iterdir())


def test_what_a_stage_began_with_stays() -> None:
    given = DEFAULTS | {"aggregation": "secure", "dp-clip-norm": 1.0, "weighting": "uniform"}
    lying, curious = (parse_settings(given | {"secure-against": w}) for w in ("lying", "curious"))
    record: Any = {"rounds": []}
    record["secure"] = secure_record(lying, record, 10)
    assert record["secure"] == {"against": "lying", "threshold": 7, "sites": 10}
    assert secure_record(curious, record, 10) != record["secure"]  # nothing was trained
    record["rounds"] = [{"round": 0}]
    assert secure_record(lying, record, 10) == record["secure"]
    for settings, nodes in ((curious, 10), (lying, 11)):
        with pytest.raises(ConfigError, match="began with other secure sums"):
            secure_record(settings, record, nodes)
    assert secure_record(parse_settings(DEFAULTS), record, 10) is None


def test_a_killed_node_never_masks_twice(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies after it wrote a mask's number down: no vector of it in this round."""
    original, killed = client_secure.SecureSite._keep, []

    def keep(self: Any, session: Any) -> None:
        original(self, session)
        if session.number == 1 and self.name == "partition-2" and not killed:
            killed.append(self.name)
            raise SystemError("killed")

    monkeypatch.setattr(client_secure.SecureSite, "_keep", keep)
    rounds = run(NODES, **SECURE | {"num_rounds": 2})["stages"]["1"]["rounds"]
    assert [len(entry["dropped"]) for entry in rounds] == [0, 1, 0]


def test_a_session_is_for_its_owner_alone(run: Any, tmp_path: Path) -> None:
    modes: list[int] = []

    def look(self: Any, session: Any) -> None:
        original(self, session)
        modes.append(self.path.stat().st_mode & 0o777)

    original = client_secure.SecureSite._keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_secure.SecureSite, "_keep", look)
        run(3, **SECURE)
    assert set(modes) == {0o600}


def test_noise_of_the_server_on_a_secure_sum(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_secret: Any
) -> None:
    arrays = last_round(tmp_path, monkeypatch)
    run(NODES, run="plain", **DP, num_rounds=1)
    secure = run(NODES, run="secure", **DP | {"aggregation": "secure", "num_rounds": 1})
    assert _differ(arrays["plain"], arrays["secure"]) < 1e-5
    assert len(secure["stages"]["1"]["privacy"]["releases"]) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dp_clip_norm": 0.0}, "dp-clip-norm"),
        ({"weighting": "targets"}, "weighting"),
        ({"dp_noise_multiplier": 1.0, "dp_noise_on": "nodes"}, "dp-noise-on"),
        ({"secure_threshold": 0.5}, "secure-threshold"),
        ({"secure_against": "nobody"}, "secure-against"),
    ],
)
def test_what_does_not_fit_is_refused(run: Any, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run(NODES, **SECURE | change)


def test_two_nodes_are_too_few(run: Any) -> None:
    with pytest.raises(ConfigError, match="3 to 64 nodes; got 2"):
        run(2, **SECURE)


def test_messages_survive_the_wire() -> None:
    for read, content in (
        (secure_messages.read_masked, messages.error_content("x")),
        (secure_messages.read_reveal, messages.error_content("x")),
        (secure_messages.read_key, messages.error_content("x")),
    ):
        with pytest.raises(Exception, match=r"message without|reply without"):
            read(content)
