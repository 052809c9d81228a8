"""What a stage trains: its batches, and each user's loss. This file has Stage 1's.

Letters: B users of a batch, T positions, I items of which W are warm, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from client_app.data import Dataset, Rows, pad_batch
from client_app.losses import full_softmax
from shared_model.dropout import Dropout
from shared_model.model import Arrays, Recommender
from shared_model.plan import RoundPlan
from shared_model.sasrec import PAD

NONE = -1  # no target at this position


@dataclass(frozen=True)
class Batch:
    """Users trained at once."""

    keys: np.ndarray  # [B] uint64 user keys
    weights: Tensor  # [B] each user's share in the aggregate
    targets: int  # over which ``Losses.nats`` is summed
    tensors: Arrays  # what the loss needs, [B, ...] each, nothing shared between users

    def one_by_one(self) -> Arrays:
        """The tensors with each user as a batch of its own: [B, 1, ...]."""
        return {name: value[:, None] for name, value in self.tensors.items()}

    def only(self, user: int) -> "Batch":
        """The batch of one of its users, of weight 1."""
        at = slice(user, user + 1)
        tensors = {name: value[at] for name, value in self.tensors.items()}
        return Batch(self.keys[at], torch.ones_like(self.weights[at]), self.targets, tensors)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch; ``logs`` are sums over users for the round's record."""

    total: Tensor  # what is differentiated: a sum over users, or [B] for each
    nats: Tensor  # next-item loss summed over targets, without gradient
    logs: Arrays


class Objective(Protocol):
    """A stage's training objective on one node in one round."""

    def batch(self, rows: Rows) -> Batch:
        """What users ``rows`` [B] train on."""

    def weighted(self, batch: Batch, keys: Tensor) -> Losses:
        """The weighted sum of the users' losses in the model; dropout ``keys`` [B]."""

    def of_users(self, arrays: Arrays, tensors: Arrays, keys: Tensor) -> Losses:
        """Each user's own loss [B] with parameters ``arrays``."""


def batches(
    objective: Objective, dataset: Dataset, rows: Rows, plan: RoundPlan, size: int
) -> Iterator[Batch]:
    """Participating users that have a training target, similar lengths together."""
    rows = rows[plan.takes_part(dataset.user_keys[rows])]
    lengths = dataset.lengths(rows) - 2  # without valid and test
    rows, lengths = rows[lengths >= 2], lengths[lengths >= 2]
    rows = rows[np.lexsort((dataset.user_keys[rows], lengths))]
    for start in range(0, len(rows), size):
        yield objective.batch(rows[start : start + size])


def aggregation_weights(targets: Tensor, weighting: str) -> Tensor:
    """Each user's weight by its number of training targets [B]."""
    counts = targets.float()
    return counts if weighting == "targets" else torch.ones_like(counts)


class BackboneObjective:
    """Stage 1: full softmax over the warm items, at every position of the training history."""

    def __init__(self, model: Recommender, dataset: Dataset, plan: RoundPlan) -> None:
        self.model, self.dataset, self.plan = model, dataset, plan
        device = model.item_embedding.weight.device
        self.classes, self.place_of = (part.to(device) for part in _classes(dataset))

    def batch(self, rows: Rows) -> Batch:
        """Whole training histories, as far as the model looks back."""
        padded = pad_batch(self.dataset, rows, "train", self.model.shape.max_length)
        inputs, targets = (torch.from_numpy(part).to(self.classes.device) for part in padded)
        targets = self.place_of[targets]  # [B, T] places in ``classes``, NONE where there is none
        counts = (targets != NONE).sum(1)
        return Batch(
            self.dataset.user_keys[rows],
            aggregation_weights(counts, self.plan.weighting),
            int(counts.sum()),
            {"inputs": inputs, "targets": targets},
        )

    def weighted(self, batch: Batch, keys: Tensor) -> Losses:
        """A user's loss is the mean over its own targets."""
        inputs, targets = batch.tensors["inputs"], batch.tensors["targets"]
        hidden = self.model(inputs, Dropout(self.plan.dropout, keys))
        valid = targets != NONE
        per_target = (batch.weights / valid.sum(1))[:, None] * valid
        items = self.model.item_embedding.weight[self.classes]
        total, nats = full_softmax(hidden[valid], items, targets[valid], per_target[valid])
        return Losses(total, nats, {})

    def of_users(self, arrays: Arrays, tensors: Arrays, keys: Tensor) -> Losses:
        """The same with all logits at once."""
        masks = Dropout(self.plan.dropout, keys)
        hidden = functional_call(self.model, arrays, (tensors["inputs"], masks))  # [B, T, D]
        logits = hidden @ arrays["item_embedding.weight"][self.classes].T  # [B, T, W]
        nats = functional.cross_entropy(
            logits.mT, tensors["targets"], ignore_index=NONE, reduction="none"
        ).sum(1)
        counts = (tensors["targets"] != NONE).sum(1)
        return Losses(nats / counts, nats.detach(), {})


def _classes(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The softmax's items [W], and each item's place among them [I+1] (NONE: padding, cold).

    A cold item is never a training target, and so never a negative either (design section 3).
    """
    warm = ~dataset.cold
    warm[PAD] = False
    place_of = np.where(warm, np.cumsum(warm) - 1, NONE)
    return torch.from_numpy(np.flatnonzero(warm)), torch.from_numpy(place_of)
