"""Rounds of secure sums: the same model, lost nodes, refusals, and nothing bare that is sent."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client_app import secure as client_secure
from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.admission import require_sites, secure_record
from server_app.privacy.mechanism import Noising
from server_app.rounds.result import RoundResult
from shared_model.errors import ConfigError, NodeError, RoundError
from shared_model.protocol import messages, secure_messages
from shared_model.protocol.config import parse_settings
from tests.support.secure_rounds import BARE, NODES, SECURE, Rounds, differ, lose, rounds_of
from tests.support.strategy import DEFAULTS

Make = Callable[..., Rounds]


@pytest.fixture
def rounds(small_dataset: Dataset, tmp_path: Path) -> Make:
    def make(nodes: int = NODES, **overrides: Any) -> Rounds:
        return rounds_of(small_dataset.folder, tmp_path / "home", nodes, **overrides)

    return make


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


def _dropped(result: RoundResult) -> list[str]:
    return [drop["node"] for drop in result.exchange.dropped]


@pytest.mark.parametrize("against", ["lying", "curious"])
def test_the_model_is_that_of_the_bare_sum_and_no_update_is_sent(
    rounds: Make, tmp_path: Path, asked: list[tuple[Message, Message]], against: str
) -> None:
    bare, secure = rounds(**BARE), rounds(secure_against=against, **SECURE)
    start, ends = bare.arrays, [bare.train() for _ in range(3)]
    asked.clear()
    found = [secure.train() for _ in range(3)]
    assert differ(bare.arrays, secure.arrays) < 1e-5 < 1e-3 < differ(start, secure.arrays)
    assert [r.participants for r in ends] == [r.participants for r in found]
    assert all(r.loss is None and not r.exchange.dropped for r in found)
    trained = [reply for request, reply in asked if request.metadata.message_type == "train"]
    assert len(trained) == 3 * NODES
    for reply in trained:
        assert set(reply.content) == {"masked", "envelopes"}
    kept = list((tmp_path / "home" / "secure").iterdir())
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600] * NODES
    secure.asking.close()
    assert not list((tmp_path / "home" / "secure").iterdir())
    kinds = Counter(request.metadata.message_type for request, _ in asked)
    assert kinds["query.keys"] == kinds["query.forget"] == NODES  # once a stage
    assert kinds["query.reveal"] == (3 * NODES if against == "lying" else 0)


@pytest.mark.parametrize("against", ["lying", "curious"])
def test_a_lost_node_leaves_the_sum_of_the_others(
    rounds: Make, monkeypatch: pytest.MonkeyPatch, against: str
) -> None:
    everyone, bare = rounds(**BARE), rounds(**BARE)
    everyone.train()
    lose(monkeypatch, ("train", 2))
    secure = rounds(secure_against=against, **SECURE)
    assert _dropped(bare.train()) == _dropped(secure.train()) == ["partition-2"]
    assert differ(bare.arrays, secure.arrays) < 1e-5 < 1e-4 < differ(everyone.arrays, bare.arrays)


@pytest.mark.parametrize("kind", ["query.keys", "query.reveal"])
def test_a_node_that_is_lost_elsewhere(
    rounds: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without a key it is not in the sum; if it does not help to open the sum it is."""
    secure, bare = rounds(**SECURE), rounds(**BARE)
    with monkeypatch.context() as patch:
        lose(patch, (kind, 1), *[("train", 1)] * (kind == "query.keys"))
        result = secure.train()
        bare.train()
    assert _dropped(result) == (["partition-1"] if kind == "query.keys" else [])
    assert differ(bare.arrays, secure.arrays) < 1e-5
    assert not secure.train().exchange.dropped  # it has a key by now, or helps again


def test_a_node_that_left_is_not_asked_and_may_come_back(
    rounds: Make, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Message, Message]]
) -> None:
    """Two of three nodes are left in round 2; in round 3 the third masks under its old key."""
    secure, bare = rounds(3, **SECURE), rounds(3, **BARE)
    here, found = InProcessGrid.get_node_ids, []

    def online(self: InProcessGrid) -> list[int]:
        return [node for node in here(self) if secure.number != 2 or node != 1002]

    monkeypatch.setattr(InProcessGrid, "get_node_ids", online)
    for _ in range(3):
        found.append((secure.train().nodes, secure.asking.presence.take_events()))
        bare.train()
    assert found == [(3, {}), (2, {"left": ["partition-2"]}), (3, {"joined": ["partition-2"]})]
    assert differ(bare.arrays, secure.arrays) < 1e-5
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
    rounds: Make, monkeypatch: pytest.MonkeyPatch, kind: str, match: str
) -> None:
    lose(monkeypatch, (kind, 1), (kind, 3))
    with pytest.raises(RoundError, match=match):
        rounds(**SECURE).train()


def test_nonsense_stops_the_round_with_names(rounds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original, sent = client_secure.packed, []

    def packed(update: Any, *args: Any) -> Any:
        words = original(update, *args)
        words[0] += np.uint32(0 if sent else 2**30)  # the first node's alone
        sent.append(update)
        return words

    monkeypatch.setattr(client_secure, "packed", packed)
    with pytest.raises(RoundError, match=r"nonsense.*partition-0, partition-1, .*norm beyond"):
        rounds(**SECURE).train()


def test_noise_of_the_server_on_a_secure_sum(rounds: Make) -> None:
    noising = Noising(b"k" * 32, 0.05, std=0.1, users=20, fraction=0.6, noise_on="server")
    private = {"noising": noising, "dp_noise_multiplier": 2.0}
    bare, secure = rounds(**BARE, **private), rounds(**SECURE, **private)
    quiet = rounds(**SECURE)
    results = [asked.train() for asked in (bare, secure, quiet)]
    assert differ(bare.arrays, secure.arrays) < 1e-5 < 1e-3 < differ(quiet.arrays, secure.arrays)
    assert results[0].release == results[1].release


def test_a_killed_node_never_masks_twice(rounds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies after it wrote a mask's number down: no vector of it in this round."""
    original, killed = client_secure.SecureSite._keep, []

    def keep(self: Any, session: Any) -> None:
        original(self, session)
        if session.number == 1 and self.name == "partition-2" and not killed:
            killed.append(session)
            raise SystemError("killed")

    monkeypatch.setattr(client_secure.SecureSite, "_keep", keep)
    secure = rounds(**SECURE)
    assert [_dropped(secure.train()) for _ in range(2)] == [["partition-2"], []]


def test_a_key_that_nobody_would_take_is_not_passed_on(
    rounds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = client_secure.SecureSite.draw

    def draw(self: Any, session: str) -> Any:
        key = original(self, session)
        return replace(key, public=bytes(32)) if self.name == "partition-3" else key

    monkeypatch.setattr(client_secure.SecureSite, "draw", draw)
    result = rounds(**SECURE).train()
    assert _dropped(result) == ["partition-3"]
    assert "no key: " in result.exchange.dropped[0]["reason"]
    assert "reply" not in result.exchange.dropped[0]["reason"]  # it was not asked for a vector


def test_flowers_own_loop_opens_no_sum(rounds: Make) -> None:
    with pytest.raises(ConfigError, match="more than the four hooks"):
        rounds(**SECURE).asking._strategy.aggregate_train(1, [])


def test_a_plan_for_the_bare_update_is_refused(rounds: Make, asked: Any) -> None:
    """By a node whose run is secure, though the server asks for less."""
    rounds(**SECURE).train()
    request = next(r for r, _ in asked if r.metadata.message_type == "train")
    del request.content["secure"]
    grid = rounds(**SECURE).asking._grid
    [reply] = grid.send_and_receive([Message(request.content, 1000, "train")])
    with pytest.raises(NodeError, match="under masks alone"):
        messages.check_reply(reply)


def test_an_owner_who_takes_no_server_at_its_word(
    rounds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with secure-only masks against a lying server, and sends nothing else."""
    for settings, match in (
        (BARE, "under masks alone"),
        ({**SECURE, "secure_against": "curious"}, "takes no server at its word"),
    ):
        asking = rounds(**settings)
        for context in asking.asking._grid.contexts.values():  # type: ignore[attr-defined]
            context.node_config["secure-only"] = True
        with pytest.raises(RoundError, match=match):
            asking.train()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dp-clip-norm": 0.0}, "dp-clip-norm"),
        ({"weighting": "targets"}, "weighting"),
        ({"dp-noise-multiplier": 1.0, "dp-noise-on": "nodes"}, "dp-noise-on"),
        ({"secure-threshold": 0.5}, "secure-threshold"),
        ({"secure-against": "nobody"}, "secure-against"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    fits = {"aggregation": "secure", "dp-clip-norm": 1.0, "weighting": "uniform"}
    assert parse_settings(DEFAULTS | fits).secure
    with pytest.raises(ConfigError, match=match):
        parse_settings(DEFAULTS | fits | change)


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
    with pytest.raises(ConfigError, match="3 to 64 nodes; got 2"):
        require_sites(lying, 2)


def test_messages_without_their_parts_are_named() -> None:
    for read in (
        secure_messages.read_masked,
        secure_messages.read_reveal,
        secure_messages.read_key,
        secure_messages.read_shares,
    ):
        with pytest.raises(NodeError, match=r"message without|reply without"):
            read(messages.error_content("x"))
