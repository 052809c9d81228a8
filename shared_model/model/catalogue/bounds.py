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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared_model.model.catalogue.remembered import Mind, Remembered
from shared_model.model.fusion import LEAST_PRIOR
from shared_model.model.matmul import product

_SIDES = 8  # docs/log.md
_ROUNDING = 2e-5  # of a product of vectors, relative to their lengths
_CERTAIN = 40.0  # nats between the modalities, from which one has all


@dataclass(frozen=True)
class Extent:
    """All candidates, as far as bounds of their scores need them."""

    vectors: Tensor  # [I, D]
    along: Tensor  # [I, K + 2], of each vector: along each side, beside all of them, its length
    known: Tensor  # [I] bool, whether anything is added to their scores
    prior: Tensor  # [2, I] the router's weights, as the fusion takes them; never both 0

    @classmethod
    def of(cls, vectors: Tensor, along: Tensor, weights: Tensor) -> "Extent":
        """Of candidates with the router's ``weights`` [I, 2]."""
        known = weights.any(1)
        prior = weights.clamp(min=LEAST_PRIOR) * (weights > 0)
        return cls(vectors, along, known, torch.stack([prior[:, 0], prior[:, 1] + ~known]))


@dataclass(frozen=True)
class _Around:
    """One user's modality: means over its memory lie around a centre."""

    logit: Tensor  # []
    logit_off: Tensor  # [] how far from that the logit can be
    value: Tensor  # [D]
    value_off: Tensor  # [K + 1], along each side of the box, and beside all of them


def sides_of(memories: tuple[Remembered, ...]) -> Tensor:
    """Orthonormal directions [D, D], those in which the values of some items differ most first."""
    values = [memory.value for memory in memories]  # [H, M, D] each
    apart = torch.cat([(each - each.mean(1, keepdim=True)).flatten(0, 1) for each in values])
    covariance = (apart.T @ apart).nan_to_num()
    directions: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return directions


def extents_of(vectors: Tensor, directions: Tensor) -> Tensor:
    """``Extent.along`` of vectors [N, D]."""
    along = vectors @ directions
    beside, whole = along[:, _SIDES:].norm(dim=1), along.norm(dim=1)
    return torch.cat([along[:, :_SIDES].abs(), beside[:, None], whole[:, None]], 1)


class Bounds:
    """The least and the largest that some users' scores can be."""

    def __init__(
        self,
        minds: list[Mind],
        held: Tensor,
        gate: Tensor,
        directions: Tensor,
        candidates: Extent,
    ) -> None:
        """Of B users who have ``held`` [B, I] bool in memory."""
        self.minds, self.held, self.gate = minds, held, gate
        self.candidates = candidates
        longest = candidates.along[:, -1].max()
        around = [_modalities(mind, gate, directions, longest) for mind in minds]
        pictures, texts = zip(*around, strict=True)
        states = torch.stack([mind.state for mind in minds])
        values = [torch.stack([one.value for one in each]) for each in (pictures, texts)]
        self.maps = torch.cat([states, *values])  # [3B, D]
        offs = [torch.stack([one.value_off for one in each]) for each in (pictures, texts)]
        self.sizes = torch.stack(offs)  # [2, B, K + 1]
        self.odds = torch.stack([_odds(*pair) for pair in around], 1)  # [2, B]
        lengths = torch.stack([mind.length() for mind in minds])  # [B]
        self.rounding = _ROUNDING * (1 + gate.abs()) * lengths

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Least and largest scores of the candidates of ``part``: two of [B, N].

        Of one that is held nothing is told, as it does not meet itself: -inf and inf.
        """
        candidates, along = self.candidates, self.candidates.along[part]
        base, *centres = product(self.maps, candidates.vectors[part]).chunk(3)
        sizes = self.sizes @ along[:, :-1].T  # [2, B, N]
        shares = _shares(self.odds[..., None], candidates.prior[:, part])
        least = [at - by for at, by in zip(centres, sizes, strict=True)]
        most = [at + by for at, by in zip(centres, sizes, strict=True)]
        low, high = _mixed(least, most, shares)
        known, slack = candidates.known[part], self.rounding[:, None] * along[:, -1]
        low, high = low.mul_(known).add_(base).sub_(slack), high.mul_(known).add_(base).add_(slack)
        held = self.held[:, part]
        return low.masked_fill_(held, -torch.inf), high.masked_fill_(held, torch.inf)

    def closer(self, user: int, names: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one user's candidates ``names`` [K] that are not held: two of [K].

        Texts have their say here, and pictures what one of them could add; only how a candidate's
        picture is compared with these is not looked up.
        """
        candidates, mind = self.candidates, self.minds[user]
        seen, wished = mind.glimpse(candidates.vectors, names), mind.weighing[0][0, 0]
        told = self.gate * seen.value
        shown = (self.gate * seen.shown).sort(0).values
        ends = torch.stack([wished.amin(), wished.amax()]) if len(wished) else wished.new_zeros(2)
        off = _ROUNDING * torch.stack([-ends.abs().amax(), ends.abs().amax()])
        odds = ((ends + off)[:, None] - seen.logit).clamp(-_CERTAIN, _CERTAIN).exp()
        shares = _shares(odds, candidates.prior.index_select(1, names))
        low, high = _mixed([shown[0], told], [shown[1], told], shares)
        known = candidates.known.index_select(0, names)
        slack = self.rounding[user] * candidates.along[:, -1].index_select(0, names)
        return low * known + seen.base - slack, high * known + seen.base + slack


def _shares(odds: Tensor, prior: Tensor) -> Sequence[Tensor]:
    """The least and the largest weight of pictures in candidates' scores, two of [..., N], by
    ``odds`` [2, ..., N or 1] and their ``prior`` [2, N]."""
    odds = odds * prior[0]
    return odds.div_(odds + prior[1]).unbind()


def _mixed(
    least: Sequence[Tensor], most: Sequence[Tensor], shares: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The least and the largest of mixtures of pictures and texts, which have values between
    ``least`` and ``most``, by the least and the largest ``shares`` of the former."""
    low = torch.minimum(*(torch.lerp(least[1], least[0], share) for share in shares))
    high = torch.maximum(*(torch.lerp(most[1], most[0], share) for share in shares))
    return low, high


def _modalities(
    mind: Mind, gate: Tensor, directions: Tensor, longest: Tensor
) -> tuple[_Around, _Around]:
    """What a user's pictures and texts can mean to candidates of vectors up to ``longest``."""
    texts = mind.texts
    uneven = unevenness(half_range(texts, longest))
    pictures = torch.ones_like(uneven[:1])  # their logits are steep
    wished = [weighing[:, 0] for weighing in mind.weighing]  # [H, M] each
    return (
        _around(wished[0], gate * mind.pictures.value, directions, pictures),
        _around(wished[1], gate * texts.value, directions, uneven),
    )


def unevenness(half: Tensor) -> Tensor:
    """How far a mean can be from that of equal weights, as a share of the numbers' range, where
    logits differ by no more than twice ``half`` [H]: if the largest numbers have all that they can,
    and are as many as makes most of it. [H]."""
    return torch.tanh(half / 2)


def half_range(texts: Remembered, longest: Tensor) -> Tensor:
    """By how much no more than the half texts' logits differ, whatever the candidate. [H]."""
    if not len(texts.names):
        return longest.new_zeros(len(texts.attention))
    maps, offset = texts.attention, texts.offset[..., 0]  # [H, M, D], [H, M]
    radius = (maps - maps.mean(1, keepdim=True)).norm(dim=-1).amax(1)
    rounding = _ROUNDING * (maps.norm(dim=-1).amax(1) * longest + offset.abs().amax(1))
    half: Tensor = radius * longest + (offset.amax(1) - offset.amin(1)) / 2 + rounding
    return half


def _around(wished: Tensor, values: Tensor, directions: Tensor, uneven: Tensor) -> _Around:
    """Of logits ``wished`` [H, M] and ``values`` [H, M, D], one a head and summed; no weight of
    the means is farther than ``uneven`` [H] from equal ones."""
    size, sides = len(directions), min(_SIDES, len(directions))
    if not values.shape[1]:
        nothing = directions.new_zeros(())
        return _Around(nothing, nothing, nothing.expand(size), nothing.expand(sides + 1))
    logit, logit_off = middles(wished[..., None], uneven)
    logit_off = logit_off + _ROUNDING * wished.abs().amax(1, keepdim=True)
    along = values @ directions  # [H, M, D]
    middle, off = middles(along, uneven)
    beside = (along - middle[:, None])[..., sides:].norm(dim=-1).amax(1) * _scale(uneven)
    offs = torch.cat([off[:, :sides].sum(0), beside.sum()[None]])
    return _Around(logit.sum(), logit_off.sum(), directions @ middle.sum(0), offs)


def middles(numbers: Tensor, uneven: Tensor) -> tuple[Tensor, Tensor]:
    """Around what means of ``numbers`` [H, M, F] lie, and how far from it: two of [H, F]."""
    low, high = numbers.amin(1), numbers.amax(1)
    even = (2 * uneven < 1)[:, None]
    middle = torch.where(even, numbers.mean(1), (low + high) / 2)
    return middle, (high - low) / 2 * _scale(uneven)[:, None]


def _scale(uneven: Tensor) -> Tensor:
    """Of the half of a range, how much a mean can be off its middle."""
    return (2 * uneven).clamp(max=1)


def _odds(pictures: _Around, texts: _Around) -> Tensor:
    """The least and the largest odds of pictures, but for a candidate's prior. [2]."""
    apart, off = pictures.logit - texts.logit, pictures.logit_off + texts.logit_off
    return torch.stack([apart - off, apart + off]).clamp(-_CERTAIN, _CERTAIN).exp()
