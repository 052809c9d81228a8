"""The chunked full softmax equals torch's cross entropy, gradients included."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from client_app.training.losses import TABLE, Descent, full_softmax

ABSENT = torch.tensor([0, 7])


def problem(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a table, targets that are not absent, and weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 16, generator=generator, requires_grad=True)
    table = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(8, 50, (count,), generator=generator)
    return hidden, table, targets, torch.rand(count, generator=generator)


def reference(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    logits = (hidden @ table.T).index_fill(1, ABSENT, -torch.inf)
    return functional.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("count", [1, 107, 1300])  # 1300: three chunks
def test_full_softmax_equals_cross_entropy(count: int) -> None:
    hidden, table, targets, weights = problem(count)

    weighted, plain = full_softmax(hidden, table, targets, weights, ABSENT)
    got = torch.autograd.grad(weighted * 3, [hidden, table])

    losses = reference(hidden, table, targets)
    expected = torch.autograd.grad((losses * weights).sum() * 3, [hidden, table])
    torch.testing.assert_close(weighted.float(), (losses * weights).sum())
    torch.testing.assert_close(plain.float(), losses.sum())
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, atol=1e-4, rtol=1e-4)
    assert not got[1][ABSENT].any()


@pytest.mark.parametrize("count", [107, 1300])
def test_a_descent_takes_the_tables_share_even_of_the_table_itself(count: int) -> None:
    hidden, table, targets, weights = problem(count)
    losses = reference(hidden, table, targets)
    expected = torch.autograd.grad((losses * weights).sum(), [hidden, table])
    before, sums = table.detach().clone(), torch.ones_like(table)

    descents = [Descent({TABLE: table.detach()}, 0.1), Descent({TABLE: sums}, 2.0)]
    weighted, _ = full_softmax(hidden, table, targets, weights, ABSENT, descents)
    (got,) = torch.autograd.grad(weighted, [hidden])

    torch.testing.assert_close(got, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(table.detach(), before - 0.1 * expected[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sums, 1 - 2.0 * expected[1], atol=1e-4, rtol=1e-4)


def test_no_targets_is_no_loss() -> None:
    none, table = torch.empty(0, dtype=torch.int64), torch.randn(5, 4, requires_grad=True)
    weighted, plain = full_softmax(torch.empty(0, 4), table, none, torch.empty(0), ABSENT[:1])
    assert weighted.item() == plain.item() == 0.0
    assert not torch.autograd.grad(weighted, [table])[0].any()
