"""What all batches of a round make of items alone, made once, and its gradient.

A round has several batches, on a processor many, and each would map the same remembered items and
route the same candidates again. Here they take them from tables of the whole catalogue, add up the
gradients of these tables, and go the rest of the way back once. A GPU need not say, either, how
many items of a batch are distinct: whoever asks waits for all that it has to do.

Letters: U items of the catalogue, H heads, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from client_app.training.losses import Descent
from client_app.training.objective import move
from shared_model.model.mixture import ItemMaps
from shared_model.model.recommender import Arrays

_TRAINED = ("planes", "offset", "weights")
# Distinct items of a batch, about: that many are mapped once for each without this.
_A_BATCH = {"cpu": 1000, "cuda": 5000}


def worth_sharing(items: int, batches: int, device: str) -> bool:
    """Whether tables of so many items cost less than what the batches would map by themselves."""
    return items <= _A_BATCH[device] * batches


class SharedMaps:
    """Tables of a round, as leaves: their gradients stop here until ``settle``."""

    def __init__(self, made: ItemMaps) -> None:
        """``made`` by the parameters that are trained."""
        tables = {name: getattr(made, name) for name in _TRAINED}
        self.made = {name: table for name, table in tables.items() if table.requires_grad}
        self.leaves = {name: table.detach().requires_grad_() for name, table in self.made.items()}
        self.pulls = {name: torch.zeros_like(table) for name, table in self.leaves.items()}
        self.maps = replace(made, **self.leaves)

    def descend(self, learned: Arrays, loss: Tensor, descents: Sequence[Descent]) -> None:
        """Move what ``descents`` name by a batch's gradient, but for its way through the tables."""
        wanted = [*learned.values(), *self.leaves.values()]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        move(learned, gradients[: len(learned)], descents)
        for pull, gradient in zip(self.pulls.values(), gradients[len(learned) :], strict=True):
            if gradient is not None:
                pull.add_(gradient)

    def settle(self, learned: Arrays, descents: Sequence[Descent]) -> None:
        """The rest of the way, for all batches."""
        gradients = torch.autograd.grad(
            list(self.made.values()),
            list(learned.values()),
            list(self.pulls.values()),
            allow_unused=True,
        )
        move(learned, gradients, descents)
