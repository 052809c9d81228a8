"""Visual and semantic experts: what a user's memory says about a candidate, in each modality.

Letters: B users, N candidates, L remembered items, H heads, D hidden size, V and S the native
dimensions of images (512 with CLIP's ViT-B-32) and texts (384 with MiniLM). Nothing is squeezed
before attention.

An expert is an attention in two halves, ``logits`` and ``values``. Its output for a candidate is
the sum over heads of softmax(logits) @ values, over what the memory holds at a position; the fusion
takes the halves apart, since a linear map of L values costs less than one of N outputs.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from shared_model.model.initial import Starts
from shared_model.model.matmul import Linear

SHARPNESS = 10.0  # unit vectors have dot products in [-1, 1], far too flat for a softmax
# Pictures tell items apart better than they tell tastes: on a smaller scale, what maps them learns
# slower, and generalises better to items that nobody has seen (docs/log.md, "cold items").
_PICTURE_SCALE = 0.3
_STRENGTH_SCALE = 20.0  # a number that has to travel far: on this scale Adam takes it there


class VisualExpert(nn.Module):
    """Light attention: the candidate looks for its like among the pictures in memory.

    Query, keys and values are the pictures' own features, so the only parameters are the weight of
    each feature in the comparison and the projection of what was found.
    """

    starts: ClassVar[Starts] = {"sharpness": SHARPNESS}

    def __init__(self, visual: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.empty(visual))
        self.output = Linear(visual, visual, bias=False)

    def logits(self, pictures: Tensor, memory: Tensor) -> Tensor:
        """``pictures`` [B or 1, N, V] and ``memory`` [B or 1, L, V] -> [B, 1, N, L]."""
        return ((pictures * self.sharpness) @ memory.mT)[:, None]

    def values(self, memory: Tensor) -> Tensor:
        """``memory`` [B, L, V] -> [B, 1, L, V]."""
        found: Tensor = self.output(_PICTURE_SCALE * memory)
        return found[:, None]

    def after(self, weight: Tensor) -> Tensor:
        """A linear map of the values, ``weight`` [D, V], as one of the memory: [1, D, V]."""
        return (_PICTURE_SCALE * weight @ self.output.weight)[None]


class SemanticExpert(nn.Module):
    """Multi-head cross-attention: the candidate's ID embedding asks the texts in memory.

    No key bias (it cannot matter) and no value bias (the output would only shift).
    """

    def __init__(self, hidden: int, text: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(hidden, text)
        self.key = Linear(text, text, bias=False)
        self.value = Linear(text, text, bias=False)
        self.output = Linear(text, text, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """``memory`` [B, L, S] -> [B, H, L, S/H]."""
        return self._split(self.key(memory))

    def queries(self, vectors: Tensor) -> Tensor:
        """``vectors`` [B or 1, N, D] -> [B or 1, H, N, S/H]."""
        return self._split(self.query(vectors))

    def logits(self, vectors: Tensor, key: Tensor) -> Tensor:
        """``vectors`` [B or 1, N, D] and a memory's ``key`` [B, H, L, S/H] -> [B, H, N, L]."""
        return self.compared(self.queries(vectors), key)

    def compared(self, queries: Tensor, key: Tensor) -> Tensor:
        """The same from what ``queries`` made of the vectors."""
        logits: Tensor = queries @ key.mT * key.shape[-1] ** -0.5
        return logits

    def values(self, memory: Tensor) -> Tensor:
        """``memory`` [B, L, S] -> [B, H, L, S]: each head's share of the output."""
        by_head = self._split(self.output.weight).mT  # [H, S/H, S]
        values: Tensor = self._split(self.value(memory)) @ by_head
        return values

    def after(self, weight: Tensor) -> Tensor:
        """A linear map of each head's values, ``weight`` [D, S], as one of the memory: [H, D, S].

        Two small products instead of three for each remembered item.
        """
        by_head = weight @ self._split(self.output.weight)  # [H, D, S/H]
        return by_head @ self._by_head(self.value)

    def attention(self) -> tuple[Tensor, Tensor]:
        """What ``logits`` are, as maps of the memory: ``(map @ text) @ vector + offset @ text``.
        [H, D, S] and [H, S]."""
        keys = self._by_head(self.key) * (len(self.key.weight) / self.heads) ** -0.5  # [H, S/H, S]
        queries = self._by_head(self.query)  # [H, S/H, D]
        bias = self.query.bias.view(self.heads, 1, -1)
        return queries.mT @ keys, (bias @ keys)[:, 0]

    def _by_head(self, layer: nn.Linear) -> Tensor:
        return layer.weight.view(self.heads, -1, layer.in_features)

    def _split(self, x: Tensor) -> Tensor:
        width = x.shape[-1] // self.heads  # not -1: of nothing, that could be anything
        return x.view(*x.shape[:-1], self.heads, width).transpose(-3, -2)  # [B, H, ., S/H]


class Experts(nn.Module):
    """The two experts and the two halves of the content head."""

    # Heads start at zero, since their vectors add to the ID embeddings (invariant 2). Nor does what
    # training never reaches stay in what they say of items that it never saw.
    starts: ClassVar[Starts] = {
        "visual_head.weight": 0.0,
        "text_head.weight": 0.0,
        "unknown": 0.0,
        "strength": 0.0,
    }

    def __init__(self, hidden: int, visual: int, text: int, heads: int) -> None:
        super().__init__()
        self.visual = VisualExpert(visual)
        self.text = SemanticExpert(hidden, text, heads)
        self.visual_head = Linear(visual, hidden)
        self.text_head = Linear(text, hidden)
        self.unknown = nn.Parameter(torch.empty(hidden))
        self.strength = nn.Parameter(torch.empty(()))

    def vectors(self, ids: Tensor, content: Tensor, cold: Tensor) -> Tensor:
        """ID embeddings and content [..., N, D] as one vector an item; of a ``cold`` [..., N] one
        without the first, which means nothing. [..., N, D].

        What content adds to a trained embedding is little beside what it has to say alone, so for
        that it has a strength of its own, and a vector for all that is unknown of such an item.
        """
        known = torch.where(cold[..., None], self.unknown, ids)
        return known + self.strengths(cold)[..., None] * content

    def strengths(self, cold: Tensor) -> Tensor:
        """By how much the content of items is multiplied: 1 beside a trained ID. [..., N]."""
        return torch.where(cold, 1 + _STRENGTH_SCALE * self.strength, 1.0)

    def content(self, visual: Tensor, text: Tensor, weights: Tensor) -> Tensor:
        """Content in ID space: [..., N, V], [..., N, S] and weights [..., N, 2] -> [..., N, D]."""
        pictures, texts = self._heads(visual, text)
        return weights[..., :1] * pictures + weights[..., 1:] * texts

    def heads(self, visual: Tensor, text: Tensor, weights: Tensor) -> Tensor:
        """What each modality has of that: [..., N, 2, D]."""
        return weights[..., None] * torch.stack(self._heads(visual, text), -2)

    def _heads(self, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual_head(_PICTURE_SCALE * visual), self.text_head(text)
