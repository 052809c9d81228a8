"""The strategy's four hooks on three-number arrays, with exact results."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import RoundError, WorkerError
from shared_model.protocol import messages
from shared_model.protocol.metrics import MetricSums, Ranks
from shared_model.protocol.plan import MIXTURE_LOGS, LocalUpdate, MixturePlan
from shared_model.stages import stage_of
from tests.support.strategy import (
    ARRAYS,
    CENSUS,
    SETTINGS,
    START,
    answer,
)


@pytest.fixture
def grid() -> InProcessGrid:
    return InProcessGrid([], {})


@pytest.fixture
def strategy(grid: InProcessGrid) -> StageStrategy:
    return StageStrategy(stage_of(1), SETTINGS, CENSUS, ServerOptimizer("sgd"))


def requests(strategy: StageStrategy, grid: InProcessGrid) -> list[Message]:
    return list(strategy.configure_train(1, ARRAYS, ConfigRecord(), grid))


def update(values: list[float], weight: float) -> RecordDict:
    arrays = {"a": torch.tensor(values, dtype=torch.float32)}
    return messages.update_content(LocalUpdate(arrays, weight, 2.0 * weight, int(weight), 1))


def test_one_plan_goes_to_every_node(strategy: StageStrategy, grid: InProcessGrid) -> None:
    sent = requests(strategy, grid)
    assert [message.metadata.dst_node_id for message in sent] == [70, 71, 72]
    plan = messages.read_plan(sent[0].content)
    assert (plan.stage, plan.round, plan.fraction) == (1, 1, SETTINGS.fraction_train)


def test_the_new_arrays_are_exact(strategy: StageStrategy, grid: InProcessGrid) -> None:
    sent = requests(strategy, grid)
    contents = [update([2, 0, 4], 1), update([4, 0, 2], 2), update([6, 0, 0], 3)]
    replies = [answer(m, c) for m, c in zip(sent, contents, strict=True)]
    arrays, sums = strategy.aggregate_train(1, reversed(replies))
    assert arrays is not None
    assert messages.from_record(arrays)["a"].tolist() == [2.0, 2.0, 3.5]  # + 0.5 * [2, 0, 1]
    assert sums is not None
    assert (sums["loss"], sums["participants"], sums["nodes"]) == (2.0, 3, 3)
    answers = strategy.updates(START, replies)
    assert answers.exchange.dropped == []
    assert answers.exchange.bytes_up == sum(map(messages.content_bytes, contents))


BAD: dict[str, Callable[[Message], Message | None]] = {
    "nan": lambda m: answer(m, update([float("nan"), 0, 0], 1)),
    "broadcast": lambda m: answer(m, update([1.0], 1)),
    "negative weight": lambda m: answer(m, update([1, 1, 1], -1)),
    "exception": lambda m: answer(m, RecordDict()) and error_reply(m),
    "refusal": lambda m: answer(m, messages.error_content("no data here")),
    "empty": lambda m: answer(m, RecordDict()),
    "no sums": lambda m: answer(m, RecordDict({"arrays": ARRAYS})),
    "silence": lambda m: None,
}


def error_reply(request: Message) -> Message:
    request.metadata.__dict__["_message_id"] = "id"
    return Message(Error(2, "boom"), reply_to=request)


@pytest.mark.parametrize("fault", BAD)
def test_an_offender_is_dropped_and_named(
    strategy: StageStrategy, grid: InProcessGrid, fault: str
) -> None:
    sent = requests(strategy, grid)
    good = [answer(sent[0], update([2, 0, 4], 1)), answer(sent[2], update([4, 0, 2], 1))]
    bad = BAD[fault](sent[1])
    replies = good + ([bad] if bad else [])
    arrays, sums = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert sums is not None
    assert messages.from_record(arrays)["a"].tolist() == [2.5, 2.0, 4.5]
    [drop] = strategy.updates(START, replies).exchange.dropped
    assert drop["node"] == "partition-1"
    assert drop["reason"]


def test_too_few_answers_are_an_error_that_names_a_node(
    strategy: StageStrategy, grid: InProcessGrid
) -> None:
    sent = requests(strategy, grid)
    with pytest.raises(RoundError, match=r"partition-1.*1 of 3"):
        strategy.aggregate_train(1, [answer(sent[0], update([1, 1, 1], 1))])


def test_an_empty_round_changes_nothing(strategy: StageStrategy, grid: InProcessGrid) -> None:
    replies = [answer(m, update([0, 0, 0], 0)) for m in requests(strategy, grid)]
    arrays, sums = strategy.aggregate_train(1, replies)
    assert arrays is None
    assert sums is not None
    assert sums["participants"] == 0
    assert strategy.optimizer.steps == 0


def node_metrics(ranks: list[int]) -> RecordDict:
    sums = MetricSums()
    sums.add("all", "full", Ranks(np.array(ranks), np.full(len(ranks), 8)))
    return messages.metrics_content(sums)


def test_the_split_is_asked_for_by_the_config(strategy: StageStrategy, grid: InProcessGrid) -> None:
    config = ConfigRecord({"split": "test"})
    sent = strategy.configure_evaluate(2, ARRAYS, config, grid)
    assert {messages.read_evaluation(message.content).split for message in sent} == {"test"}
    sent = strategy.configure_evaluate(3, ARRAYS, ConfigRecord(), grid)
    assert {messages.read_evaluation(message.content).split for message in sent} == {"valid"}


def test_evaluation_adds_users_not_nodes(strategy: StageStrategy, grid: InProcessGrid) -> None:
    sent = list(strategy.configure_evaluate(2, ARRAYS, ConfigRecord(), grid))
    assert messages.read_evaluation(sent[0].content).split == "valid"
    contents = [node_metrics(ranks) for ranks in ([3], [50, 60, 70], [0, 9, 10, 11])]
    replies = [answer(m, c) for m, c in zip(sent, contents, strict=True)]
    sums = strategy.aggregate_evaluate(2, replies)
    assert sums is not None
    cell = MetricSums({k: float(v) for k, v in sums.items()}).report()["all"]["full"]  # type: ignore
    assert (cell["hr@10"], cell["users"]) == (3 / 8, 8.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"all/full/hr@10": float("nan")},
        {"all/full/hr@10": 2.5},
        {"all/full/mrr": -0.1},
        {"all/full/users": float("inf")},
        {"all/full/extra": 1.0},
        {"odd": 1.0},
        {"all/full/users": 6.0},  # it hosts five
        {"all/full/candidates": 46.0},  # of nine items each
    ],
)
def test_metrics_that_no_users_can_have_are_dropped(
    strategy: StageStrategy, grid: InProcessGrid, bad: dict[str, float]
) -> None:
    sent = list(strategy.configure_evaluate(2, ARRAYS, ConfigRecord(), grid))
    contents = [node_metrics([3]), node_metrics([5, 6]), node_metrics([70])]
    contents[1].metric_records["metrics"].update(bad)
    replies = [answer(m, c) for m, c in zip(sent, contents, strict=True)]
    sums = strategy.aggregate_evaluate(2, replies)
    assert sums is not None
    assert sums["all/full/users"] == 2.0
    dropped = strategy.metrics(replies).exchange.dropped
    assert [drop["node"] for drop in dropped] == ["partition-1"]


def test_a_dead_worker_stops_the_run(strategy: StageStrategy, grid: InProcessGrid) -> None:
    """It would eat every later message if it were dropped like a failed node."""
    sent = requests(strategy, grid)
    sent[1].metadata.__dict__["_message_id"] = "id"
    dead = Message(Error(0, "ray.exceptions.ActorDiedError: out of memory"), reply_to=sent[1])
    good = [answer(sent[0], update([1, 1, 1], 1)), answer(sent[2], update([1, 1, 1], 1))]
    with pytest.raises(WorkerError, match="resumes"):
        strategy.aggregate_train(1, [*good, dead])


FROZEN = {"item_embedding.weight": torch.arange(12.0).view(4, 3)}
MIXING = MixturePlan("sha", 5, 6, 0.25, 2.0, 8, 9, 0.2, 0.5, 0.1, 0.1, 0.1, 0.01)
GATE = messages.to_record({"mixture.gate": torch.tensor(1.0)})


@pytest.fixture
def second(grid: InProcessGrid) -> StageStrategy:
    return StageStrategy(stage_of(2), SETTINGS, CENSUS, ServerOptimizer("sgd"), FROZEN, MIXING)


def test_frozen_groups_go_to_the_nodes_that_lack_them_alone(
    second: StageStrategy, grid: InProcessGrid
) -> None:
    """Invariant 5: nothing frozen in the plan for all; again, with it, for who asks."""
    sent = list(second.configure_train(1, GATE, ConfigRecord(), grid))
    assert all(messages.read_frozen(message.content) is None for message in sent)
    assert messages.read_mixing(sent[0].content) == MIXING
    replies = [answer(sent[0], messages.ask_for_frozen("sha")), error_reply(sent[1])]
    again = second.lacking(sent, replies)
    assert [message.metadata.dst_node_id for message in again] == [70]
    content = again[0].content
    assert messages.read_plan(content) == messages.read_plan(sent[0].content)
    found = messages.read_frozen(content)
    assert found is not None
    assert (found["item_embedding.weight"] == FROZEN["item_embedding.weight"]).all()
    assert second.lacking(sent, replies[1:]) == []


def test_a_node_that_asks_twice_is_dropped(second: StageStrategy, grid: InProcessGrid) -> None:
    sent = list(second.configure_evaluate(1, GATE, ConfigRecord(), grid))
    replies = [answer(m, node_metrics([3])) for m in sent[:2]]
    replies.append(answer(sent[2], messages.ask_for_frozen("sha")))
    sums = second.aggregate_evaluate(1, replies)
    assert sums is not None
    assert sums["all/full/users"] == 2.0
    [drop] = second.metrics(replies).exchange.dropped
    assert drop["node"] == "partition-2"
    assert "frozen" in drop["reason"]


@pytest.mark.parametrize(("given", "rate"), [(0.0, stage_of(2).default_rate), (0.25, 0.25)])
def test_a_stage_has_its_own_rate_unless_one_is_given(
    grid: InProcessGrid, given: float, rate: float
) -> None:
    settings = dataclasses.replace(SETTINGS, server_learning_rate=given)
    strategy = StageStrategy(stage_of(2), settings, CENSUS, ServerOptimizer("sgd"), FROZEN, MIXING)
    sent = list(strategy.configure_train(1, GATE, ConfigRecord(), grid))
    logs = dict.fromkeys(MIXTURE_LOGS, 1.0)
    update = LocalUpdate({"mixture.gate": torch.tensor(4.0)}, 1.0, 1.0, 1, 1, logs)
    replies = [answer(message, messages.update_content(update)) for message in sent]
    new, _ = strategy.aggregate_train(1, replies)
    assert new is not None
    gate = float(messages.from_record(new)["mixture.gate"])
    assert gate == pytest.approx(1 + 4 * rate, rel=1e-6)
    start = messages.from_record(GATE)
    again = strategy.step(1, start, strategy.updates(start, replies))
    assert again.logs["gate"] == float(again.arrays["mixture.gate"]) == gate
