"""A round and an evaluation as one call each: the result, what it cost, and the second attempt."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import Census, take_census
from server_app.rounds.exchange import Asking
from server_app.rounds.result import EvaluationResult, Exchange, RoundResult
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import RoundError
from shared_model.model.recommender import Arrays, build, read_groups
from shared_model.protocol import messages
from shared_model.protocol.config import parse_settings
from shared_model.protocol.metrics import MetricSums, Ranks
from shared_model.protocol.plan import LocalUpdate, MixturePlan
from shared_model.stages import stage_of
from tests.conftest import SMALL
from tests.support.strategy import CENSUS, DEFAULTS, SETTINGS, START, answer

Answer = Callable[[Message], RecordDict | None]
UPDATE = LocalUpdate({"a": torch.tensor([2.0, 0.0, 4.0])}, 1.0, 2.0, 1, 1)
FROZEN = {"item_embedding.weight": torch.arange(12.0).view(4, 3)}
MIXING = MixturePlan("sha", 5, 6, 0.25, 2.0, 8, 9, 0.2, 0.5, 0.1, 0.1, 0.1, 0.01)


class ScriptedGrid(InProcessGrid):
    """Nodes 70 to 72 online; each batch of requests is answered by the next of ``answers``."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__([], {})
        self.answers = list(answers)
        self.sent: list[list[Message]] = []

    def get_node_ids(self) -> Iterable[int]:
        return [70, 71, 72]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        self.sent.append(list(messages))
        given, replies = self.answers.pop(0), []
        for message in self.sent[-1]:
            content = given(message)
            if content is not None:
                replies.append(answer(message, content))
        return replies

    def bytes_down(self) -> int:
        return sum(messages.content_bytes(m.content) for batch in self.sent for m in batch)


def asking(grid: ScriptedGrid, stage: int = 1, **settings: Any) -> Asking:
    census = Census(dict(CENSUS.nodes))
    mixture = (FROZEN, MIXING) if stage > 1 else ()
    chosen = dataclasses.replace(SETTINGS, **settings)
    return Asking(
        grid, StageStrategy(stage_of(stage), chosen, census, ServerOptimizer("sgd"), *mixture)
    )


def trains(_: Message) -> RecordDict:
    return messages.update_content(UPDATE)


def alone(node: int, of: Answer) -> Answer:
    """Only this node answers."""
    return lambda message: of(message) if message.metadata.dst_node_id == node else None


def evaluates(_: Message) -> RecordDict:
    sums = MetricSums()
    sums.add("all", "full", Ranks(np.array([3]), np.array([8])))
    return messages.metrics_content(sums)


def size_of(*contents: RecordDict) -> int:
    return sum(map(messages.content_bytes, contents))


def test_a_round_is_one_value() -> None:
    grid = ScriptedGrid(trains)
    result = asking(grid).train(1, START)
    up = 3 * size_of(messages.update_content(UPDATE))
    assert result.arrays["a"].tolist() == [2.0, 2.0, 5.0]  # + 0.5 * [2, 0, 4]
    assert START["a"].tolist() == [1.0, 2.0, 3.0]
    assert result == RoundResult(
        arrays=result.arrays,
        participants=3,
        targets=3,
        loss=2.0,
        nodes=3,
        exchange=Exchange(grid.bytes_down(), up, []),
        clipped=[],
        logs={},
        release=None,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.nodes = 2  # type: ignore[misc]


def test_an_empty_round_gives_its_arrays_back() -> None:
    none = LocalUpdate({"a": torch.zeros(3)}, 0.0, 0.0, 0, 0)
    result = asking(ScriptedGrid(lambda _: messages.update_content(none))).train(1, START)
    assert result.arrays is START
    assert (result.participants, result.loss, result.nodes) == (0, None, 3)


def test_an_evaluation_is_one_value() -> None:
    grid = ScriptedGrid(evaluates)
    result = asking(grid).evaluate(2, START, "test")
    assert messages.read_evaluation(grid.sent[0][0].content).split == "test"
    up = 3 * size_of(evaluates(grid.sent[0][0]))
    assert result == EvaluationResult(result.sums, Exchange(grid.bytes_down(), up, []))
    assert result.sums.report()["all"]["full"]["users"] == 3.0


def test_the_cost_of_both_attempts_is_counted() -> None:
    grid = ScriptedGrid(alone(70, trains), trains)
    result = asking(grid).train(1, START)
    assert len(grid.sent) == 2
    assert result.exchange.bytes_down == grid.bytes_down()
    assert result.exchange.bytes_up == 4 * size_of(messages.update_content(UPDATE))
    assert [drop["node"] for drop in result.exchange.dropped] == ["partition-1", "partition-2"]
    assert (result.nodes, result.participants) == (3, 3)


def test_a_second_attempt_that_fails_names_its_own_nodes() -> None:
    grid = ScriptedGrid(alone(70, trains), alone(72, trains))
    with pytest.raises(RoundError, match=r"twice.*partition-0: no reply.*partition-1: no") as error:
        asking(grid).train(1, START)
    assert "partition-2" not in str(error.value)


def test_a_silent_node_costs_no_bytes_when_the_round_is_validated() -> None:
    def two(message: Message) -> RecordDict | None:
        return None if message.metadata.dst_node_id == 71 else trains(message)

    grid = ScriptedGrid(two, evaluates)
    nodes = asking(grid)
    nodes.train(1, START)
    result = nodes.evaluate(1, START, "valid")
    assert [message.metadata.dst_node_id for message in grid.sent[1]] == [70, 72]
    assert result.exchange.bytes_down == size_of(*(m.content for m in grid.sent[1]))
    assert [drop["node"] for drop in result.exchange.dropped] == ["partition-1"]


def test_frozen_groups_are_counted_for_those_that_ask() -> None:
    def lacks(message: Message) -> RecordDict:
        asks = message.metadata.dst_node_id == 70
        return messages.ask_for_frozen("sha") if asks else evaluates(message)

    grid = ScriptedGrid(lacks, evaluates)
    gate = {"mixture.gate": torch.tensor(1.0)}
    result = asking(grid, 2).evaluate(1, gate, "valid")
    assert [message.metadata.dst_node_id for message in grid.sent[1]] == [70]
    assert messages.read_frozen(grid.sent[1][0].content) is not None
    assert result.exchange.bytes_down == grid.bytes_down()
    assert result.sums.sums["all/full/users"] == 3.0


def test_the_global_arrays_become_a_record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even in two attempts; and what was sent is not read back."""
    content, calls = messages.update_content(UPDATE), []
    to_record, from_record = messages.to_record, messages.from_record
    monkeypatch.setattr(messages, "to_record", lambda a: calls.append("to") or to_record(a))
    monkeypatch.setattr(messages, "from_record", lambda r: calls.append("from") or from_record(r))
    asking(ScriptedGrid(alone(70, lambda _: content), lambda _: content)).train(1, START)
    assert calls == ["to", *["from"] * 4]  # four updates


@pytest.mark.parametrize("candidates", [0, 5])  # 5: rows of the item table travel
def test_flowers_own_loop_ends_in_the_same_arrays(
    small_dataset: Dataset, tmp_path: Path, candidates: int
) -> None:
    """The four hooks are a Flower strategy: ``Strategy.start`` needs nothing else."""
    given = {k.replace("_", "-"): v for k, v in SMALL.items()}
    config = DEFAULTS | given | {"dataset": str(small_dataset.folder)}
    config |= {"home": str(tmp_path), "candidates": candidates, "fraction-train": 0.2}
    settings, stage = parse_settings(config), stage_of(1)

    def started() -> tuple[InProcessGrid, StageStrategy, Arrays]:
        nodes: list[Any] = [{"partition-id": i, "num-partitions": 2} for i in range(2)]
        grid = InProcessGrid(nodes, config)
        census = take_census(grid, settings)
        model = build(settings.shape(census.num_items), settings.seed)
        strategy = StageStrategy(stage, settings, census, ServerOptimizer("adam"))
        return grid, strategy, read_groups(model, stage.trained)

    grid, strategy, arrays = started()
    found = strategy.start(grid, messages.to_record(arrays), num_rounds=2)
    grid, strategy, arrays = started()
    nodes = Asking(grid, strategy)
    for round_ in (1, 2):
        result = nodes.train(round_, arrays)
        arrays = result.arrays
        assert found.train_metrics_clientapp[round_]["participants"] == result.participants
        sums = nodes.evaluate(round_, arrays, "valid").sums.sums
        assert dict(found.evaluate_metrics_clientapp[round_]) == sums
    theirs = messages.from_record(found.arrays)
    assert theirs.keys() == arrays.keys()
    assert all(torch.equal(theirs[name], arrays[name]) for name in arrays)
