"""Training losses. Letters: R targets (positions of several users), I items, D hidden size."""

from typing import Any

import torch
from torch import Tensor

_CHUNK = 512  # targets whose logits are alive at once: [512, I] stays in the processor's cache


class _FullSoftmax(torch.autograd.Function):
    """Sums of cross-entropies over the whole catalogue, gradients made on the way.

    The [R, I] logits never exist at once: each chunk is scored, turned into its gradient and
    dropped (the idea of Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models").
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        hidden_grad = torch.empty_like(hidden)
        table_grad = torch.empty_like(table) if len(targets) else torch.zeros_like(table)
        table_grad[:first] = 0.0
        items, items_grad = table[first:], table_grad[first:]
        weighted, plain = hidden.new_zeros(2, dtype=torch.float64)
        for start in range(0, len(targets), _CHUNK):
            rows = slice(start, start + _CHUNK)
            chunk, at, weight = hidden[rows], targets[rows], weights[rows, None]
            logits = chunk @ items.T  # [chunk, I]
            high = logits.amax(1, keepdim=True)
            own = logits.gather(1, at[:, None])
            odds = logits.sub_(high).exp_()  # probabilities, but for their sum
            total = odds.sum(1, keepdim=True)
            loss = (total.log() + high - own).squeeze(1)
            weighted += (loss * weights[rows]).sum(dtype=torch.float64)
            plain += loss.sum(dtype=torch.float64)
            # The gradient of a logit is its probability, less one at the target. What scales a row
            # scales the narrow side of each product, not the [chunk, I] one.
            share = weight / total
            torch.mm(odds, items, out=hidden_grad[rows])
            hidden_grad[rows].mul_(share).sub_(weight * items[at])
            items_grad.addmm_(odds.T, chunk * share, beta=float(start > 0))
            items_grad.index_add_(0, at, chunk * weight, alpha=-1)
        ctx.save_for_backward(hidden_grad, table_grad)
        ctx.mark_non_differentiable(plain)
        return weighted, plain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, table_grad = ctx.saved_tensors
        scale = grads[0].to(hidden_grad.dtype)
        return hidden_grad * scale, table_grad * scale, None, None, None


def full_softmax(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Next-item loss over the whole catalogue: its weighted and its plain sum, in nats (float64).

    ``hidden`` [R, D], ``table`` [first + I, D] whose first rows are no items, ``targets`` [R] int64
    in 0..I-1, ``weights`` [R]. Only the weighted sum has a gradient.
    """
    sums: tuple[Tensor, Tensor] = _FullSoftmax.apply(hidden, table, targets, weights, first)  # type: ignore[no-untyped-call]
    return sums
