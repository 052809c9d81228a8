"""Reduction of updates: exact sums, order-free weights, unusable updates refused."""

import pytest
import torch

from server_app.aggregate import check_update, reduce_updates
from server_app.logs import mixture_logs
from shared_model.errors import FedDMMRError
from shared_model.plan import MIXTURE_LOGS, LocalUpdate

ARRAYS = {"a": torch.tensor([1.0, 2.0, 3.0])}


def update(values: list[float], weight: float, loss: float = 1.0) -> LocalUpdate:
    return LocalUpdate(
        {"a": torch.tensor(values, dtype=torch.float32)}, weight, loss, targets=2, participants=1
    )


def test_the_mean_is_sum_over_weight() -> None:
    mean = reduce_updates([update([2, 0, 4], 1, 3.0), update([4, 0, 2], 3, 5.0)], ARRAYS)
    assert mean is not None
    assert mean.delta["a"].tolist() == [1.5, 0.0, 1.5]
    assert (mean.loss, mean.targets, mean.participants) == (2.0, 4, 2)


def test_sums_are_float64() -> None:
    tiny = [update([1e8, 0, 0], 1), update([1, 0, 0], 1), update([-1e8, 0, 0], 1)]
    mean = reduce_updates(tiny, ARRAYS)
    assert mean is not None
    assert mean.delta["a"][0] == pytest.approx(1 / 3)  # float32 sums would lose the one


def test_an_empty_round_is_none() -> None:
    assert reduce_updates([update([0, 0, 0], 0.0)], ARRAYS) is None
    assert reduce_updates([], ARRAYS) is None


@pytest.mark.parametrize(
    "bad",
    [
        update([float("nan"), 0, 0], 1),
        update([float("inf"), 0, 0], 1),
        update([1.0], 1),
        update([1, 2, 3], -1),
        update([1, 2, 3], float("nan")),
        update([1, 2, 3], float("inf")),
        update([1, 2, 3], 1e300),
        update([1, 2, 3], 51),
        update([1, 2, 3], 0),
        LocalUpdate({"a": torch.zeros(3)}, 1, 1, 2, 6),
        LocalUpdate({"a": torch.zeros(3)}, 1, 1, 51, 1),
        update([1, 2, 3], 1, loss=float("nan")),
        LocalUpdate({"b": torch.zeros(3)}, 1, 1, 1, 1),
        LocalUpdate({"a": torch.zeros(3), "b": torch.zeros(3)}, 1, 1, 1, 1),
        LocalUpdate({"a": torch.zeros(3).double()}, 1, 1, 1, 1),
        LocalUpdate({"a": torch.zeros(3)}, 1, 1, -1, 1),
    ],
)
def test_what_cannot_be_used_is_refused(bad: LocalUpdate) -> None:
    with pytest.raises(FedDMMRError):
        check_update(bad, ARRAYS, users=5, interactions=50)
    check_update(update([1, 2, 3], 1), ARRAYS, users=5, interactions=50)
    check_update(update([0, 0, 0], 0), ARRAYS, users=5, interactions=50)


GATE = {"mixture.gate": torch.tensor(0.75)}


def mixture_update(participants: int, **logs: float) -> LocalUpdate:
    """A node's update of Stage 2 whose logs are 1, 2, 3, ... in order, but for those given."""
    sums = {name: float(n) for n, name in enumerate(MIXTURE_LOGS, start=1)} | logs
    arrays = {"mixture.gate": torch.tensor(0.5)}
    return LocalUpdate(arrays, 1.0, 1.0, 1, participants, sums if participants else {})


def test_a_mixture_tells_all_its_logs_and_a_backbone_none() -> None:
    check_update(mixture_update(2), GATE, users=5, interactions=50)
    nobody = LocalUpdate({"mixture.gate": torch.tensor(0.0)}, 0.0, 0.0, 0, 0)
    check_update(nobody, GATE, users=5, interactions=50)
    for fault in ({"alignment": float("nan")}, {"more": 1.0}):
        with pytest.raises(FedDMMRError, match="unusable logs"):
            check_update(mixture_update(2, **fault), GATE, users=5, interactions=50)
    some = mixture_update(2)
    del some.logs["memory_left"]
    with pytest.raises(FedDMMRError, match="unusable logs"):
        check_update(some, GATE, users=5, interactions=50)
    extra = LocalUpdate({"a": torch.zeros(3)}, 1, 1, 1, 1, {"alignment": 1.0})
    with pytest.raises(FedDMMRError, match="unusable logs"):
        check_update(extra, ARRAYS, users=5, interactions=50)


def test_a_rounds_logs_are_means_over_its_participants() -> None:
    updates = [
        mixture_update(3, memory_left=30, memory_written=6, alignment=4.0),
        mixture_update(0),
        mixture_update(1, memory_left=10, memory_written=4, alignment=2.0),
    ]
    mean = reduce_updates(updates, GATE)
    assert mean is not None
    logs = mixture_logs(GATE, mean)
    assert logs["gate"] == 0.75
    assert logs["losses"] == {"alignment": 6 / 4, "load_balance": 2 * 2 / 4}
    assert logs["router"] == {"visual": 2 * 3 / 4, "text": 2 * 4 / 4, "entropy": 2 * 5 / 4}
    assert logs["memory"] == {"write_rate": 10 / 40, "short_term": 2 * 8 / 4, "long_term": 18 / 4}


def test_memories_that_nothing_left_wrote_nothing() -> None:
    mean = reduce_updates([mixture_update(2, memory_left=0, memory_written=0)], GATE)
    assert mean is not None
    assert mixture_logs(GATE, mean)["memory"]["write_rate"] == 0.0
