"""What a node's users remember: memories of a batch as a bank of items and who holds which.

Letters: B users, P positions, K slots, L items of the bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client_app.content import Content
from client_app.data import Dataset, Ints, Rows
from client_app.surprise import surprises
from shared_model.memory import EMPTY, Floats, Memory, MemorySettings, remember
from shared_model.mixture import Memories
from shared_model.model import Recommender
from shared_model.plan import MixturePlan


@dataclass(frozen=True)
class Bank:
    """Remembered items, and which of them each position's memory holds."""

    items: Tensor  # [B, L] int64, EMPTY where there are fewer
    held: Tensor  # [B, P, L] bool

    def to(self, device: torch.device) -> "Bank":
        """The bank on another device."""
        return Bank(self.items.to(device), self.held.to(device))

    def memories(self, content: Content) -> Memories:
        """The bank with its features."""
        return Memories(self.items, content.visual[self.items], content.text[self.items], self.held)


class Recall:
    """Memories of users under the incoming model of a round.

    The surprise of an interaction costs a forward pass, so it is kept for as long as the backbone
    is the same: for all of Stage 2, where it is frozen.
    """

    def __init__(self, dataset: Dataset, content: Content) -> None:
        self.dataset, self.content = dataset, content
        self._backbone = ""
        self._surprise: dict[int, Floats] = {}

    def settings(self, plan: MixturePlan) -> MemorySettings:
        """A plan's memory."""
        sizes = (plan.short_term, plan.long_term)
        return memory_settings(self.dataset, *sizes, plan.novelty, plan.surprise)

    def under(self, backbone: str) -> None:
        """Name the backbone of the coming calls; another one than before forgets what it knew."""
        if backbone != self._backbone:
            self._backbone, self._surprise = backbone, {}

    def memories(
        self,
        model: Recommender,
        rows: Rows,
        positions: Sequence[Ints],
        settings: MemorySettings,
    ) -> list[Memory]:
        """Each user's memory just before each of its ``positions`` [P], counted from 0."""
        counts = np.array([int(p.max(initial=0)) for p in positions], dtype=np.int64)
        known = self._surprises(model, rows, counts, settings)
        histories = self._histories(rows, counts)
        return remember(histories, self.content.combined, known, positions, settings)

    def _histories(self, rows: Rows, counts: Ints) -> list[np.ndarray]:
        starts = self.dataset.indptr[rows]
        return [self.dataset.items[s : s + n] for s, n in zip(starts, counts, strict=True)]

    def _surprises(
        self, model: Recommender, rows: Rows, counts: Ints, settings: MemorySettings
    ) -> list[Floats]:
        """As ``surprises``; computes only what no earlier call has."""
        lacking = [i for i, row in enumerate(rows) if len(self._known(row)) < counts[i]]
        if lacking:
            found = surprises(
                model, self.dataset, rows[lacking], counts[lacking], settings.short_term
            )
            self._surprise.update(zip(rows[lacking].tolist(), found, strict=True))
        return [self._known(row)[:count] for row, count in zip(rows, counts, strict=True)]

    def _known(self, row: int) -> Floats:
        return self._surprise.get(int(row), np.zeros(0, dtype=np.float32))


def memory_settings(
    dataset: Dataset, short_term: int, long_term: int, novelty: float, surprise: float
) -> MemorySettings:
    """A memory over this catalogue; a negative surprise threshold means that of a uniform guess."""
    warm = dataset.num_items - int(dataset.cold.sum())
    threshold = surprise if surprise >= 0 else float(np.log(warm))
    return MemorySettings(
        short_term=short_term, long_term=long_term, novelty=novelty, surprise=threshold
    )


def own_banks(memories: Sequence[Memory]) -> Bank:
    """A bank for each user, which its positions share: for training."""
    parts = [_index(memory.slots) for memory in memories]
    longest = max(1, *(len(items) for items, _ in parts))
    widest = max(len(held) for _, held in parts)
    items = np.full((len(parts), longest), EMPTY, dtype=np.int64)
    held = np.zeros((len(parts), widest, longest), dtype=bool)
    for user, (own, holds) in enumerate(parts):
        items[user, : len(own)] = own
        held[user, : len(holds), : len(own)] = holds
    return Bank(torch.from_numpy(items), torch.from_numpy(held))


def shared_bank(memories: Sequence[Memory]) -> Bank:
    """One bank for all users, each with one position: B positions of one user, for evaluation."""
    items, held = _index(np.concatenate([memory.slots for memory in memories]))
    return Bank(torch.from_numpy(items)[None], torch.from_numpy(held)[None])


def _index(slots: Ints) -> tuple[Ints, np.ndarray]:
    """Distinct items of slots [P, K], at least one: int64 [L], and who holds which: bool [P, L]."""
    items = np.unique(slots[slots != EMPTY])
    if not len(items):
        return np.array([EMPTY]), np.zeros((len(slots), 1), dtype=bool)
    held = np.zeros((len(slots), len(items)), dtype=bool)
    position, slot = np.nonzero(slots != EMPTY)
    held[position, np.searchsorted(items, slots[position, slot])] = True
    return items, held
