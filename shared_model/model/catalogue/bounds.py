"""What a mixture's scores cannot leave, told of all candidates by a few products.

What a memory adds to a candidate's score is a mean over remembered items of products of their
values (``remembered.py``) with the candidate's vector: so it lies between the least and the largest
of these, whatever the attention. Trained values differ in few directions: they lie in a box with
these as sides, and in a ball for what is beside. Where logits differ by no more than 2 s, no mean
is farther from that of equal weights than tanh(s / 2) of the values' range: so the better a memory
is told to be all the same to a candidate, the smaller the box around the plain mean.

Letters: B users, I items with padding, N of them, M items that one user remembers, H heads, D
hidden size, K sides of the box.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shared_model.model.catalogue.projected import Remembered
from shared_model.model.catalogue.remembered import Common, Crowd
from shared_model.model.fusion import lead_of
from shared_model.model.matmul import product

_SIDES = 8  # docs/log.md
_ROUNDING = 2e-5  # of a product of vectors, relative to their lengths
_LITTLE = 0.25  # of a box, by which it may be wider if that saves a product


@dataclass(frozen=True)
class Extent:
    """All candidates, as far as bounds of their scores need them."""

    vectors: Tensor  # [I, D]
    along: Tensor  # [I, K + 2], of each vector: along each side, beside all of them, its length
    known: Tensor  # [I] bool, whether anything is added to their scores
    lead: Tensor  # [I] of pictures over texts by the router, in nats; infinite where one is missing
    leads: Tensor  # [2] the least and the largest of those that are known

    @classmethod
    def of(cls, vectors: Tensor, along: Tensor, weights: Tensor) -> "Extent":
        """Of candidates with the router's ``weights`` [I, 2]."""
        known, lead = weights.any(1), lead_of(*weights.unbind(1))
        some = lead[known] if known.any() else lead.new_zeros(1)
        return cls(vectors, along, known, lead, torch.stack([some.amin(), some.amax()]))


@dataclass(frozen=True)
class _Around:
    """A modality of B users: means over their memories lie around a centre."""

    logit: Tensor  # [B, 1]
    logit_off: Tensor  # [B, 1] how far from that the logit can be
    value: Tensor  # [B, D]
    value_off: Tensor  # [B, K + 1], along each side of the box, and beside all of them
    length: Tensor  # [B] of the longest value of each head, summed


def sides_of(memories: tuple[Remembered, ...]) -> Tensor:
    """Orthonormal directions [D, D], those in which the values of some items differ most first."""
    values = [memory.value for memory in memories]  # [H, M, D] each
    apart = torch.cat([(each - each.mean(1, keepdim=True)).flatten(0, 1) for each in values])
    covariance = (apart.T @ apart).nan_to_num()
    directions: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return directions


def extents_of(vectors: Tensor, directions: Tensor) -> Tensor:
    """``Extent.along`` of vectors [N, D]."""
    along, square = vectors @ directions[:, :_SIDES], vectors.square().sum(1)
    beside = (square * (1 + _ROUNDING) - along.square().sum(1)).clamp(min=0)
    return torch.cat([along.abs(), torch.stack([beside, square], 1).sqrt()], 1)


class Bounds:
    """Around what some users' scores lie, and how far from it they can be at most."""

    def __init__(self, crowd: Crowd, gate: Tensor, directions: Tensor, candidates: Extent) -> None:
        """Of B users."""
        self.minds, self.gate, self.candidates = crowd.minds, gate, candidates
        longest = candidates.along[:, -1].max()
        pictures = _around(crowd.pictures, gate, directions, None)
        texts = _around(crowd.texts, gate, directions, longest)
        states = crowd.states
        lengths = states.norm(dim=1) + pictures.length + texts.length
        self.rounding = (_ROUNDING * (1 + gate.abs()) * lengths)[:, None]
        self.apart = pictures.value - texts.value  # [B, D]
        self.told = states + texts.value
        self.logit = pictures.logit - texts.logit  # [B, 1]
        self.logit_off = pictures.logit_off + texts.logit_off
        self.offs = texts.value_off, pictures.value_off - texts.value_off  # [B, K + 1] each
        self.beside = extents_of(self.apart, directions)[:, :-1]
        # Where nothing is added, as by a factor of 0: what is no number stays none.
        parts = self.told, self.apart, *self.offs
        self.alone = states + 0 * sum(part.sum(1, keepdim=True) for part in parts)
        self._choose()

    def _choose(self) -> None:
        """Whether pictures can have the same share in all candidates' scores, as they nearly do
        where the router says nearly the same of all: then the rest is one product for each user."""
        ends = self.logit_off * self.logit.new_tensor([-1, 1]) + self.candidates.leads
        least, most = torch.sigmoid(self.logit + ends).chunk(2, 1)  # [B, 1] each
        share, spread = (least + most) / 2, (most - least) / 2
        told, more = self.offs
        sizes, wider = told + share * more + spread * more.abs(), spread * self.beside
        self.one = bool(wider.sum() <= _LITTLE * sizes.sum())
        if self.one:
            self.maps = self.told + share * self.apart
            self.sizes = torch.cat([sizes + wider, self.rounding], 1)  # [B, K + 2]
            return
        # No share is farther from that of the middle.
        spread = torch.tanh(self.logit_off / 4)
        told = told + spread * (self.beside + more.abs())
        self.maps = torch.cat([self.told, self.apart])  # [2B, D]
        rounding = functional.pad(self.rounding, (0, 0, 0, len(more)))
        self.sizes = torch.cat([torch.cat([told, more]), rounding], 1)  # [2B, K + 2]

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Of the candidates of ``part``, as long as they are not held: two of [B, N]."""
        candidates, along = self.candidates, self.candidates.along[part]
        vectors = candidates.vectors[part]
        middle, off = product(self.maps, vectors), product(self.sizes, along)
        if not self.one:
            share = torch.sigmoid(self.logit + candidates.lead[part])
            (middle, apart), (off, more) = middle.chunk(2), off.chunk(2)
            middle, off = middle.addcmul_(share, apart), off.addcmul_(share, more)
        bare = (~candidates.known[part]).nonzero()[:, 0]
        if len(bare):
            middle[:, bare] = self.alone @ vectors[bare].T
            off[:, bare] = self.rounding * along[bare, -1]
        return middle, off

    def closer(self, user: int, names: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one user's candidates ``names`` [K] that are not held: two of [K].

        Texts have their say here, and pictures what one of them could add; only how a candidate's
        picture is compared with these is not looked up.
        """
        candidates, mind = self.candidates, self.minds[user]
        seen, wished = mind.glimpse(candidates.vectors, names), mind.weighing[0][0, 0]
        told = self.gate * seen.value
        shown = (self.gate * seen.shown).unbind()
        ends = torch.stack([wished.amin(), wished.amax()]) if len(wished) else wished.new_zeros(2)
        off = _ROUNDING * torch.stack([-ends.abs().amax(), ends.abs().amax()])
        lead = candidates.lead.index_select(0, names) - seen.logit
        shares = torch.sigmoid((ends + off)[:, None] + lead)  # [2, K]
        low = torch.lerp(told, torch.minimum(*shown), shares).amin(0)
        high = torch.lerp(told, torch.maximum(*shown), shares).amax(0)
        known = candidates.known.index_select(0, names)
        slack = self.rounding[user] * candidates.along[:, -1].index_select(0, names)
        return seen.base + (low + high) / 2 * known, (high - low) / 2 * known + slack


def unevenness(half: Tensor) -> Tensor:
    """How far a mean can be from that of equal weights, as a share of the numbers' range, where
    logits differ by no more than twice ``half`` [H]: if the largest numbers have all that they can,
    and are as many as makes most of it. [H]."""
    return torch.tanh(half / 2)


def half_range(maps: Tensor, offset: Tensor, equal: Tensor, longest: Tensor) -> Tensor:
    """By how much no more than the half logits of some texts differ, whatever the candidate: of
    ``maps`` [..., M, D] and ``offset`` [..., M] and weights ``equal`` [..., M]. [...]."""
    radius = (maps - _mean(maps, equal)[..., None, :]).norm(dim=-1).amax(-1)
    rounding = _ROUNDING * (maps.norm(dim=-1).amax(-1) * longest + offset.abs().amax(-1))
    half: Tensor = radius * longest + (offset.amax(-1) - offset.amin(-1)) / 2 + rounding
    return half


def _around(common: Common, gate: Tensor, directions: Tensor, longest: Tensor | None) -> _Around:
    """Of logits and values, one a head and summed; ``longest`` of candidates' vectors if attention
    is a map of these, and so tells how far from equal its weights can be."""
    items, (places, equal) = common.items, common.side_by_side()
    uneven = equal.new_ones(1, 1)  # logits of pictures are steep
    if longest is not None:
        maps, offset = (_taken(table, places) for table in (items.attention, items.offset))
        uneven = unevenness(half_range(maps, offset[..., 0], equal, longest))
    own = places.expand(len(items.value), -1, -1)
    wished = functional.pad(common.wished, (0, 1)).gather(2, own)  # [H, B, M]
    logit, logit_off = middles(wished[..., None], uneven, equal)
    logit_off = logit_off[..., 0] + _ROUNDING * wished.abs().amax(-1)
    along = _taken(items.value @ directions, places)  # [H, B, M, D]
    middle, off = middles(along, uneven, equal)
    beside = (along - middle[..., None, :])[..., _SIDES:].norm(dim=-1).amax(-1) * _scale(uneven)
    return _Around(
        logit.sum(0),
        logit_off.sum(0)[:, None],
        gate * (middle.sum(0) @ directions.T),
        gate.abs() * torch.cat([off[..., :_SIDES].sum(0), beside.sum(0)[:, None]], 1),
        along.norm(dim=-1).amax(-1).sum(0),
    )


def _taken(table: Tensor, places: Tensor) -> Tensor:
    """Of a table [H, L, F], rows at ``places`` [B, M]: [H, B, M, F]; zeros at place L."""
    rows = functional.pad(table, (0, 0, 0, 1)).index_select(1, places.flatten())
    return rows.view(len(table), *places.shape, -1)


def middles(numbers: Tensor, uneven: Tensor, equal: Tensor) -> tuple[Tensor, Tensor]:
    """Around what means of ``numbers`` [..., M, F] lie, and how far from it, where weights of which
    ``equal`` [..., M] are those of the plain mean are as ``uneven`` [...]: two of [..., F]."""
    low, high = numbers.amin(-2), numbers.amax(-2)
    even = (2 * uneven < 1)[..., None]
    middle = torch.where(even, _mean(numbers, equal), (low + high) / 2)
    return middle, (high - low) / 2 * _scale(uneven)[..., None]


def _mean(numbers: Tensor, equal: Tensor) -> Tensor:
    """Of ``numbers`` [..., M, F] by weights [..., M]: [..., F]."""
    return (equal[..., None, :] @ numbers)[..., 0, :]


def _scale(uneven: Tensor) -> Tensor:
    """Of the half of a range, how much a mean can be off its middle."""
    return (2 * uneven).clamp(max=1)
