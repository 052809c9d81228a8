"""The forward pass of Stages 2 and 3 for users in training.

Letters: B users, T input positions, P of them trained, N candidates, L items of a bank, D hidden
size.
"""

import numpy as np
import torch
from torch import Tensor, nn

from client_app.data.content import Content
from shared_model.model.dropout import Dropout
from shared_model.model.mixture import Candidates, Memories, Scores
from shared_model.model.recommender import Arrays, Recommender
from shared_model.model.sasrec import PAD
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

    def forward(self, tensors: Arrays, keys: Tensor, as_cold: Tensor) -> tuple[Tensor, Scores]:
        """ID embeddings of the candidates [B, N, D], and what the mixture says about them.

        ``tensors``: ``inputs`` [B, T], ``columns`` [B, P], ``candidates`` [B, N], ``bank`` [B, L]
        and ``held`` [B, P, L]; ``keys`` [B] are the users' names in this step; ``as_cold`` [I+1]
        bool: items that have content alone; in histories, too, where the backbone is trained.
        """
        mixture, inputs, bank = self.model.mix(), tensors["inputs"], tensors["bank"]
        # A frozen backbone cannot learn to read what has no ID (docs/log.md).
        unread = as_cold if self.reads_content else torch.zeros_like(as_cold)
        read = mixture.embed(self._items(inputs, unread), self._thin(inputs, keys))
        dropout = Dropout(self.rate, keys)
        hidden = self.model.backbone(read.vectors, inputs != PAD, dropout)  # [B, T, D]
        columns = tensors["columns"][..., None].expand(-1, -1, hidden.shape[-1])
        sequence = hidden.gather(1, columns)
        items = self._items(tensors["candidates"], as_cold)
        visual, text = self.content.visual[bank], self.content.text[bank]
        memories = Memories(bank, visual, text, tensors["held"])
        thin = self._thin(tensors["candidates"], keys)
        return items.ids, mixture(sequence, items, memories, thin)

    def _items(self, names: Tensor, as_cold: Tensor) -> Candidates:
        """Items ``names`` [B, N] with what is known of them."""
        ids = self.model.item_embedding.weight[names]
        visual, text = self.content.visual[names], self.content.text[names]
        return Candidates(ids, visual, text, as_cold[names], names)

    def _thin(self, names: Tensor, keys: Tensor) -> Dropout:
        """Content dropout: a mask for each item of each user, the same wherever it stands."""
        return Dropout(self.content_rate, (keys[:, None] ^ (names * _STRIDE)).flatten())
