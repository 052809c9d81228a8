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
from shared_model.model.matmul import Linear, linear
from shared_model.model.packing import Packing

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
        result: Tensor = self.output(self._mixed(self.query_key_value(x), visible))
        return result

    def packed(self, x: Tensor, packing: Packing) -> Tensor:
        """The same of histories in one row: [R, D] -> [R, D]."""
        parts = packing.by_part(self.query_key_value(x))
        mixed = [part.together(self._mixed(part.apart(own), None)) for part, own in parts]
        result: Tensor = self.output(torch.cat(mixed))
        return result

    def _mixed(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Values as queries weigh them: [B, T, 3 D] -> [B, T, D]."""
        query, key, value = self._by_head(x, 3)  # each [B, H, T, D/H]
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None
        )
        return mixed.transpose(1, 2).flatten(-2)

    def _by_head(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, T, parts * D] as so many [B, H, T, D/H]."""
        width = x.shape[-1] // (parts * self.heads)
        return x.view(*x.shape[:-1], parts, self.heads, width).transpose(1, 3).unbind(2)

    def some(self, chosen: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        """The same at some positions: what ``x`` has there, ``chosen`` [B, P, D], looks at all of
        ``x`` [B, T, D] that is ``visible`` [B, 1, P, T] to it -> [B, P, D]."""
        hidden, weight = x.shape[-1], self.query_key_value.weight
        [query] = self._by_head(linear(chosen, weight[:hidden]), 1)  # [B, H, P, D/H]
        key, value = self._by_head(linear(x, weight[hidden:]), 2)  # each [B, H, T, D/H]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
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

    def packed(self, x: Tensor, packing: Packing, dropout: Dropout) -> Tensor:
        """The same of histories in one row: [R, D] -> [R, D]."""
        where = packing.back, packing.rows
        x = x + dropout(self.attention.packed(self.attention_norm(x), packing), *where)
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)), *where)

    def some(self, x: Tensor, visible: Tensor, dropout: Dropout, columns: Tensor) -> Tensor:
        """The same at positions ``columns`` [B, P] alone, ``visible`` [B, 1, P, T] -> [B, P, D]."""
        back, normed = x.shape[1] - 1 - columns, self.attention_norm(x)
        mixed = self.attention.some(taken(normed, columns), normed, visible)
        x = taken(x, columns) + dropout(mixed, back)
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)), back)


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
        visible = None if valid is None else visible_positions(valid)
        x = self._begin(embedded, dropout)
        for block in self.blocks:
            x = block(x, visible, dropout)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def some(self, embedded: Tensor, valid: Tensor, dropout: Dropout, columns: Tensor) -> Tensor:
        """The same at positions ``columns`` [B, P] alone: [B, P, D].

        The last block, of which nobody sees more, makes no others: a third of the arithmetic where
        they are few and blocks are two.
        """
        visible = visible_positions(valid)
        x = self._begin(embedded, dropout)
        *others, last = self._stack()
        for block in others:
            x = block(x, visible, dropout)
        seen = taken(visible[:, 0], columns)[:, None]
        hidden: Tensor = self.final_norm(last.some(x, seen, dropout, columns))
        return hidden

    def packed(self, embedded: Tensor, packing: Packing, dropout: Dropout) -> Tensor:
        """The same of histories in one row, without padding: [R, D] -> [R, D]."""
        # A plain index would have its gradient sorted first.
        positions = self.positions.index_select(0, len(self.positions) - 1 - packing.back)
        scaled = embedded * embedded.shape[-1] ** 0.5
        x = dropout(scaled + positions, packing.back, packing.rows)
        for block in self._stack():
            x = block.packed(x, packing, dropout)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def _stack(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _begin(self, embedded: Tensor, dropout: Dropout) -> Tensor:
        scaled = embedded * embedded.shape[-1] ** 0.5
        return dropout(scaled + self.positions[-embedded.shape[1] :])


def taken(x: Tensor, columns: Tensor) -> Tensor:
    """Of ``x`` [B, T, D] positions ``columns`` [B, P]: [B, P, D]."""
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


def visible_positions(valid: Tensor) -> Tensor:
    """Which positions a query may attend to: valid ones up to its own. [B, T] -> [B, 1, T, T].

    Every position sees itself, so that a padded query has a finite (and unused) result.
    """
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    return ((causal & valid[:, None, :]) | itself)[:, None]
