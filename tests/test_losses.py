"""The chunked full softmax equals torch's cross entropy, gradients included."""

import torch
from torch.nn import functional

from client_app.losses import full_softmax


def test_full_softmax_equals_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1300, 16, generator=generator, requires_grad=True)  # three chunks
    items = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (1300,), generator=generator)
    weights = torch.rand(1300, generator=generator)

    weighted, plain = full_softmax(hidden, items, targets, weights)
    got = torch.autograd.grad(weighted * 3, [hidden, items])

    losses = functional.cross_entropy(hidden @ items.T, targets, reduction="none")
    expected = torch.autograd.grad((losses * weights).sum() * 3, [hidden, items])
    torch.testing.assert_close(weighted.float(), (losses * weights).sum())
    torch.testing.assert_close(plain.float(), losses.sum())
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, atol=1e-4, rtol=1e-4)


def test_no_targets_is_no_loss() -> None:
    none = torch.empty(0, dtype=torch.int64)
    weighted, plain = full_softmax(torch.empty(0, 4), torch.randn(5, 4), none, torch.empty(0))
    assert float(weighted) == float(plain) == 0.0
