"""SASRec: causal self-attention over a user's history (Kang and McAuley, ICDM 2018, section III).

Pre-norm blocks. Letters: B rows, T positions, D hidden size, H heads. Left padding: the last
interaction always stands at the last position, so a narrower batch means the same thing.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.model.dropout import Dropout
from shared_model.model.initial import Normal, Starts
from shared_model.model.matmul import Linear

PAD = 0
EMBEDDING_STD = 0.07  # of the tables of items and positions at first


class Attention(nn.Module):
    """Multi-head causal self-attention without biases.

    A key bias shifts every logit of a query by the same amount, so it cannot matter, and a value
    bias only adds to the output's own: neither is there (invariant 6).
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(hidden, 3 * hidden, bias=False)
        self.output = Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """``x`` [B, T, D], ``visible`` [B, 1, T, T] bool, ``None`` for causal -> [B, T, D]."""
        split = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, H, D/H]
        query, key, value = split.transpose(1, 3).unbind(2)  # each [B, H, T, D/H]
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None
        )
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return result


class FeedForward(nn.Module):
    """Position-wise feed-forward layer (section III-C), widened four times as is usual today."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.expand = Linear(hidden, 4 * hidden)
        self.output = Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, T, D] -> [B, T, D]."""
        result: Tensor = self.output(functional.gelu(self.expand(x)))
        return result


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and inside a residual."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden)

    def forward(self, x: Tensor, visible: Tensor | None, dropout: Dropout) -> Tensor:
        """``x`` [B, T, D], ``visible`` as in ``Attention`` -> [B, T, D]."""
        x = x + dropout(self.attention(self.attention_norm(x), visible))
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)))


class SASRec(nn.Module):
    """The backbone: everything of SASRec but the item table."""

    starts: ClassVar[Starts] = {"positions": Normal(EMBEDDING_STD)}

    def __init__(self, hidden: int, heads: int, blocks: int, max_length: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(max_length, hidden))
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(hidden)

    def forward(self, embedded: Tensor, valid: Tensor | None, dropout: Dropout) -> Tensor:
        """``embedded`` [B, T, D] item embeddings, ``valid`` [B, T] bool, ``None`` if nothing is
        padding -> [B, T, D].

        Rows at padded positions carry no meaning.
        """
        length = embedded.shape[1]
        visible = None if valid is None else visible_positions(valid)
        x = dropout(embedded * embedded.shape[-1] ** 0.5 + self.positions[-length:])
        for block in self.blocks:
            x = block(x, visible, dropout)
        hidden: Tensor = self.final_norm(x)
        return hidden


def visible_positions(valid: Tensor) -> Tensor:
    """Which positions a query may attend to: valid ones up to its own. [B, T] -> [B, 1, T, T].

    Every position sees itself, so that a padded query has a finite (and unused) result.
    """
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    return ((causal & valid[:, None, :]) | itself)[:, None]
