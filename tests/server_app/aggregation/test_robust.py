"""Robust aggregation: honest nodes are never touched, one bad node moves little."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message

from feddmmr.launch.in_process import InProcessGrid, run_in_process
from server_app.aggregation.aggregate import reduce_updates
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.aggregation.robust import HARD_LIMIT, combined, limit, scaled, times_usual
from server_app.rounds import guard as guard_module
from server_app.rounds.result import RoundResult
from server_app.rounds.strategy import StageStrategy
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import stage_of
from tests.support.strategy import ARRAYS, CENSUS, SETTINGS, START, answer

LIKE = {"a": torch.zeros(4, 3), "b": torch.zeros(5)}


def honest(number: int, participants: int = 8, weight: float = 80.0) -> LocalUpdate:
    """Sums over users that agree in part: a shared direction and noise of their own."""
    random = np.random.default_rng(number)
    noise = random.standard_normal((participants, 17)).sum(0)
    flat = torch.tensor((0.5 * participants + noise) * weight / participants, dtype=torch.float32)
    arrays = {"a": flat[:12].view(4, 3), "b": flat[12:]}
    return LocalUpdate(arrays, weight, 1.0, int(weight), participants)


def nodes(count: int) -> list[LocalUpdate]:
    return [honest(n) for n in range(count)]


def distance(one: Arrays, other: Arrays) -> float:
    return float(sum((one[name] - other[name]).square().sum() for name in one)) ** 0.5


def naive_mean(updates: list[LocalUpdate]) -> Arrays:
    """The plain aggregation, summed one node after the other."""
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in LIKE.items()}
    for update in updates:
        for name in sums:
            sums[name] = sums[name] + update.arrays[name]
    weight = sum(update.weight for update in updates)
    return {name: (total / weight).float() for name, total in sums.items()}


@pytest.mark.parametrize("aggregation", ["mean", "clipped"])
def test_the_mean_is_the_plain_one_to_the_bit(aggregation: str) -> None:
    updates = [honest(n, 1 + n, 7.0 + n) for n in range(9)]
    updates.insert(4, LocalUpdate(LIKE, 0.0, 0.0, 0, 0))
    for name, value in combined(updates, LIKE, aggregation, 0.2).items():
        assert torch.equal(value, naive_mean(updates)[name])


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_median_and_trimmed_mean_are_numpys_and_scipys(count: int) -> None:
    from scipy.stats import trim_mean

    updates = [honest(n, 1 + n, 7.0 + n) for n in range(count)]
    with_idle = [*updates, LocalUpdate(LIKE, 0.0, 0.0, 0, 0)]
    for name in LIKE:
        means = np.stack([u.arrays[name].double().numpy() / u.weight for u in updates])
        expected = {"median": np.median(means, 0), "trimmed": trim_mean(means, 0.3, 0)}
        for aggregation, value in expected.items():
            found = combined(with_idle, LIKE, aggregation, 0.3)[name]
            assert found.dtype == torch.float32
            np.testing.assert_allclose(found.numpy(), value, rtol=1e-6, atol=1e-9)


def test_a_scalar_parameter_has_a_median() -> None:
    values = [torch.tensor(v) for v in (1.0, 100.0, 3.0)]
    updates = [LocalUpdate({"g": v}, 1.0, 1.0, 1, 1) for v in values]
    assert combined(updates, {"g": torch.tensor(0.0)}, "median", 0.0)["g"] == 3.0


@pytest.mark.parametrize("aggregation", ["clipped", "median", "trimmed"])
@pytest.mark.parametrize("attack", [1e6, -1e6, 10.0, -10.0, -1.0])
def test_one_scaled_node_of_ten_moves_little(aggregation: str, attack: float) -> None:
    updates = nodes(10)
    undisturbed = combined(updates, LIKE, "mean", 0.0)
    updates[3] = scaled(updates[3], attack)
    if aggregation == "clipped":
        times = times_usual(updates)[3]
        beyond = times > limit(updates[3].participants, mixes=False)
        assert beyond == (abs(attack) > 1)
        updates[3] = scaled(updates[3], 1 / times if beyond else 1.0)
    found = combined(updates, LIKE, aggregation, 0.2)
    norm = distance(undisturbed, {name: torch.zeros(()) for name in LIKE})
    assert distance(found, undisturbed) < 0.6 * norm
    assert sum(float((found[n] * undisturbed[n]).sum()) for n in LIKE) > 0.4 * norm**2
    if abs(attack) == 10:
        plain = combined([*nodes(3), scaled(honest(3), attack), *nodes(10)[4:]], LIKE, "mean", 0)
        assert distance(plain, undisturbed) > 0.8 * norm


def test_the_usual_norm_is_the_formula() -> None:
    """Equal nodes: the median norm; others by sqrt(weight), then by weight."""

    def node(norm: float, weight: float) -> LocalUpdate:
        arrays = {"a": torch.tensor([0.6 * norm, 0.8 * norm])}
        return LocalUpdate(arrays, weight, 1.0, 1, 1)

    times = times_usual([node(2.0, 50), node(4.0, 50), node(3.0, 50)])
    np.testing.assert_allclose(times, [2 / 3, 4 / 3, 1], rtol=1e-6)
    weights = np.array([1, 4, 9, 16, 81])
    times = times_usual([node(np.sqrt(w), w) for w in weights])  # targets disagree: t = 1
    np.testing.assert_allclose(times, [1, 1, 1, 4 / (16 / 3), 9 / 27], rtol=1e-6)
    times = times_usual([node(w, w) for w in weights])  # they agree: t = 3
    np.testing.assert_allclose(times, [1 / 3, 2 / 3, 1, 1, 1], rtol=1e-6)
    assert [limit(people, False) for people in (0, 1, 9, 10**6)] == [5, 5, 3, 2.003]
    assert [limit(people, True) for people in (0, 1, 9, 10**6)] == [12, 12, 8, 6.006]


def test_with_two_nodes_nobody_is_judged() -> None:
    idle = LocalUpdate(LIKE, 0.0, 0.0, 0, 0)
    far = scaled(honest(2), 1e6)
    assert not times_usual([honest(1), far, idle]).any()
    assert times_usual([honest(1), far, honest(3)])[1] > HARD_LIMIT * limit(8, mixes=True)
    assert not times_usual([scaled(honest(n), 0.0) for n in range(3)]).any()
    assert reduce_updates([idle], LIKE) is None


@pytest.mark.parametrize(("people", "weight"), [(1, 20.0), (1, 80.0), (8, 160.0), (30, 320.0)])
def test_claims_buy_influence_in_proportion_at_most(people: int, weight: float) -> None:
    """Fewer participants or less weight than the others have raise nobody's limit much."""
    usual = float(np.median([norm(update) for update in nodes(9)]))
    liar = dataclasses.replace(scaled(honest(9), 1e3), participants=people, weight=weight)
    most = norm(liar) / times_usual([*nodes(9), liar])[9]  # the norm it is clipped to
    assert most < 1.3 * usual * max(1, weight / 80)


def norm(update: LocalUpdate) -> float:
    return distance(update.arrays, {name: torch.zeros(()) for name in LIKE})


def sent(strategy: StageStrategy) -> list[Message]:
    grid = InProcessGrid([], {})
    return list(strategy.configure_train(1, ARRAYS, ConfigRecord(), grid))


def settle(aggregation: str, values: list[list[float]]) -> RoundResult:
    """One round of three nodes with these updates of one participant."""
    settings = dataclasses.replace(SETTINGS, aggregation=aggregation)
    strategy = StageStrategy(stage_of(1), settings, CENSUS, ServerOptimizer("sgd"))
    updates = [LocalUpdate({"a": torch.tensor(v)}, 1.0, 2.0, 1, 1) for v in values]
    replies = [
        answer(m, messages.update_content(u)) for m, u in zip(sent(strategy), updates, strict=True)
    ]
    return strategy.step(1, START, strategy.updates(START, replies))


def test_the_strategy_clips_and_names() -> None:
    result = settle("clipped", [[3.0, 0, 4], [3.0, 4, 0], [300.0, 0, 400]])
    assert result.clipped == [{"node": "partition-2", "factor": pytest.approx(5 / 500)}]
    assert result.exchange.dropped == []
    for harmless in (
        settle("clipped", [[3.0, 0, 4], [3.0, 4, 0], [12.0, 0, 16]]),
        settle("mean", [[3.0, 0, 4], [3.0, 4, 0], [300.0, 0, 400]]),
    ):
        assert harmless.clipped == []


@pytest.mark.parametrize("aggregation", ["clipped", "mean", "median", "trimmed"])
def test_the_strategy_drops_what_is_far_beyond(aggregation: str) -> None:
    result = settle(aggregation, [[3.0, 0, 4], [3e6, 4e6, 0], [3.0, 0, 4]])
    assert result.clipped == []
    [drop] = result.exchange.dropped
    assert drop["node"] == "partition-1"
    assert "update norm" in drop["reason"]


DAMAGE: dict[str, Callable[[Array], Array]] = {
    "float64": lambda a: Array(a.numpy().astype(np.float64)),
    "big-endian": lambda a: Array(a.numpy().astype(">f4")),
    "integers": lambda a: Array(a.numpy().astype(np.int64)),
    "text": lambda a: Array(a.numpy().astype("U8")),
    "pickled objects": lambda a: Array("object", a.shape, a.stype, pickled()),
    "cut": lambda a: Array(a.dtype, a.shape, a.stype, a.data[:-3]),
    "no bytes": lambda a: Array(a.dtype, a.shape, a.stype, b""),
    "a zip": lambda a: Array(a.dtype, a.shape, a.stype, b"PK\x03\x04" + a.data),
    "a header for 4 TB": lambda a: Array(
        a.dtype, a.shape, a.stype, a.data.replace(b"(3,), }", b"(1000000000000,), }")
    ),
}


def pickled() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.save(buffer, np.array([{}, 1, 2], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [*DAMAGE, "infinite count", "an error without a line"])
def test_bytes_that_cannot_be_read_drop_their_node(damage: str) -> None:
    strategy = StageStrategy(stage_of(1), SETTINGS, CENSUS, ServerOptimizer("sgd"))
    update = LocalUpdate({"a": torch.tensor([3.0, 4.0, 0.0])}, 1.0, 2.0, 1, 1)
    replies = [answer(m, messages.update_content(update)) for m in sent(strategy)]
    bad = replies[1].content
    if damage in DAMAGE:
        record = bad.array_records["arrays"]
        record["a"] = DAMAGE[damage](record["a"])
    elif damage == "infinite count":
        bad.metric_records["sums"]["targets"] = float("inf")
    else:
        bad["error"] = ConfigRecord({"text": "no data"})
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    new = messages.from_record(arrays)["a"]
    assert new.tolist() == [2.5, 4.0, 3.0]  # [1, 2, 3] + 0.5 * [3, 4, 0]
    dropped = strategy.updates(START, replies).exchange.dropped
    assert [drop["node"] for drop in dropped] == ["partition-1"]


def test_a_reason_is_cut() -> None:
    """What a node says goes into the manifest, but not at any length."""
    strategy = StageStrategy(stage_of(1), SETTINGS, CENSUS, ServerOptimizer("sgd"))
    update = LocalUpdate({"a": torch.tensor([3.0, 4.0, 0.0])}, 1.0, 2.0, 1, 1)
    contents = [messages.update_content(update)] * 2 + [messages.error_content("no" * 10**6)]
    replies = [answer(m, c) for m, c in zip(sent(strategy), contents, strict=True)]
    [drop] = strategy.updates(START, replies).exchange.dropped
    assert drop["reason"].startswith("nono")
    assert len(drop["reason"]) == 400


@pytest.mark.parametrize(("count", "stage"), [(3, 1), (10, 1), (200, 1), (10, 0)])
def test_honest_topologies_have_room(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, stage: int
) -> None:
    """Invariant 1: the largest honest update leaves 1.5 times of room, in all stages."""
    seen: list[float] = []

    def spy(updates: list[LocalUpdate]) -> Any:
        times = times_usual(updates)
        mixes = any(name.startswith("mixture.") for name in updates[0].arrays)
        shares = [t / limit(u.participants, mixes) for t, u in zip(times, updates, strict=True)]
        seen.append(max(shares))
        return times

    monkeypatch.setattr(guard_module, "times_usual", spy)
    settings: dict[str, Any] = {"home": str(tmp_path), "dataset": str(demo_folder)}
    settings |= {"hidden_size": 16, "max_length": 70, "targets_per_user": 8, "negatives": 32}
    run_in_process(count, num_rounds=1, stage=stage, fraction_train=0.3, **settings)
    assert len(seen) == (1 if stage else 3)
    assert 0 < max(seen) < 1 / 1.5
