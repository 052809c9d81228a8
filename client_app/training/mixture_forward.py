"""The forward pass of Stages 2 and 3 for users in training.

Letters: B users, T input positions, P of them trained, N candidates, L items of a bank, D hidden
size.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from client_app.data.content import Content
from shared_model.model.dropout import Dropout
from shared_model.model.mixture import Candidates, DistinctMemories, ItemMaps, Scores
from shared_model.model.recommender import Arrays, Recommender
from shared_model.model.sasrec import PAD
from shared_model.model.unique_items import Distinct, distinct
from shared_model.seeds import STRIDE

_STRIDE = int(STRIDE.view(np.int64))


class MixtureForward(nn.Module):
    """From users' histories, candidates and memories to scores, with the dropout of a local step.

    A module around the model, so that ``functional_call`` can give it other parameters.
    """

    def __init__(
        self, model: Recommender, content: Content, dropout: float, content_dropout: float
    ) -> None:
        super().__init__()
        self.model, self.content = model, content
        self.reads_content = "backbone" in model.stage.trained
        self.rate, self.content_rate = dropout, content_dropout
        self.made: ItemMaps | None = None  # of the whole catalogue, where a round shares them

    def forward(self, tensors: Arrays, keys: Tensor, as_cold: Tensor) -> tuple[Tensor, Scores]:
        """ID embeddings of the candidates [B, N, D], and what the mixture says about them.

        ``tensors``: ``inputs`` [B, T], ``columns`` [B, P], ``candidates`` [B, N], ``bank`` [B, L]
        and ``held`` [B, P, L]; ``keys`` [B] are the users' names in this step; ``as_cold`` [I+1]
        bool: items that have content alone; in histories, too, where the backbone is trained.
        """
        mixture, inputs, bank = self.model.mix(), tensors["inputs"], tensors["bank"]
        # A frozen backbone cannot learn to read what has no ID (docs/log.md).
        unread = as_cold if self.reads_content else torch.zeros_like(as_cold)
        thin = self._thin(inputs, keys)
        read = mixture.embed(self._items(inputs, unread), thin, self.made)
        dropout = Dropout(self.rate, keys)
        sequence = self.model.backbone.some(
            read.vectors, inputs != PAD, dropout, tensors["columns"]
        )  # [B, P, D]
        items = self._items(tensors["candidates"], as_cold)
        thin = self._thin(tensors["candidates"], keys)
        memories = self._memories(bank, tensors["held"])
        return items.ids, mixture(sequence, items, memories, thin, self.made)

    def whole(self) -> tuple[Tensor, Tensor] | None:
        """Features of the whole catalogue, [I + 1, V] and [I + 1, S], unless it is a large one."""
        visual, text = self.content.visual, self.content.text
        if isinstance(visual, Tensor) and isinstance(text, Tensor):
            return visual, text
        return None

    def _memories(self, bank: Tensor, held: Tensor) -> DistinctMemories:
        """Memories with features of the catalogue, or of the distinct items of a bank [B, L]."""
        whole = self.whole()
        if self.made is not None and whole is not None:
            everything = torch.arange(len(whole[0]), device=bank.device)
            return DistinctMemories(bank, *whole, held, Distinct(everything, bank))
        once = distinct(bank)
        return DistinctMemories(bank, *self._features(once.items), held, once)

    def _items(self, names: Tensor, as_cold: Tensor) -> Candidates:
        """Items ``names`` [B, N] with what is known of them."""
        ids = functional.embedding(names, self.model.item_embedding.weight)
        visual, text = self._features(names)
        return Candidates(ids, visual, text, as_cold[names], names)

    def _features(self, names: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and texts of items of any shape."""
        visual, text = (
            functional.embedding(names, rows) if isinstance(rows, Tensor) else rows[names]
            for rows in (self.content.visual, self.content.text)
        )
        return visual, text

    def _thin(self, names: Tensor, keys: Tensor) -> Dropout:
        """Content dropout: a mask for each item of each user, the same wherever it stands."""
        return Dropout(self.content_rate, (keys[:, None] ^ (names * _STRIDE)).flatten())
