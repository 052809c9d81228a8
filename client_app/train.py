"""Local training: every participating user starts from the same global arrays.

Letters: B users of a batch, T positions, I items of which W are warm, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from client_app.data import Dataset, pad_batch
from client_app.losses import full_softmax
from shared_model.dropout import Dropout
from shared_model.model import Arrays, Recommender, freeze, read_groups
from shared_model.plan import LocalUpdate, RoundPlan
from shared_model.sasrec import PAD
from shared_model.stages import stage_of

NONE = -1  # no target at this position


@dataclass(frozen=True)
class UserBatch:
    """Users trained at once, each on its whole training history."""

    inputs: Tensor  # [B, T] item indices, left padded
    targets: Tensor  # [B, T] places of the next items in ``classes``, NONE where there is none
    classes: Tensor  # [W] items that the softmax runs over: all that are not cold
    weights: Tensor  # [B] each user's share in the aggregate
    keys: np.ndarray  # [B] uint64 user keys

    @property
    def per_target(self) -> Tensor:
        """Weight of each target [B, T]: a user's loss is the mean over its own targets."""
        valid = self.targets != NONE
        return (self.weights / valid.sum(1))[:, None] * valid

    def dropout(self, plan: RoundPlan, step: int) -> Tensor:
        """The batch's dropout names in a local step. [B] int64."""
        return torch.from_numpy(plan.dropout_keys(self.keys, step)).to(self.inputs.device)


def train_round(
    model: Recommender, dataset: Dataset, rows: np.ndarray, plan: RoundPlan, users_per_batch: int
) -> LocalUpdate:
    """Train the node's participating users (``rows`` [N] of the dataset) and sum their updates.

    ``model`` holds the round's global arrays, and holds them again on return. One local step needs
    one backward pass a batch, since the sum of the users' gradients is the gradient of the sum;
    more steps train stacked copies of the parameters.
    """
    stage = stage_of(plan.stage)
    freeze(model, stage)
    train_batch = _one_step if plan.local_steps == 1 else _several_steps
    sums = {n: torch.zeros_like(p) for n, p in read_groups(model, stage.trained).items()}
    weight, loss, targets, participants = 0.0, 0.0, 0, 0
    for batch in _batches(model, dataset, rows, plan, users_per_batch):
        loss += train_batch(model, batch, plan, sums)
        weight += float(batch.weights.sum())
        targets += int((batch.targets != NONE).sum())
        participants += len(batch.keys)
    return LocalUpdate(sums, weight, loss, targets, participants)


def _batches(
    model: Recommender, dataset: Dataset, rows: np.ndarray, plan: RoundPlan, size: int
) -> Iterator[UserBatch]:
    """Participating users that have a training target, similar lengths together."""
    device = model.item_embedding.weight.device
    classes, place_of = _classes(dataset)
    rows = rows[plan.takes_part(dataset.user_keys[rows])]
    lengths = dataset.indptr[rows + 1] - dataset.indptr[rows] - 2  # without valid and test
    rows, lengths = rows[lengths >= 2], lengths[lengths >= 2]
    rows = rows[np.lexsort((dataset.user_keys[rows], lengths))]
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        padded = pad_batch(dataset, chosen, "train", model.shape.max_length)
        inputs, targets = (torch.from_numpy(array).to(device) for array in padded)
        targets = place_of.to(device)[targets]
        counts = (targets != NONE).sum(1).float()
        weights = counts if plan.weighting == "targets" else torch.ones_like(counts)
        yield UserBatch(inputs, targets, classes.to(device), weights, dataset.user_keys[chosen])


def _classes(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The softmax's items [W], and each item's place among them [I+1] (NONE: padding, cold).

    A cold item is never a training target, and so never a negative either (design section 3).
    """
    warm = ~dataset.cold
    warm[PAD] = False
    place_of = np.where(warm, np.cumsum(warm) - 1, NONE)
    return torch.from_numpy(np.flatnonzero(warm)), torch.from_numpy(place_of)


def _one_step(model: Recommender, batch: UserBatch, plan: RoundPlan, sums: Arrays) -> float:
    """Add the batch's weighted updates to ``sums``; returns its summed loss in nats."""
    hidden = model(batch.inputs, Dropout(plan.dropout, batch.dropout(plan, 0)))
    valid = batch.targets != NONE
    items = model.item_embedding.weight[batch.classes]
    weighted, loss = full_softmax(
        hidden[valid], items, batch.targets[valid], batch.per_target[valid]
    )
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(weighted, [parameters[name] for name in sums])
    for name, gradient in zip(sums, gradients, strict=True):
        sums[name].sub_(gradient, alpha=plan.learning_rate)
    return float(loss)


def _several_steps(model: Recommender, batch: UserBatch, plan: RoundPlan, sums: Arrays) -> float:
    """The same for several local SGD steps: each user moves a copy of its own."""
    start = {name: p.detach() for name, p in model.named_parameters()}
    copies = {name: start[name].expand(len(batch.keys), *start[name].shape) for name in sums}
    first_loss = 0.0
    for step in range(plan.local_steps):
        gradients, losses = _user_gradients(model, start, copies, batch, plan, step)
        copies = {n: copies[n].sub(gradients[n], alpha=plan.learning_rate) for n in sums}
        if step == 0:
            first_loss = float((losses * (batch.targets != NONE).sum(1)).sum())
    for name in sums:
        sums[name] += torch.tensordot(batch.weights, copies[name] - start[name], dims=1)
    return first_loss


def _user_gradients(
    model: Recommender,
    start: Arrays,
    copies: Arrays,
    batch: UserBatch,
    plan: RoundPlan,
    step: int,
) -> tuple[Arrays, Tensor]:
    """Gradients [B, ...] of each user's mean loss in its own copy, and the losses [B]."""

    def user_loss(own: Arrays, inputs: Tensor, targets: Tensor, key: Tensor) -> Tensor:
        masks = Dropout(plan.dropout, key[None])
        hidden = functional_call(model, {**start, **own}, (inputs[None], masks))[0]  # [T, D]
        logits = hidden @ own["item_embedding.weight"][batch.classes].T  # [T, W]
        return functional.cross_entropy(logits, targets, ignore_index=NONE)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        gradients, losses = vmap(grad_and_value(user_loss))(
            copies, batch.inputs, batch.targets, batch.dropout(plan, step)
        )
    return gradients, losses
