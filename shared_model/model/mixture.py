"""The multimodal mixture on top of SASRec: experts, router, fusion, gate and content head.

Letters: B users, P positions, N candidates, L remembered items, D hidden size, V and S the feature
dimensions. Batched over candidates: no loop over N.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from shared_model.model.dropout import Dropout
from shared_model.model.experts import Experts
from shared_model.model.fusion import CrossModalFusion
from shared_model.model.initial import Starts
from shared_model.model.router import ItemCentricRouter, there, uniform_weights
from shared_model.model.unique_items import distinct


@dataclass(frozen=True)
class Candidates:
    """Items to score, the same for all users ([1, N, .]) or each user's own ([B, N, .])."""

    ids: Tensor  # [B or 1, N, D] ID embeddings
    visual: Tensor  # [B or 1, N, V], zero = missing
    text: Tensor  # [B or 1, N, S], zero = missing
    cold: Tensor  # [B or 1, N] bool: scored by content, the ID embedding means nothing
    names: Tensor  # [B or 1, N] item indices


@dataclass(frozen=True)
class Memories:
    """What users remember: a bank of items, and which of them a position's memory holds."""

    names: Tensor  # [B, L] item indices
    visual: Tensor  # [B, L, V], zero = missing
    text: Tensor  # [B, L, S]
    held: Tensor  # [B, P, L] bool


@dataclass(frozen=True)
class ItemVectors:
    """What items are to the model, where histories have them and where they are scored."""

    vectors: Tensor  # [B or 1, N, D]
    content: Tensor  # [B or 1, N, D], the content head's part of them
    weights: Tensor  # [B or 1, N, 2], the router's


@dataclass(frozen=True)
class Scores(ItemVectors):
    """What the mixture says about the candidates."""

    scores: Tensor  # [B, P, N]


class Mixture(nn.Module):
    """Scores candidates by ``(sequence + gate * aux) . item``, unnormalised as in every stage.

    An item is the sum of its ID embedding and of what the content head makes of its features, as in
    Hou et al., "Towards Universal Sequence Representation Learning" (KDD 2022, section 3.3); a cold
    one is the second alone. The head starts at zero.

    A candidate does not meet itself in memory, where its picture would say no more than that it
    was seen, and all unseen items like it would suffer (docs/log.md): the fusion's familiarity says
    that, except of a candidate that is treated as cold, since a cold one is in nobody's memory.

    ``aux`` starts at exactly zero, since the fusion's output does. Without a router (Stage 2) the
    modalities that an item has count the same.
    """

    starts: ClassVar[Starts] = {"gate": 1.0}  # unless the run says otherwise

    def __init__(self, hidden: int, visual: int, text: int, heads: int, routed: bool) -> None:
        super().__init__()
        self.experts = Experts(hidden, visual, text, heads)
        self.fusion = CrossModalFusion(hidden, visual, text)
        self.gate = nn.Parameter(torch.empty(()))
        self.router: ItemCentricRouter | None = None
        if routed:
            self.router = ItemCentricRouter(visual, text, hidden)

    def forward(
        self,
        sequence: Tensor,
        items: Candidates,
        memories: Memories,
        dropout: Dropout | None = None,
    ) -> Scores:
        """Scores of each user's candidates at each of its positions; ``sequence`` [B, P, D].

        One user's rows may stand for many users that share a bank: evaluation scores a batch of
        users as the positions of one. ``dropout`` is that of ``embed``.
        """
        made = self.embed(items, dropout)
        vectors = made.vectors
        aux = self._aux(sequence, items, vectors, made.weights, memories)
        # Shared candidates are one matrix product, as in Stage 1: the same numbers to the bit.
        base = sequence @ (vectors[0].mT if len(vectors) == 1 else vectors.mT)
        return Scores(**vars(made), scores=base + self.gate * aux)

    def embed(self, items: Candidates, dropout: Dropout | None = None) -> ItemVectors:
        """The vectors of items, candidates or parts of histories.

        ``dropout`` thins what the content heads see, by one name for each item, B * N of them.
        """
        weights = self.route(items)
        visual, text = _thinned(items.visual, dropout), _thinned(items.text, dropout)
        content = self.experts.content(visual, text, weights)
        return ItemVectors(self.experts.vectors(items.ids, content, items.cold), content, weights)

    def route(self, items: Candidates) -> Tensor:
        """How much each modality counts for the candidates: [B or 1, N, 2]."""
        if self.router is None:
            return uniform_weights(items.visual, items.text)
        once = distinct(items.names)
        weights = self.router(once.take(items.visual), once.take(items.text))  # [1, U, 2]
        return once.spread(weights)

    def _project(self, memories: Memories) -> "ProjectedMemory":
        """Keys and values of the remembered items, in the experts and in the fusion.

        Linear maps of remembered items are half of a local step, and users remember the same items:
        each is mapped once a batch.
        """
        once = distinct(memories.names)
        visual, text = once.take(memories.visual), once.take(memories.text)
        experts, project = self.experts, self.fusion.project
        projected = ProjectedMemory(
            experts.text.keys(text),
            *project("visual", experts.visual.values(visual)),
            *project("text", experts.text.values(text)),
        )
        return ProjectedMemory(*(once.spread(value) for value in vars(projected).values()))

    def _aux(
        self,
        sequence: Tensor,
        items: Candidates,
        vectors: Tensor,
        weights: Tensor,
        memories: Memories,
    ) -> Tensor:
        """``aux . item`` of every candidate: [B, P, N]."""
        experts, memory, projected = self.experts, memories, self._project(memories)
        itself = items.names[..., None] == memory.names[:, None]  # [B, N, L]
        visual = experts.visual.logits(items.visual, memory.visual)
        text = experts.text.logits(vectors, projected.expert_key)
        halves = (
            (visual, projected.visual_key, projected.visual_value, memory.visual),
            (text, projected.text_key, projected.text_value, memory.text),
        )
        tokens = []
        for attention, key, value, features in halves:
            mask = memory.held & there(features)[:, None]
            tokens.append(self.fusion.token(attention, key, value, mask, itself, sequence, vectors))
        logits, values = (torch.stack(parts, -1) for parts in zip(*tokens, strict=True))
        holds = memory.held.to(sequence.dtype) @ itself.to(sequence.dtype).mT  # [B, P, N]
        remembered = (holds > 0) & ~items.cold[:, None]
        aux: Tensor = self.fusion(logits, values, weights, remembered)
        return aux


@dataclass(frozen=True)
class ProjectedMemory:
    """Linear maps of each remembered item, whatever the candidate and the position."""

    expert_key: Tensor  # [B, H, L, S/H], the semantic expert's; the others are the fusion's
    visual_key: Tensor  # [B, 1, L, D]
    visual_value: Tensor  # [B, 1, L, D]
    text_key: Tensor  # [B, H, L, D]
    text_value: Tensor  # [B, H, L, D]


def _thinned(features: Tensor, dropout: Dropout | None) -> Tensor:
    """Features [B, N, F] after dropout, each candidate with a mask of its own."""
    if dropout is None:
        return features
    return dropout(features.flatten(0, 1)[:, None]).view_as(features)


def mask_repeated_targets(scores: Tensor, targets: Tensor) -> Tensor:
    """In-batch scores [..., P, P] of targets [..., P]: no row has its target as a negative."""
    same = targets[..., :, None] == targets[..., None, :]
    itself = torch.eye(targets.shape[-1], dtype=torch.bool, device=targets.device)
    return scores.masked_fill(same & ~itself, float("-inf"))
