"""What a stage trains: its batches, and each user's loss. This file has Stage 1's.

Letters: B users of a batch, T positions, I items, D hidden size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from client_app.data.dataset import (
    Dataset,
    Ints,
    Rows,
    has_training,
    pad_batch,
    training_windows,
)
from client_app.data.resident import resident_items
from client_app.training.losses import Descent, full_softmax
from shared_model.device import on_device
from shared_model.model.dropout import Dropout
from shared_model.model.matmul import rounded
from shared_model.model.packing import Packing
from shared_model.model.recommender import Arrays, Recommender
from shared_model.model.sasrec import PAD
from shared_model.protocol.plan import RoundPlan


@dataclass(frozen=True)
class Batch:
    """Users trained at once."""

    keys: np.ndarray  # [B] uint64 user keys
    weights: Tensor  # [B] each user's share in the aggregate
    targets: int  # over which ``Losses.nats`` is summed
    tensors: Arrays  # what the loss needs, [B, ...] each, nothing shared between users
    packing: Packing | None = None  # if there is one, tensors are [R], by it

    def one_by_one(self) -> Arrays:
        """The tensors with each user as a batch of its own: [B, 1, ...]."""
        return {name: value[:, None] for name, value in self.tensors.items()}

    def single_user(self, user: int, tensors: Arrays) -> "Batch":
        """One user as a batch, of weight 1; ``targets`` stays that of all."""
        at = slice(user, user + 1)
        return Batch(self.keys[at], torch.ones_like(self.weights[at]), self.targets, tensors)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch; ``logs`` are sums over users for the round's record."""

    total: Tensor  # what is differentiated: a sum over users, or [B] for each
    nats: Tensor  # next-item loss summed over targets, without gradient
    logs: Arrays


def stack_losses(losses: Sequence[Losses]) -> Losses:
    """The losses of users trained one by one as those of their batch."""
    logs = {name: torch.stack([one.logs[name] for one in losses]) for name in losses[0].logs}
    total, nats = torch.stack([x.total for x in losses]), torch.stack([x.nats for x in losses])
    return Losses(total, nats, logs)


class Objective(Protocol):
    """A stage's training objective on one node in one round."""

    def foresee(self, rows: Rows) -> None:
        """What is best found out for all participants at once."""

    def share(self, batches: int) -> None:
        """Make what so many batches of the same model have in common, each taking one step."""

    def settle(self, descents: Sequence[Descent]) -> None:
        """Move what ``descents`` name by the gradient of that, when all batches are done."""

    def seen(self, rows: Rows) -> Ints:
        """How much of each user's history matters, int64 [B]: by that users share batches."""

    def batch(self, rows: Rows) -> Batch:
        """What users ``rows`` [B] train on."""

    def single_user(self, batch: Batch, user: int) -> Batch:
        """One user of a batch, of weight 1, without what pads it to the others' size."""

    def weighted(self, batch: Batch, keys: Tensor) -> Losses:
        """The weighted sum of the users' losses in the model; dropout ``keys`` [B]."""

    def step(self, batch: Batch, keys: Tensor, descents: Sequence[Descent]) -> Losses:
        """Move what ``descents`` name by the gradient of ``weighted``; returns its losses."""

    def per_user_losses(self, arrays: Arrays, tensors: Arrays, keys: Tensor) -> Losses:
        """Each user's own loss [B] with parameters ``arrays``."""


def descend(learned: Arrays, loss: Tensor, descents: Sequence[Descent]) -> None:
    """Move what ``descents`` name by the loss's gradient in the parameters ``learned``."""
    move(learned, torch.autograd.grad(loss, list(learned.values())), descents)


@torch.no_grad()
def move(
    names: Iterable[str], gradients: Iterable[Tensor | None], descents: Sequence[Descent]
) -> None:
    """Move what ``descents`` name by gradients; ``None`` is zero."""
    pairs = zip(names, gradients, strict=True)
    known = {name: gradient for name, gradient in pairs if gradient is not None}
    dense = [name for name, gradient in known.items() if not gradient.is_sparse]
    for descent in descents:
        moved, by = [descent.arrays[name] for name in dense], [known[name] for name in dense]
        torch._foreach_add_(moved, by, alpha=-descent.rate)  # one call on a GPU
        for name in known.keys() - dense:
            descent.arrays[name].add_(known[name], alpha=-descent.rate)  # sub_ takes no sparse one


def learned_by(model: Recommender) -> Arrays:
    """The parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def participants(dataset: Dataset, rows: Rows, plan: RoundPlan) -> Rows:
    """Participating users that have a training target, short histories first. [<= N]."""
    keys = dataset.draw_keys(rows) if plan.private else dataset.user_keys[rows]
    rows = rows[plan.takes_part(keys) & has_training(dataset, rows)]
    ordered: Rows = rows[np.lexsort((dataset.user_keys[rows], dataset.lengths(rows)))]
    return ordered


def aggregation_weights(targets: Tensor, weighting: str) -> Tensor:
    """Each user's weight by its number of training targets [B]."""
    counts = targets.float()
    return counts if weighting == "targets" else torch.ones_like(counts)


def packs(device: torch.device) -> bool:
    """Whether histories of a batch stand in one row. Those of a processor's are of nearly one
    length, and few."""
    return device.type != "cpu"


class BackboneObjective:
    """Stage 1: full softmax over the warm items, at every position of the training history."""

    bias: Tensor | None = None  # of a row's logit, where rows stand for others

    def __init__(self, model: Recommender, dataset: Dataset, plan: RoundPlan) -> None:
        self.model, self.dataset, self.plan = model, dataset, plan
        self.learned = learned_by(model)
        self.device = model.item_embedding.weight.device
        self.packs = packs(self.device) and plan.sums_users

    @cached_property
    def absent(self) -> Tensor:
        """Padding and cold items: never a training target, so never a negative."""
        return on_device(np.flatnonzero(~self.dataset.warm), self.device)

    def foresee(self, rows: Rows) -> None:
        """Nothing."""

    def share(self, batches: int) -> None:
        """Nothing."""

    def settle(self, descents: Sequence[Descent]) -> None:
        """Nothing."""

    def seen(self, rows: Rows) -> Ints:
        """As far as the model looks back."""
        return np.minimum(self.dataset.train_lengths(rows), self.model.shape.max_length)

    def batch(self, rows: Rows) -> Batch:
        """Whole training histories, as far as the model looks back."""
        length = self.model.shape.max_length
        if self.packs:
            firsts, counts = training_windows(self.dataset, rows, length)
            packing = Packing.of(counts, firsts, self.device)
            pairs = packing.inputs_and_targets(resident_items(self.dataset, self.device))
            return self._batch(rows, packing.lengths, int(counts.sum()), pairs, packing)
        padded = pad_batch(self.dataset, rows, "train", length)
        counts = (padded[1] != PAD).sum(1)
        inputs, targets = (on_device(part, self.device) for part in padded)
        sent = on_device(counts, self.device)
        return self._batch(rows, sent, int(counts.sum()), (inputs, targets))

    def _batch(
        self,
        rows: Rows,
        counts: Tensor,
        targets: int,
        pairs: tuple[Tensor, Tensor],
        packing: Packing | None = None,
    ) -> Batch:
        weights = aggregation_weights(counts, self.plan.weighting)
        tensors = dict(zip(("inputs", "targets"), map(self.placed, pairs), strict=True))
        return Batch(self.dataset.user_keys[rows], weights, targets, tensors, packing)

    def placed(self, items: Tensor) -> Tensor:
        """Items of any shape as rows of the model's table."""
        return items

    def single_user(self, batch: Batch, user: int) -> Batch:
        """Without padding, but for a round length."""
        length = rounded(int((batch.tensors["inputs"][user] != PAD).sum()))
        own = {n: t[user : user + 1, -length:] for n, t in batch.tensors.items()}
        return batch.single_user(user, own)

    def weighted(self, batch: Batch, keys: Tensor, descents: Sequence[Descent] = ()) -> Losses:
        """A user's loss is the mean over its own targets."""
        targets, packing = batch.tensors["targets"], batch.packing
        if packing is None:
            valid = targets != PAD
            per_target = (batch.weights / valid.sum(1))[:, None] * valid
            hidden = self._hidden(batch, keys)[valid]
            flat = targets[valid], per_target[valid]
        else:
            hidden = self._packed(batch, packing, keys)
            flat = targets, (batch.weights / packing.lengths)[packing.rows]
        table = self.model.item_embedding.weight
        total, nats = full_softmax(hidden, table, *flat, self.absent, descents, self.bias)
        return Losses(total, nats, {})

    def _hidden(self, batch: Batch, keys: Tensor) -> Tensor:
        """States [B, T, D]."""
        inputs = batch.tensors["inputs"]
        padded = len(inputs) > 1 or bool(inputs[0, 0] == PAD)
        # Of the lookup's gradient, only the rows that occur. (On a GPU such sums have no order.)
        embedded = functional.embedding(
            inputs, self.model.item_embedding.weight, PAD, sparse=inputs.device.type == "cpu"
        )
        masks = Dropout(self.plan.dropout, keys)
        hidden: Tensor = self.model.backbone(embedded, inputs != PAD if padded else None, masks)
        return hidden

    def _packed(self, batch: Batch, packing: Packing, keys: Tensor) -> Tensor:
        """The same of a packed batch: [R, D]."""
        embedded = self.model.item_embedding.weight.index_select(0, batch.tensors["inputs"])
        return self.model.backbone.packed(embedded, packing, Dropout(self.plan.dropout, keys))

    def step(self, batch: Batch, keys: Tensor, descents: Sequence[Descent]) -> Losses:
        """The table's gradient goes its own way."""
        losses = self.weighted(batch, keys, descents)
        descend(self.learned, losses.total, descents)
        return losses

    def per_user_losses(self, arrays: Arrays, tensors: Arrays, keys: Tensor) -> Losses:
        """The same with all logits at once."""
        masks = Dropout(self.plan.dropout, keys)
        hidden = functional_call(self.model, arrays, (tensors["inputs"], masks))  # [B, T, D]
        logits = hidden @ arrays["item_embedding.weight"].T  # [B, T, I+1]
        logits = logits.index_fill(-1, self.absent, -torch.inf)
        if self.bias is not None:
            logits = logits + self.bias
        nats = functional.cross_entropy(
            logits.mT, tensors["targets"], ignore_index=PAD, reduction="none"
        ).sum(1)
        counts = (tensors["targets"] != PAD).sum(1)
        return Losses(nats / counts, nats.detach(), {})
