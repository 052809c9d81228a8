"""Scores of the catalogue after users' histories, by Stages 2 and 3.

Letters: B users of a batch, N candidates that they share, I items, L remembered items, D hidden
size.
"""

import numpy as np
import torch
from torch import Tensor

from client_app.data.content import Content
from client_app.data.dataset import Ints, Rows
from client_app.memory.cache import Recall, shared_bank
from shared_model.memory.memory import MemorySettings
from shared_model.model.mixture import Candidates
from shared_model.model.recommender import Recommender

_CELLS = 16_000_000  # candidates times remembered items at once: 64 MB a head


class CatalogueScores:
    """What the mixture says to a batch of users after the first ``lengths`` [B] of their items."""

    def __init__(
        self,
        model: Recommender,
        hidden: Tensor,
        rows: Rows,
        lengths: Ints,
        memory: MemorySettings,
        recall: Recall,
    ) -> None:
        self._model, self._hidden, self._recall = model, hidden, recall  # [B, D]
        memories = recall.memories(model, rows, [np.array([n]) for n in lengths], memory)
        bank = shared_bank(memories).to(hidden.device)
        self._memories = bank.memories(recall.content)
        # A large catalogue is scored in parts: what all candidates meet in memory is [N, L].
        self._size = max(1, _CELLS // bank.items.shape[1])

    def of(self, items: Tensor, as_cold: Tensor) -> Tensor:
        """Scores of shared items [N], of which the ``as_cold`` [N] ones by content: [B, N]."""
        candidates = shared_candidates(self._model, self._recall.content, items, as_cold)
        scores: Tensor = self._model.mix()(self._hidden[None], candidates, self._memories).scores[0]
        return scores

    def everything(self) -> Tensor:
        """Scores of the whole catalogue, cold items by content: [B, I + 1], on the processor."""
        device = self._hidden.device
        cold = torch.from_numpy(self._recall.dataset.cold).to(device)
        items = torch.arange(len(cold), device=device)
        parts: tuple[Tensor, ...] = items.split(self._size)  # type: ignore[no-untyped-call]
        return torch.cat([self.of(part, cold[part]) for part in parts], 1).cpu()


def shared_candidates(
    model: Recommender, content: Content, items: Tensor, cold: Tensor
) -> Candidates:
    """Items [N] as candidates that all users share; ``cold`` [N] ones are scored by content."""
    ids = model.item_embedding.weight[items]
    shared = (ids, content.visual[items], content.text[items], cold, items)
    return Candidates(*(part[None] for part in shared))
