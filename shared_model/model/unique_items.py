"""Work that depends on an item alone, done once for each distinct item of a batch.

Letters: B users, L items of each, U distinct ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_model.model.matmul import rounded


@dataclass(frozen=True)
class Distinct:
    """Which of B users' items are the same."""

    items: Tensor  # [U] int64, some of them twice if that makes U a number that products like
    places: Tensor  # [B, L] of each item among these

    def take(self, values: Tensor) -> Tensor:
        """Values of all items [B, L, .] as those of the distinct ones: [U, .]."""
        places = self.places.flatten()
        if len(self.places) == 1:
            return values[0]
        order = torch.arange(len(places), device=places.device)
        found = torch.zeros_like(self.items).scatter_(0, places, order)  # any place of an item
        return values.flatten(0, 1)[found]


def distinct(names: Tensor) -> Distinct:
    """Of items [B, L]. One user's are taken as they are: they hardly repeat, and ``vmap`` can."""
    if len(names) == 1:
        return Distinct(names[0], torch.arange(names.shape[1], device=names.device)[None])
    items, places = torch.unique(names, return_inverse=True)
    more = rounded(len(items)) - len(items)
    return Distinct(torch.cat([items, items[:1].expand(more)]), places)
