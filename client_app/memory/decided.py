"""What long-term memories did, kept on a GPU, and what they hold at any position.

Letters: B users, N interactions, P positions, F feature size.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from client_app.data.content import Content
from client_app.data.dataset import Dataset, Ints, Rows
from client_app.data.resident import resident_items
from shared_model.device import on_device
from shared_model.memory.cosines import GRID
from shared_model.memory.memory import MemorySettings

TABLE = 2**28  # cosines at once: 1 GB, of the whole catalogue if it has no more


class Decided:
    """What the long-term memories did, on the device, by places of the dataset's ``items``."""

    def __init__(self, dataset: Dataset, content: Content) -> None:
        self.dataset, self.device = dataset, content.visual.device
        self.key: tuple[str, MemorySettings] | None = None
        self.counts = np.zeros(dataset.num_users, dtype=np.int64)  # decided upon, of each user
        self.items = resident_items(dataset, self.device)
        self.kept = torch.zeros_like(self.items)  # whose item is held, counted in the history
        self.until = torch.zeros_like(self.items)
        self.surprising, self.written = torch.zeros(
            (2, len(self.items)), dtype=torch.uint8, device=self.device
        )
        rounded = (
            on_device(content.combined[np.arange(dataset.num_items + 1)], self.device)
            .mul(GRID)
            .round_()
            .div_(GRID)
        )
        self.features = rounded  # [I + 1, F], products of which are exact

    @cached_property
    def cosines(self) -> Tensor | None:
        """Of the whole catalogue with itself [I + 1, I + 1], if that is not too much."""
        if len(self.features) ** 2 > TABLE:
            return None
        return (self.features @ self.features.T).fill_diagonal_(1)

    @cached_property
    def own_places(self) -> Tensor:
        """Each interaction's place in its history: int32, as ``items``."""
        indptr = self.dataset.indptr
        own = np.arange(indptr[-1]) - np.repeat(indptr[:-1], np.diff(indptr))
        return on_device(own.astype(np.int32), self.device)

    def begin(self, key: tuple[str, MemorySettings]) -> None:
        """Under another backbone, or other settings, nothing is decided."""
        if self.key != key:
            self.key = key
            self.counts[:] = 0


class Histories:
    """The first ``counts`` [B] interactions of users, as rows [B, N]; no others are ever held."""

    def __init__(self, decided: Decided, rows: Rows, counts: Ints) -> None:
        longest = max(1, int(counts.max()))
        self.places = torch.arange(longest, device=decided.device)
        self.counts = on_device(counts, decided.device)
        starts = on_device(decided.dataset.indptr[rows], decided.device)
        flat = starts[:, None] + self.places.clamp(max=(self.counts - 1).clamp(min=0)[:, None])
        self.items, self.until = decided.items[flat], decided.until[flat]
        self.kept = decided.kept[flat].long()
        self.written = decided.written[flat].bool()

    def before(self, moments: Tensor) -> Tensor:
        """Which interactions were before a moment [B] of their history: bool [B, N]."""
        return self.places < moments[:, None]

    def remembered(self, positions: Ints, settings: MemorySettings) -> tuple[Tensor, Tensor]:
        """What the two tiers hold before positions [B, P]: two of bool [B, P, N]."""
        before = on_device(positions, self.places.device)[..., None]
        recent = before - settings.short_term
        short = (self.places >= recent) & (self.places < before)
        moment = recent.clamp(min=0) if settings.long_term else recent.new_zeros(())
        long = (self.places < moment) & (moment <= self.until[:, None])
        return short, long
