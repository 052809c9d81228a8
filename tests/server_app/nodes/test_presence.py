"""Nodes that leave, come back under a new id, or ask to join: in process, with real rounds.

Over 300 lines on purpose: every case needs the same grid, whose nodes come and go.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict

from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.app import federate
from server_app.nodes import presence
from server_app.nodes.census import take_census
from server_app.rounds.loop import StageRun
from shared_model.errors import RoundError
from shared_model.protocol.config import Value, default_config, parse_settings
from tests.conftest import SMALL
from tests.support.paths import ROOT

DEFAULTS = default_config(ROOT / "pyproject.toml")
NODES = 3


class ShiftingGrid(InProcessGrid):
    """Nodes leave and come; one that left answers as Flower does for it: error 5, from node 1."""

    def __init__(self, config: dict[str, Value]) -> None:
        self.config = config
        self.hung: set[int] = set()
        self.late = 0  # how many times replies are asked for in vain
        self.sent: list[tuple[str, int]] = []  # message type, node
        self.looks: list[Callable[[], None]] = []  # what happens at each next look
        super().__init__([partition(i) for i in range(NODES)], config)

    def leave(self, number: int) -> None:
        """The node of this partition goes offline."""
        name = f"partition-{number}"
        for node, context in list(self.contexts.items()):
            if name in (context.node_config.get("name"), f"partition-{node - 1000}"):
                del self.contexts[node]

    def come(self, node: int, **config: Value) -> None:
        """A node with this id and node-config comes online."""
        given = {key.replace("_", "-"): value for key, value in config.items()}
        run_config = self.config | {"dataset": given.pop("dataset", self.config["dataset"])}
        self.contexts[node] = Context(1, node, given, RecordDict(), run_config)

    def get_node_ids(self) -> Iterable[int]:
        if self.looks:
            self.looks.pop(0)()
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        given = list(messages)
        self.sent += [(m.metadata.message_type, m.metadata.dst_node_id) for m in given]
        ids = list(super().push_messages(given))
        for message, id_ in zip(given, ids, strict=True):
            if message.metadata.dst_node_id in self.hung:
                self._replies.pop(id_)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.late:
            self.late -= 1
            return []
        return super().pull_messages(message_ids)

    def _handle(self, message: Message) -> Message:
        if message.metadata.dst_node_id in self.contexts:
            return super()._handle(message)
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply


def partition(number: int) -> dict[str, Value]:
    return {"partition-id": number, "num-partitions": NODES, "name": f"partition-{number}"}


class Shifting:
    """A run of Stage 1 on three nodes, in which things happen when a round is finished."""

    def __init__(self, home: Path, dataset: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.dataset, self.patch = home, dataset, patch
        self.grid = self.new_grid()
        self.arrays: dict[str, dict[str, torch.Tensor]] = {}  # of each run's last round

    def same_arrays(self, left: str, right: str) -> bool:
        """Whether two runs ended in the same bytes, whatever round was their best."""
        one, other = self.arrays[left], self.arrays[right]
        return all(torch.equal(one[name], other[name]) for name in one | other)

    def new_grid(self, **overrides: Value) -> ShiftingGrid:
        given = {"home": str(self.home), "stage": 1, "dataset": str(self.dataset), "num_rounds": 4}
        given |= {"node_timeout": 0.5}
        keys = {k.replace("_", "-"): v for k, v in (SMALL | given | overrides).items()}
        self.grid = ShiftingGrid(DEFAULTS | keys)
        return self.grid

    def go(self, run: str, after: dict[int, Callable[[], object]] | None = None) -> dict[str, Any]:
        """Stage 1's record; ``after`` holds what happens when a round is finished."""
        finish, events = StageRun._finish_round, after or {}

        def finished(stage: StageRun, entry: Any, started: float, save: Any) -> None:
            finish(stage, entry, started, save)
            self.arrays[run] = {name: value.clone() for name, value in save.items()}
            events.get(entry["round"], lambda: None)()

        with self.patch.context() as patch:
            patch.setattr(StageRun, "_finish_round", finished)
            manifest = federate(self.grid, parse_settings(self.grid.config | {"run": run}))
        record: dict[str, Any] = manifest["stages"]["1"]
        return record


@pytest.fixture
def shifting(tmp_path: Path, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Shifting:
    return Shifting(tmp_path / "home", small_dataset.folder, monkeypatch)


def by_round(record: dict[str, Any], key: str) -> dict[int, Any]:
    return {entry["round"]: entry[key] for entry in record["rounds"] if entry.get(key)}


def dropped(record: dict[str, Any]) -> dict[int, list[str]]:
    found = by_round(record, "dropped")
    return {round_: sorted({d["node"] for d in drops}) for round_, drops in found.items()}


def test_a_node_that_is_back_in_time_changes_nothing(shifting: Shifting) -> None:
    whole, grid = shifting.go("whole"), shifting.new_grid()

    def restart() -> None:
        grid.leave(1)
        grid.come(77, **partition(1))

    record = shifting.go("back", {2: restart})
    assert shifting.same_arrays("back", "whole")
    assert record["test"] == whole["test"]
    assert by_round(record, "left") == {3: ["partition-1"]}
    assert by_round(record, "joined") == {3: ["partition-1"]}
    assert dropped(record) == {}
    assert "left" not in json.dumps(whole)


@pytest.mark.parametrize("back", [77, 1001])  # a SuperNode that authenticates keeps its id
def test_a_node_that_misses_rounds_is_named_in_exactly_those(
    shifting: Shifting, capsys: pytest.CaptureFixture[str], back: int
) -> None:
    grid = shifting.grid
    after: dict[int, Callable[[], object]] = {
        1: lambda: grid.looks.extend([lambda: None, lambda: grid.leave(1)]),  # before validation
        3: lambda: grid.come(back, **partition(1)),
    }
    record = shifting.go("missed", after)
    assert record["status"] == "complete"
    assert dropped(record) == {2: ["partition-1"], 3: ["partition-1"]}
    assert by_round(record, "left") == {2: ["partition-1"]}
    assert by_round(record, "joined") == {4: ["partition-1"]}
    assert by_round(record, "nodes") == {0: 3, 1: 3, 2: 3, 3: 2, 4: 3}
    assert grid.sent[-5:].count(("evaluate", back)) == 2  # round 4 and the test
    assert record["test_dropped"] == []
    printed = capsys.readouterr().out
    assert "node partition-1 left" in printed
    assert "node partition-1 is back" in printed


def test_nothing_is_sent_to_a_node_that_is_away(shifting: Shifting) -> None:
    record = shifting.go("gone", {1: lambda: shifting.grid.leave(1)})
    sent = [type_ for type_, node in shifting.grid.sent if node == 1001]
    assert sent == ["query.prepare", "evaluate", "train", "evaluate"]  # rounds 0 and 1
    assert dropped(record) == {round_: ["partition-1"] for round_ in (2, 3, 4)}
    first, *_, last = record["rounds"][1:]
    assert last["bytes_down"] == pytest.approx(first["bytes_down"] * 2 / 3, rel=0.01)
    assert [drop["node"] for drop in record["test_dropped"]] == ["partition-1"]


def test_a_node_that_leaves_in_the_middle_of_a_round_is_left_out(shifting: Shifting) -> None:
    handle, grid = ShiftingGrid._handle, shifting.grid

    def leaving(self: ShiftingGrid, message: Message) -> Message:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 1001:
            grid.leave(1)
        return handle(self, message)

    shifting.patch.setattr(ShiftingGrid, "_handle", leaving)
    record = shifting.go("middle")
    assert by_round(record, "left") == {1: ["partition-1"]}
    assert set(dropped(record)) == {1, 2, 3, 4}
    assert record["status"] == "complete"


def stranger(kind: str, other: Path) -> tuple[dict[str, Value], str, str]:
    """A newcomer's node-config, the name that it is refused by, and the reason."""
    return {
        "other catalogue": (
            {**partition(1), "dataset": str(other)},
            "partition-1",
            "not the node of this name: other .*catalogue_sha256",
        ),
        "other users": (
            {**partition(2), "name": "partition-1"},
            "partition-1",
            "other partition, users",
        ),
        "unknown": ({**partition(1), "name": "eve"}, "eve", "no node of this run has its name"),
        "name of an online node": (partition(2), "partition-2", "is online; standing by"),
        "no data": ({"partition-id": 1}, "node 77", "the node does not know its users"),
    }[kind]


KINDS = ["other catalogue", "other users", "unknown", "name of an online node", "no data"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_is_refused_by_name_and_the_run_goes_on(
    shifting: Shifting, make_dataset: Callable[..., Dataset], kind: str
) -> None:
    """Even where a place is free: that of partition 1, and nobody else, may fill it."""
    other = make_dataset({user: [1, 2, 3, 4, 5] for user in range(9)}, num_items=31).folder
    config, name, reason = stranger(kind, other)
    shifting.go("gone", {1: lambda: shifting.grid.leave(1)})
    grid = shifting.new_grid()
    record = shifting.go("refused", {1: lambda: (grid.leave(1), grid.come(77, **config))})
    refused = by_round(record, "refused")
    assert list(refused) == [2]
    assert [drop["node"] for drop in refused[2]] == [name]
    assert re.search(reason, refused[2][0]["reason"])
    assert [type_ for type_, node in grid.sent if node == 77] == ["query.prepare"]
    assert shifting.same_arrays("refused", "gone")
    assert by_round(record, "joined") == {}


def test_a_stranger_that_never_answers_is_waited_for_once(
    shifting: Shifting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_GRACE_SECONDS", 0.3)
    grid, looks = shifting.grid, []
    grid.hung.add(77)
    get = ShiftingGrid.get_node_ids
    monkeypatch.setattr(ShiftingGrid, "get_node_ids", lambda self: looks.append(1) or get(self))
    after = {1: lambda: (grid.leave(1), grid.come(77, **partition(1))), 2: looks.clear}
    record = shifting.go("hung", after)
    assert record["status"] == "complete"
    assert set(dropped(record)) == {2, 3, 4}
    assert len(looks) == 2 * 2 + 1  # a look for each training and evaluation: no wait


def test_a_newcomer_has_time_to_answer_while_its_place_is_free(shifting: Shifting) -> None:
    grid = shifting.grid

    def restart() -> None:
        grid.leave(1)
        grid.come(77, **partition(1))
        grid.late = 2

    record = shifting.go("late", {1: restart})
    assert by_round(record, "joined") == {2: ["partition-1"]}
    assert dropped(record) == {}


def test_a_silent_node_is_not_waited_for_twice_in_a_round(shifting: Shifting) -> None:
    grid = shifting.grid
    record = shifting.go("silent", {1: lambda: grid.hung.add(1001), 3: grid.hung.clear})
    assert dropped(record) == {2: ["partition-1"], 3: ["partition-1"]}
    assert len(record["rounds"][2]["dropped"]) == 1
    sent = [type_ for type_, node in grid.sent if node == 1001]
    assert sent[4:] == ["train", "train", "train", "evaluate", "evaluate"]  # rounds 2 to 4, test
    assert by_round(record, "left") == {}


def test_a_double_takes_over_from_a_silent_node(shifting: Shifting) -> None:
    """As when a machine dies and is replaced before Flower notices: its id is still online."""
    grid = shifting.grid

    def hang() -> None:
        grid.hung.add(1001)
        grid.come(77, **partition(1))

    record = shifting.go("double", {1: hang})
    assert [drop["node"] for drop in by_round(record, "refused")[2]] == ["partition-1"]
    assert dropped(record) == {2: ["partition-1"]}
    assert by_round(record, "left") == by_round(record, "joined") == {2: ["partition-1"]}
    assert ("evaluate", 77) in grid.sent


def test_too_few_nodes_are_waited_for(shifting: Shifting) -> None:
    grid = shifting.grid

    def leave() -> None:
        for number in (0, 1):
            grid.leave(number)
        back = [lambda i=i: grid.come(70 + i, **partition(i)) for i in (0, 1)]
        grid.looks = [lambda: None, *back]  # two are enough: the second one comes for validation

    record = shifting.go("back", {2: leave})
    assert by_round(record, "left") == {3: ["partition-0", "partition-1"]}
    assert by_round(record, "joined") == {3: ["partition-0", "partition-1"]}
    assert dropped(record) == {3: ["partition-1"]}
    assert [node for type_, node in grid.sent if type_ == "train"][6:8] == [70, 1002]


def test_where_all_draw_noise_a_single_node_is_waited_for(shifting: Shifting) -> None:
    private = {"dp_clip_norm": 0.5, "dp_noise_multiplier": 1.0, "dp_noise_on": "nodes"}
    grid = shifting.new_grid(weighting="uniform", aggregation="mean", **private)

    def leave() -> None:
        grid.leave(1)
        grid.looks = [lambda: None, lambda: None, lambda: grid.come(77, **partition(1))]

    record = shifting.go("back", {2: leave})
    assert by_round(record, "joined") == {3: ["partition-1"]}
    assert not any(dropped(record).values())
    assert [entry["nodes"] for entry in record["rounds"]] == [3] * 5
    with pytest.raises(RoundError, match=r"online.*expected 100% of the nodes; got 2 of 3"):
        shifting.go("away", {2: lambda: grid.leave(2)})


def test_too_few_nodes_stop_the_run_and_it_resumes(shifting: Shifting) -> None:
    whole, grid = shifting.go("whole"), shifting.new_grid()
    with pytest.raises(RoundError) as raised:
        shifting.go("stopped", {2: lambda: (grid.leave(0), grid.leave(1))})
    line = str(raised.value)
    assert "1 of 3, without partition-0, partition-1" in line
    assert "after 0.5 s (run-config key 'node-timeout')" in line
    assert "flwr run . --run-config \"stage=1 run='stopped' home=" in line
    assert [type_ for type_, _ in grid.sent].count("train") == 2 * 3
    shifting.new_grid()
    resumed = shifting.go("stopped")
    assert shifting.same_arrays("stopped", "whole")
    assert resumed["test"] == whole["test"]


def test_a_round_that_fails_twice_says_how_to_resume(shifting: Shifting) -> None:
    grid = shifting.grid
    with pytest.raises(RoundError, match=r"twice; where: stage 1, round 2;.*50% of the nodes") as e:
        shifting.go("silent", {1: lambda: grid.hung.update((1001, 1002))})
    assert "got partition-1: no reply" in str(e.value)
    assert "stage=1 run='silent'" in str(e.value)
    assert [type_ for type_, node in grid.sent if node == 1001][4:] == ["train", "train"]


def test_the_runs_own_census_is_kept_up_to_date(shifting: Shifting) -> None:
    """So that a later stage asks the node that came back in an earlier one, in the same order."""
    grid, settings = shifting.grid, parse_settings(shifting.grid.config)
    census = take_census(grid, settings)
    before = census.dataset()
    there = presence.Presence(grid, census, settings)
    grid.leave(1)
    grid.come(77, **partition(1))
    there.look()
    assert list(census.nodes) == [1000, 77, 1002]
    assert census.dataset() == before
