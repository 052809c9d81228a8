"""What a stage trains: its batches, and each user's loss. This file has Stage 1's.

Letters: B users of a batch, T positions, I items of which W are warm, D hidden size.
"""

from collections.abc import Iterator, Sequence
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

    def alone(self, user: int, tensors: Arrays) -> "Batch":
        """One user as a batch, of weight 1; ``targets`` stays that of all."""
        at = slice(user, user + 1)
        return Batch(self.keys[at], torch.ones_like(self.weights[at]), self.targets, tensors)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch; ``logs`` are sums over users for the round's record."""

    total: Tensor  # what is differentiated: a sum over users, or [B] for each
    nats: Tensor  # next-item loss summed over targets, without gradient
    logs: Arrays


def together(losses: Sequence[Losses]) -> Losses:
    """The losses of users trained one by one as those of their batch."""
    logs = {name: torch.stack([one.logs[name] for one in losses]) for name in losses[0].logs}
    total, nats = torch.stack([x.total for x in losses]), torch.stack([x.nats for x in losses])
    return Losses(total, nats, logs)


class Objective(Protocol):
    """A stage's training objective on one node in one round."""

    def batch(self, rows: Rows) -> Batch:
        """What users ``rows`` [B] train on."""

    def alone(self, batch: Batch, user: int) -> Batch:
        """One user of a batch, of weight 1, without what pads it to the others' size."""

    def weighted(self, batch: Batch, keys: Tensor) -> Losses:
        """The weighted sum of the users' losses in the model; dropout ``keys`` [B]."""

    def of_users(self, arrays: Arrays, tensors: Arrays, keys: Tensor) -> Losses:
        """Each user's own loss [B] with parameters ``arrays``."""


def batch_rows(dataset: Dataset, rows: Rows, plan: RoundPlan, size: int) -> Iterator[Rows]:
    """Participating users that have a training target, similar lengths together. [<= size] each."""
    rows = rows[plan.takes_part(dataset.user_keys[rows])]
    lengths = dataset.lengths(rows) - 2  # without valid and test
    rows, lengths = rows[lengths >= 2], lengths[lengths >= 2]
    rows = rows[np.lexsort((dataset.user_keys[rows], lengths))]
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


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
        # Where nothing is cold, the table serves as it is: to gather it is a tenth of a step.
        self.whole = len(self.classes) == dataset.num_items

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

    def alone(self, batch: Batch, user: int) -> Batch:
        """Without padding."""
        length = int((batch.tensors["inputs"][user] != PAD).sum())
        own = {n: t[user : user + 1, -length:] for n, t in batch.tensors.items()}
        return batch.alone(user, own)

    def weighted(self, batch: Batch, keys: Tensor) -> Losses:
        """A user's loss is the mean over its own targets."""
        inputs, targets = batch.tensors["inputs"], batch.tensors["targets"]
        padded = len(inputs) > 1  # alone, a user's history has no padding
        hidden = self.model(inputs, Dropout(self.plan.dropout, keys), padded)
        valid = targets != NONE
        per_target = (batch.weights / valid.sum(1))[:, None] * valid
        table = self.model.item_embedding.weight
        items, first = (table, PAD + 1) if self.whole else (table[self.classes], 0)
        total, nats = full_softmax(hidden[valid], items, targets[valid], per_target[valid], first)
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
