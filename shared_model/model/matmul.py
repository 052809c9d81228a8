"""Large float32 matrix products by oneDNN, where that is faster than what torch takes by itself.

On a processor torch multiplies float32 matrices by MKL, which keeps to AVX2 where Intel has not
made the processor. oneDNN, which torch brings along, uses AVX-512 there: up to twice as fast
(docs/performance.md). It compiles a kernel for each shape, so numbers of rows are rounded up and
few shapes occur.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_FAST = _ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"
_LARGE = 2**20  # multiplications from which a product is worth a call from Python
_plain: ContextVar[bool] = ContextVar("plain products", default=False)


@contextmanager
def plain_products() -> Iterator[None]:
    """Torch's own products, which ``vmap`` knows how to batch."""
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


def in_turn(x: Tensor) -> bool:
    """Whether users had better be looked after one by one: on a processor, unless ``vmap`` does."""
    return x.device.type == "cpu" and not _plain.get()


class Linear(nn.Linear):
    """``nn.Linear`` with these products."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` [..., K] times ``weight`` [N, K] plus ``bias`` [N] -> [..., N]."""
    if not _worth_it(x, weight):
        return functional.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _unrowed(_onednn(_rows(x), weight, bias), x.shape)
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def product(x: Tensor, weight: Tensor) -> Tensor:
    """The same without bias and without gradient: ``x`` [R, K], ``weight`` [N, K] -> [R, N].

    Either may be a transposed view. For few shapes, R is a number that ``rounded`` returns.
    """
    if not _worth_it(x, weight):
        return x @ weight.T
    return _onednn(x, weight)


def rounded(rows: int) -> int:
    """The number of rows to give a product that needs ``rows``: one of sixteen an octave."""
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    return (
        _FAST
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() * len(weight) >= _LARGE
        and not _plain.get()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The operator with which torch's compiler calls oneDNN: no other takes dense arrays."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _rows(x: Tensor) -> Tensor:
    """[..., K] as a matrix, with rows of zeros up to a round number: [R, K]."""
    flat = x.reshape(-1, x.shape[-1])
    more = rounded(len(flat)) - len(flat)
    return functional.pad(flat, (0, 0, 0, more)) if more else flat


def _unrowed(rows: Tensor, shape: torch.Size) -> Tensor:
    """The reverse: a matrix [R, N] without the rows of zeros, as [..., N]."""
    count = shape[:-1].numel()
    kept = rows if len(rows) == count else rows[:count]
    return kept.view(*shape[:-1], rows.shape[-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = _rows(x)
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return _unrowed(_onednn(rows, weight, bias), x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grad = _rows(grads[0])
        x_needed, weight_needed, bias_needed = ctx.needs_input_grad
        return (
            _unrowed(_onednn(grad, weight.T), ctx.shape) if x_needed else None,
            _onednn(grad.T, rows.T) if weight_needed else None,
            grad.sum(0) if bias_needed else None,
        )
