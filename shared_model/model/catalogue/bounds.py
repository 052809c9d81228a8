"""What a mixture's scores cannot leave, told of all candidates by a few products.

What a memory adds to a candidate's score is a mean over remembered items of products of their
values (``remembered.py``) with the candidate's vector: so it lies between the least and the largest
of these, whatever the attention. Trained values differ in few directions: they lie in a box with
these as sides, and in a ball for what is beside. Both modalities together, weighed somehow, lie
between the lower and the upper bound of either.

Letters: B users, I items with padding, N of them, M items that one user remembers, H heads, D
hidden size, K sides of the box.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_model.model.catalogue.remembered import Mind, Remembered
from shared_model.model.matmul import product

_SIDES = 8  # docs/log.md
_ROUNDING = 2e-5  # of a product of vectors, relative to their lengths


@dataclass(frozen=True)
class Extent:
    """All candidates, as far as bounds of their scores need them."""

    vectors: Tensor  # [I, D]
    along: Tensor  # [I, K + 2], of each vector: along each side, beside all of them, its length
    known: Tensor  # [I] bool, whether anything is added to their scores
    familiar: Tensor  # [I], what is added if they are remembered themselves


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
        self.held, self.candidates = held, candidates
        boxes = [
            [_box(gate * memory.value, directions) for memory in mind.memories] for mind in minds
        ]
        centres, self.sizes = (
            torch.stack([torch.stack([box[i] for box in own]) for own in boxes], 1) for i in (0, 1)
        )  # [2, B, D], [2, B, K + 1]
        self.maps = torch.cat([torch.stack([mind.state for mind in minds]), *centres])  # [3B, D]
        lengths = torch.stack([mind.length() for mind in minds])  # [B]
        self.rounding = _ROUNDING * (1 + gate.abs()) * lengths

    def of(self, part: slice) -> tuple[Tensor, Tensor]:
        """Least and largest scores of the candidates of ``part``: two of [B, N]."""
        candidates, along = self.candidates, self.candidates.along[part]
        base, *centres = product(self.maps, candidates.vectors[part]).chunk(3)
        sizes = self.sizes @ along[:, :-1].T  # [2, B, N]
        low = torch.minimum(*(at - by for at, by in zip(centres, sizes, strict=True)))
        high = torch.maximum(*(at + by for at, by in zip(centres, sizes, strict=True)))
        low, high = low.mul_(candidates.known[part]), high.mul_(candidates.known[part])
        # One that is held does not meet itself, and then perhaps nothing.
        users, places = self.held[:, part].nonzero(as_tuple=True)
        familiar = candidates.familiar[part][places]
        low[users, places] = low[users, places].clamp(max=0) + familiar
        high[users, places] = high[users, places].clamp(min=0) + familiar
        slack = self.rounding[:, None] * along[:, -1]
        return low.add_(base).sub_(slack), high.add_(base).add_(slack)


def _box(values: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Means of ``values`` [H, M, D], one a head and summed, lie around a centre [D], as far as
    [K + 1]: along each side, and beside all of them."""
    size = len(directions)
    if not values.shape[1]:
        return directions.new_zeros(size), directions.new_zeros(min(_SIDES, size) + 1)
    along = values @ directions  # [H, M, D]
    low, high = along.amin(1), along.amax(1)
    middle, half = (low + high) / 2, (high - low) / 2  # [H, D]
    radius = (along - middle[:, None])[..., _SIDES:].norm(dim=-1).amax(1)  # [H]
    size_along = torch.cat([half[:, :_SIDES].sum(0), radius.sum()[None]])
    return directions @ middle.sum(0), size_along
