"""Products by oneDNN equal torch's own, gradients included, whatever the layout of an operand."""

import pytest
import torch
from torch import Tensor, nn

from shared_model.model import matmul as products
from shared_model.model.matmul import Linear, plain_products, product, rounded

needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="this processor has no AVX-512, so torch's own products are taken",
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    given = x.clone().requires_grad_()
    out = layer(given)
    wanted = [given, *layer.parameters()]
    return [out.detach(), *torch.autograd.grad((out * random(*out.shape, seed=9)).sum(), wanted)]


@needs_avx512
@pytest.mark.parametrize("shape", [(16, 107), (1, 113), (128,), (3, 5, 17), (1, 1, 1000)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_equals_torchs_own(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(96, 160, bias=bias)
    x = random(*shape, 96)
    assert products._worth_it(x, layer.weight)
    fast = gradients(layer, x)
    with plain_products():
        assert not products._worth_it(x, layer.weight)
        plain = gradients(layer, x)
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_avx512
def test_a_view_that_is_not_contiguous_is_no_trap() -> None:
    layer = Linear(96, 160)
    x = random(96, 112, 2).permute(2, 1, 0)  # [2, 112, 96]
    fast = gradients(layer, x)
    for ours, theirs in zip(fast, gradients(layer, x.contiguous()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    left, right = random(3000, 112), random(128, 3000, seed=1)
    got = product(left.T, right)
    torch.testing.assert_close(got, left.T @ right.T, rtol=1e-4, atol=1e-3)
    narrow = random(112, 64, seed=2).T
    torch.testing.assert_close(product(left, narrow), left @ narrow.T, rtol=1e-4, atol=1e-3)


@needs_avx512
def test_the_longest_sums_keep_float32s_precision() -> None:
    x, weight = random(512, 3417), random(128, 3417, seed=1)
    exact = x.double() @ weight.double().T
    assert float((product(x, weight) - exact).norm() / exact.norm()) < 2e-6


def test_what_is_frozen_gets_no_gradient() -> None:
    layer = Linear(96, 160)
    layer.weight.requires_grad_(False)
    x = random(128, 96).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert x.grad is not None


def test_small_and_double_products_are_torchs_own() -> None:
    assert not products._worth_it(random(4, 8), random(8, 8))
    assert not products._worth_it(random(512, 512).double(), random(512, 512).double())


def test_rounded_numbers_are_few_and_near() -> None:
    taken = {rounded(rows) for rows in range(1, 4097)}
    assert all(rows <= rounded(rows) < 1.07 * rows for rows in range(1, 4097))
    assert all(rounded(rows) == rows for rows in taken)
    assert len(taken) <= 16 * 12
