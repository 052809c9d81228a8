"""Reduction of updates: exact sums, order-free weights, unusable updates refused."""

import pytest
import torch

from server_app.aggregate import check_update, reduce_updates
from shared_model.errors import FedDMMRError
from shared_model.plan import LocalUpdate

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
