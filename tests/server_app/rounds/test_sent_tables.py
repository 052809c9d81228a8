"""Rows instead of tables: what a node is sent, and that it changes nothing but the bytes."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client_app import tables
from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import take_census
from server_app.rounds.exchange import Asking
from server_app.rounds.sent_tables import SentTables
from server_app.rounds.strategy import StageStrategy
from shared_model.model.recommender import Arrays, build, read_groups
from shared_model.protocol import messages
from shared_model.protocol.config import parse_settings
from shared_model.protocol.wire import Wire
from shared_model.stages import TABLE, stage_of
from tests.conftest import SMALL, checkpoint
from tests.support.rounds import cut_at, last_round, without_seconds
from tests.support.strategy import DEFAULTS

SAMPLED = {"candidates": 5}  # of 30 items


def test_rows_lead_from_what_a_node_holds_to_what_is_sent() -> None:
    sent, generator = SentTables(Wire("float32", 0)), torch.Generator().manual_seed(0)
    versions, held = [torch.randn(40, 3, generator=generator)], {}
    for _ in range(7):
        versions.append(versions[-1].clone())
        versions[-1][torch.randperm(40, generator=generator)[:4]] += 1
    for number, table in enumerate([*versions, versions[3], versions[7]]):  # and back
        sent.see(table)
        for node in (1, 2, 3):
            version, part = sent.part(node)
            found = held[node].clone() if version.base else torch.zeros(40, 3)
            found[part.get(messages.ROWS, torch.arange(40)).long()] = part[TABLE]
            assert torch.equal(found, table)
            if node == 1 or (node == 2 and number in (0, 2, 3)) or (node == 3 and number == 0):
                held[node] = table
                sent.held_by(node)
    assert messages.ROWS in sent.part(1)[1]
    assert messages.ROWS not in sent.part(3)[1]  # an old version: all of it
    assert sent.whole()[0].base == ""


class AwayGrid(InProcessGrid):
    """Node 1001 gets no evaluation of rounds 1 and 2, and loses its disk before round 5."""

    disturbed = True
    folder: Path
    needs = 0

    def send_and_receive(
        self, given: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        tables.held_table.cache_clear()  # as if each message were a new process
        replies = []
        for message in given:
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if self.disturbed and node == 1001 and kind in (messages.TRAIN, messages.EVALUATE):
                round_ = message.content.config_records["plan"]["round"]
                if kind == messages.EVALUATE and round_ < 3:
                    continue
                if kind == messages.TRAIN and round_ == 5 and not self.needs:
                    shutil.rmtree(self.folder / "tables")
                    tables.held_table.cache_clear()
            replies += super().send_and_receive([message])
        self.needs += sum(messages.needs_frozen(reply.content) for reply in replies)
        return replies


def trained(dataset: Dataset, home: Path, disturbed: bool) -> tuple[Arrays, int, int]:
    """Five rounds of three nodes: the arrays, bytes down, and how often a node asked for all."""
    given = {k.replace("_", "-"): v for k, v in (SMALL | SAMPLED).items()}
    config = DEFAULTS | given | {"dataset": str(dataset.folder), "home": str(home)}
    settings, stage = parse_settings(config), stage_of(1)
    nodes: list[Any] = [{"partition-id": i, "num-partitions": 3} for i in range(3)]
    grid = AwayGrid(nodes, config)
    grid.disturbed, grid.folder = disturbed, home
    census = take_census(grid, settings)
    asking = Asking(grid, StageStrategy(stage, settings, census, ServerOptimizer("adam")))
    arrays, down = read_groups(build(settings.shape(30), 0), stage.trained), 0
    for round_ in range(1, 6):
        result = asking.train(round_, arrays)
        arrays, down = result.arrays, down + result.exchange.bytes_down
        assert not result.exchange.dropped
        asking.evaluate(round_, arrays, "valid")
    return arrays, down, grid.needs


def test_a_node_that_is_away_or_loses_its_disk_changes_nothing(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    expected, less, none = trained(small_dataset, tmp_path / "a", disturbed=False)
    found, more, asked = trained(small_dataset, tmp_path / "b", disturbed=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert none == 0
    assert asked > 0
    assert less < more


def test_topology_changes_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1, with rows."""
    arrays = last_round(tmp_path, monkeypatch)
    found = {n: run(n, run=f"nodes-{n}", **SAMPLED)["stages"]["1"] for n in (1, 7)}
    for name, value in arrays["nodes-1"].items():
        assert (value - arrays["nodes-7"][name]).abs().max() <= 1e-5, name
    assert not any(entry["dropped"] for entry in found[7]["rounds"])


def test_resume_is_exact(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 9, with rows and lazy Adam, whose steps are rows' own."""
    whole = run(2, run="whole", **SAMPLED)
    cut_at(run, monkeypatch, 2, SAMPLED)
    again = run(2, run="cut", **SAMPLED)
    first, second = (checkpoint(tmp_path, n, m) for n, m in (("whole", whole), ("cut", again)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for one, other in zip(*(without_seconds(m)["rounds"] for m in (whole, again)), strict=True):
        assert one["loss"] == other["loss"]
        assert one.get("valid") == other.get("valid")
