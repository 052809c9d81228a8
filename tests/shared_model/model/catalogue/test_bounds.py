"""What means of a memory cannot leave: held against the worst weights that logits allow."""

import pytest
import torch
from torch import Tensor

from shared_model.model.catalogue.bounds import half_range, middles, unevenness


def worst_mean(numbers: Tensor, half: float) -> Tensor:
    """The largest mean of ``numbers`` [M] by a softmax of logits of ``half`` or minus that."""
    ordered = numbers.sort().values
    high = torch.arange(len(ordered)) >= torch.arange(len(ordered))[:, None]
    return ((half * (2.0 * high.double() - 1)).softmax(1) @ ordered).max()


@pytest.mark.parametrize("half", [0.01, 0.2, 0.8, 2.0, 8.0])
def test_no_mean_leaves_its_range_and_the_worst_comes_close(half: float) -> None:
    torch.manual_seed(0)
    uneven = unevenness(torch.tensor([half]).double())
    drawn = [torch.rand(count).double() for count in (1, 2, 3, 10, 30) for _ in range(20)]
    two = [(torch.arange(60) >= below).double() for below in range(1, 60)]
    closest = 0.0
    for numbers in drawn + two:
        equal = torch.ones(1, len(numbers)).double() / len(numbers)
        [[middle]], [[off]] = middles(numbers[None, :, None], uneven, equal)
        most, least = worst_mean(numbers, half), -worst_mean(-numbers, half)
        assert middle - off - 1e-12 <= least <= most <= middle + off + 1e-12
        closest = max(closest, float((most - middle) / off.clamp(min=1e-9)))
    assert closest > 0.95


def test_texts_logits_differ_by_what_is_told() -> None:
    torch.manual_seed(0)
    maps, offset = torch.randn(2, 2, 5).double(), torch.randn(2, 2, 1).double()
    equal = torch.full((2,), 0.5).double()
    told = half_range(maps, offset[..., 0], equal, torch.tensor(3.0).double())
    for head in range(2):
        apart = maps[head, 0] - maps[head, 1]
        vector = 3 * apart / apart.norm() * (offset[head, 0] - offset[head, 1]).sign()
        logits = maps[head] @ vector + offset[head, :, 0]
        exact = (logits.max() - logits.min()) / 2
        assert exact <= told[head] <= 1.001 * exact
