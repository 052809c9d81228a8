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
from shared_model.model.looking import Given, Looks, Sight
from shared_model.model.matmul import in_turn, linear
from shared_model.model.router import ItemCentricRouter, present, uniform_weights
from shared_model.model.unique_items import Distinct, distinct


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

    def once(self) -> tuple[Distinct, Tensor, Tensor]:
        """The distinct items of all banks with their features, [U, V] and [U, S]."""
        once = distinct(self.names)
        return once, once.take(self.visual), once.take(self.text)


@dataclass(frozen=True)
class DistinctMemories(Memories):
    """The same with features of the distinct items alone: ``visual`` [U, V] and ``text`` [U, S]."""

    among: Distinct

    def once(self) -> tuple[Distinct, Tensor, Tensor]:
        """As they are."""
        return self.among, self.visual, self.text


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


@dataclass(frozen=True)
class ItemMaps:
    """What the model makes of U items' features alone, whoever remembers or meets them."""

    planes: Tensor  # [3 H + 2, U, D] as ``Mixture.maps`` has them
    offset: Tensor  # [H, U]
    weights: Tensor  # [U, 2] the router's
    present: Tensor  # [2, U] bool: which have a picture, and a text


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
        made: ItemMaps | None = None,
    ) -> Scores:
        """Scores of each user's candidates at each of its positions; ``sequence`` [B, P, D].

        One user's rows may stand for many users that share a bank: evaluation scores a batch of
        users as the positions of one. ``dropout`` is that of ``embed``. ``made`` of the whole
        catalogue, with the features of which ``memories`` then come, if that was done before.
        """
        read = self.embed(items, dropout, made)
        vectors = read.vectors
        aux = self._aux(sequence, items, read, memories, made)
        # Shared candidates are one matrix product, as in Stage 1: the same numbers to the bit.
        base = sequence @ (vectors[0].mT if len(vectors) == 1 else vectors.mT)
        return Scores(**vars(read), scores=base + self.gate * aux)

    def embed(
        self, items: Candidates, dropout: Dropout | None = None, made: ItemMaps | None = None
    ) -> ItemVectors:
        """The vectors of items, candidates or parts of histories.

        ``dropout`` thins what the content heads see, by one name for each item, B * N of them.
        """
        weights = self.route(items) if made is None else _rows(made.weights, items.names)
        visual, text = _thinned(items.visual, dropout), _thinned(items.text, dropout)
        content = self.experts.content(visual, text, weights)
        return ItemVectors(self.experts.vectors(items.ids, content, items.cold), content, weights)

    def route(self, items: Candidates) -> Tensor:
        """How much each modality counts for the candidates: [B or 1, N, 2]."""
        if self.router is None:
            return uniform_weights(items.visual, items.text)
        once = distinct(items.names)
        weights = self.router(once.take(items.visual), once.take(items.text))  # [U, 2]
        return _rows(weights, once.places)

    def item_maps(self, visual: Tensor, text: Tensor) -> ItemMaps:
        """Of pictures [U, V] and texts [U, S]."""
        weights = uniform_weights(visual, text)
        if self.router is not None:
            weights = self.router(visual, text)
        return ItemMaps(*self.maps(visual, text), weights, present(visual, text).T)

    def maps(self, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """All that remembered items are to candidates and states, whoever these are.

        Of pictures [U, V] and texts [U, S]: [3 H + 2, U, D], products of which with a candidate's
        vector are each text head's attention (but for its offset, [H, U]) and what the item adds to
        the candidate's score, by each text head and by its picture; and products of which with a
        state are as many numbers that make the state listen. What lies between is linear, and is
        multiplied out before any item comes.
        """
        experts, fusion = self.experts, self.fusion
        attention, offset = experts.text.attention()
        told, told_key = (experts.text.after(weight) for weight in fusion.seen("text"))
        shown, shown_key = (experts.visual.after(weight) for weight in fusion.seen("visual"))
        planes = [
            *(linear(text, weight) for weight in (*attention, *told)),
            linear(visual, shown[0]),
            *(linear(text, weight) for weight in told_key),
            linear(visual, shown_key[0]),
        ]
        return torch.stack(planes), linear(text, offset).T

    def _aux(
        self,
        sequence: Tensor,
        items: Candidates,
        read: ItemVectors,
        memories: Memories,
        made: ItemMaps | None,
    ) -> Tensor:
        """``aux . item`` of every candidate: [B, P, N].

        Users remember the same items: each is mapped once a batch.
        """
        once, pictures, texts = memories.once()
        if made is None:
            there, (planes, offset) = present(pictures, texts).T, self.maps(pictures, texts)
        else:
            there, planes, offset = made.present, made.planes, made.offset
        usable = memories.held & there[:, once.places][:, :, None]  # [2, B, P, L]
        itself = memories.names[..., None] == items.names[:, None]  # [B, L, N]
        sight = Sight(items.visual, pictures, once.places, usable, itself)
        own = read.vectors.expand(len(sequence), -1, -1)
        given = Given(planes, offset, self.experts.visual.sharpness, own, sequence)
        if in_turn(sequence):
            logits, values = Looks.apply(*given, sight)
        else:
            logits, values = self._look(given, sight)
        holds = memories.held.to(sequence.dtype) @ itself.to(sequence.dtype)  # [B, P, N]
        remembered = (holds > 0) & ~items.cold[:, None]
        logits = logits.movedim(0, -1) * sequence.shape[-1] ** -0.5
        aux: Tensor = self.fusion(logits, values.movedim(0, -1), read.weights, remembered)
        return aux

    def _look(self, given: Given, sight: Sight) -> tuple[Tensor, Tensor]:
        """As ``Looks``, of all users at once."""
        planes, offset, sharpness, vectors, sequence = given
        heads, size, places = len(offset), planes.shape[1], sight.places[:, None]
        plane = torch.arange(len(planes), device=planes.device)[:, None] * size
        rows = _rows(planes.flatten(0, 1), plane + places)  # [B, 3 H + 2, L, D]
        looked, keys = rows[:, : 2 * heads + 1], rows[:, 2 * heads + 1 :]
        both = _stacked(looked, vectors)  # [B, 2 H + 1, L, N]
        scores = _stacked(keys, sequence)  # [B, H + 1, L, P]
        texts = both[:, :heads] + _rows(offset.flatten()[:, None], plane[:heads] + places)
        known = _rows(sight.remembered_pictures, sight.places)  # [B, L, V]
        pictures = (known * sharpness) @ sight.pictures.mT  # [B, L, N]
        halves = (
            (pictures[:, None], both[:, -1:], scores[:, heads:], sight.usable[0]),
            (texts, both[:, heads:-1], scores[:, :heads], sight.usable[1]),
        )
        tokens = [self.fusion.tokens(*half, sight.itself) for half in halves]
        logits, values = (torch.stack(parts) for parts in zip(*tokens, strict=True))
        return logits, values


def _rows(table: Tensor, places: Tensor) -> Tensor:
    """Rows of a table [., F] at places of any shape: [..., F]."""
    return table.index_select(0, places.flatten()).view(*places.shape, -1)


def _stacked(planes: Tensor, vectors: Tensor) -> Tensor:
    """Products of every plane [B, C, L, D] with vectors [B, N, D], as one: [B, C, L, N]."""
    products = planes.flatten(1, 2) @ vectors.mT
    return products.view(*planes.shape[:3], vectors.shape[1])


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
