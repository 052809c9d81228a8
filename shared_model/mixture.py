"""The multimodal mixture on top of SASRec: experts, router, fusion, gate and content head.

Letters: B rows (a user at a position), N candidates, K memory slots, D hidden size, V and S the
feature dimensions. Batched over candidates: no loop over N.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared_model.experts import SemanticExpert, VisualExpert
from shared_model.fusion import CrossModalFusion
from shared_model.router import ItemCentricRouter, uniform_weights


@dataclass(frozen=True)
class Candidates:
    """Items to score, the same for all rows ([1, N, .]) or each row's own ([B, N, .])."""

    ids: Tensor  # [B or 1, N, D] ID embeddings
    visual: Tensor  # [B or 1, N, V], zero = missing
    text: Tensor  # [B or 1, N, S], zero = missing
    cold: Tensor  # [B or 1, N] bool: scored by content, the ID embedding means nothing


@dataclass(frozen=True)
class MemoryContent:
    """Features of what each row's memory holds; a zero row is an empty slot or a missing one."""

    visual: Tensor  # [B, K, V]
    text: Tensor  # [B, K, S]


class Experts(nn.Module):
    """The two experts and the two halves of the content head."""

    def __init__(self, hidden: int, visual: int, text: int, heads: int) -> None:
        super().__init__()
        self.visual = VisualExpert(visual)
        self.text = SemanticExpert(hidden, text, heads)
        self.visual_head = nn.Linear(visual, hidden)
        self.text_head = nn.Linear(text, hidden)

    def content(self, visual: Tensor, text: Tensor, weights: Tensor) -> Tensor:
        """Content in ID space: [..., N, V], [..., N, S] and weights [..., N, 2] -> [..., N, D]."""
        heads = torch.stack([self.visual_head(visual), self.text_head(text)], -2)
        return (weights[..., None] * heads).sum(-2)


class Mixture(nn.Module):
    """Scores candidates by ``(sequence + gate * aux) . item``, unnormalised as in every stage.

    ``aux`` starts at exactly zero, since the fusion's output does. The router is uniform until the
    stage that trains it.
    """

    def __init__(
        self, hidden: int, visual: int, text: int, heads: int, initial_gate: float
    ) -> None:
        super().__init__()
        self.experts = Experts(hidden, visual, text, heads)
        self.fusion = CrossModalFusion(hidden, visual, text)
        self.router = ItemCentricRouter(visual, text, hidden)
        self.gate = nn.Parameter(torch.tensor(initial_gate))

    def forward(
        self, sequence: Tensor, items: Candidates, memory: MemoryContent, routed: bool
    ) -> tuple[Tensor, Tensor]:
        """Scores [B, N] and the router's weights [B or 1, N, 2]. ``sequence`` is [B, D]."""
        route = self.router if routed else uniform_weights
        weights = route(items.visual, items.text)
        content = self.experts.content(items.visual, items.text, weights)
        vectors = torch.where(items.cold[..., None], content, items.ids)  # [B or 1, N, D]
        seen = self.experts.visual(items.visual, memory.visual, memory.visual.any(-1))
        read = self.experts.text(vectors, memory.text, memory.text.any(-1))
        aux = self.fusion(sequence, seen, read, weights)  # [B, N, D]
        fused = sequence[:, None] + self.gate * aux
        return (fused * vectors).sum(-1), weights


def mask_repeated_targets(scores: Tensor, targets: Tensor) -> Tensor:
    """In-batch scores [B, B] of targets [B]: a row's own target is no negative elsewhere."""
    same = targets[:, None] == targets
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return scores.masked_fill(same & ~itself, float("-inf"))
