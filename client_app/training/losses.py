"""Training losses. Letters: R targets (positions of several users), I items, D hidden size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shared_model.model.matmul import product, rounded
from shared_model.model.recommender import Arrays
from shared_model.stages import TABLE

_CHUNK = 512  # targets whose logits are alive at once: [512, I] stays in the processor's cache
_CELLS = 2**26  # and logits that are alive at once on a GPU, for which 512 targets are too little


@dataclass(frozen=True)
class Descent:
    """What a step of gradient descent moves, named as in the model: its parameters, or sums."""

    arrays: Arrays
    rate: float  # that many times the gradient is subtracted


class _FullSoftmax(torch.autograd.Function):
    """Sums of cross-entropies over the whole catalogue, gradients made on the way.

    The [R, I] logits never exist at once: each chunk is scored, turned into its gradient and
    dropped (the idea of Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models").
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        weights: Tensor,
        absent: Tensor,
        descents: Sequence[Descent],
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        on_cpu, count = hidden.device.type == "cpu", len(targets)
        more = rounded(count) - count if on_cpu else 0  # rows of weight 0
        hidden = functional.pad(hidden, (0, 0, 0, more))
        targets, weights = functional.pad(targets, (0, more)), functional.pad(weights, (0, more))
        hidden_grad, table_grad = torch.empty_like(hidden), None
        weighted, plain = hidden.new_zeros(2, dtype=torch.float64)
        size = _CHUNK if on_cpu else max(_CHUNK, _CELLS // len(table))
        for start in range(0, count, size):
            rows, real = slice(start, start + size), slice(count - start)
            chunk, at, weight = hidden[rows], targets[rows], weights[rows, None]
            logits = product(chunk, table).index_fill_(1, absent, -torch.inf)  # [chunk, I]
            losses, odds, total = (_odds if on_cpu else _probabilities)(logits, at, bias)
            loss = losses[real]
            weighted += (loss * weights[rows][real]).sum(dtype=torch.float64)
            plain += loss.sum(dtype=torch.float64)
            # The gradient of a logit is its probability, less one at the target. What scales a row
            # scales the narrow side of each product, not the [chunk, I] one.
            share = weight / total
            hidden_grad[rows] = product(odds, table.T).mul_(share).sub_(weight * table[at])
            change = product(odds.T, (chunk * share).T)
            change.index_add_(0, at, chunk * weight, alpha=-1)
            table_grad = change if table_grad is None else table_grad.add_(change)
        if table_grad is None:
            table_grad = torch.zeros_like(table)
        for descent in descents:
            descent.arrays[TABLE].sub_(table_grad, alpha=descent.rate)
        ctx.save_for_backward(hidden_grad[:count], None if descents else table_grad)
        ctx.mark_non_differentiable(plain)
        return weighted, plain

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, table_grad = ctx.saved_tensors
        scale = grads[0].to(hidden_grad.dtype)
        rest = None if table_grad is None else table_grad * scale
        return hidden_grad * scale, rest, None, None, None, None, None


def _odds(logits: Tensor, at: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [R, I], which are used up: the losses [R] of items ``at`` [R], the others'
    probabilities but for their sums [R, I], and these [R, 1]. A processor has one exponential."""
    high = logits.amax(1, keepdim=True)
    if bias is not None:
        logits += bias
    own = logits.gather(1, at[:, None])
    odds = logits.sub_(high).exp_()
    total = odds.sum(1, keepdim=True)
    return (total.log() + high - own).squeeze(1), odds, total


def _probabilities(
    logits: Tensor, at: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with sums of 1, by a kernel that reads a GPU's memory half as often."""
    if bias is not None:
        logits += bias
    logs = logits.log_softmax(1)
    own = -logs.gather(1, at[:, None]).squeeze(1)
    return own, logs.exp_(), torch.ones_like(own)[:, None]


def full_softmax(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    absent: Tensor,
    descents: Sequence[Descent] = (),
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Next-item loss over the whole catalogue: its weighted and its plain sum, in nats (float64).

    ``hidden`` [R, D], ``table`` [I, D], ``targets`` [R] int64 rows of the table, ``weights`` [R],
    ``absent`` int64: rows of the table that are nothing to choose from, and so no target. Only the
    weighted sum has a gradient. ``descents`` take the table's share of it at once, so that it is
    not kept, passed on and added up: the sum must then be differentiated as it is. ``bias`` [I] is
    added to the logits: the log of how many items a row stands for, 0 for targets.
    """
    sums: tuple[Tensor, Tensor] = _FullSoftmax.apply(
        hidden, table, targets, weights, absent, descents, bias
    )
    return sums
