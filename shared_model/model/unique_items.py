"""Work that depends on an item alone, done once for each distinct item of a batch.

Letters: B users, L items of each, U distinct ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distinct:
    """Which of B users' items are the same. Without ``places``, all of one user's are distinct."""

    places: Tensor | None = None  # [B, L] of each item among the distinct ones
    found: Tensor | None = None  # [U] where each distinct item stands, in [B * L]

    def take(self, values: Tensor) -> Tensor:
        """Values of all items [B, L, .] as those of the distinct ones: [1, U, .]."""
        return values if self.found is None else values.flatten(0, 1)[self.found][None]

    def spread(self, values: Tensor) -> Tensor:
        """Values of the distinct items [1, ..., U, .] where these stand: [B, ..., L, .]."""
        if self.places is None:
            return values
        spread = values[0].index_select(-2, self.places.flatten())  # [..., B * L, .]
        apart = spread.view(*spread.shape[:-2], *self.places.shape, spread.shape[-1])
        return apart.movedim(-3, 0)


def distinct(names: Tensor) -> Distinct:
    """Of items [B, L]. One user's are taken as they are: they hardly repeat, and ``vmap`` can."""
    if len(names) == 1:
        return Distinct()
    items, places = torch.unique(names, return_inverse=True)
    order = torch.arange(names.numel(), device=names.device)
    found = torch.empty_like(items).scatter_(0, places.flatten(), order)  # any place of an item
    return Distinct(places, found)
