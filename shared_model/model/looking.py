"""How candidates and states look at remembered items, on a processor: one user after another.

What a position's memory says about a candidate is made of averages over the remembered items
(``CrossModalFusion.tokens`` has the formulas, and autograd's way through them). Here the gradient
is written down, and a user's [L, N] tables stay in the processor's cache until they are done with,
without the padding that others need.

Letters: B users, P positions, N candidates, L items of a bank, U distinct ones of all banks, H
heads of the semantic expert, D hidden size, V feature size of pictures.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOOR = -60.0  # keeps exp() of what a position alone remembers away from 0 / 0


class Given(NamedTuple):
    """What is trained of a look: it gets gradients."""

    planes: Tensor  # [3 H + 2, U, D] as ``Mixture.maps`` makes them
    offset: Tensor  # [H, U] likewise
    sharpness: Tensor  # [V] of the visual expert
    vectors: Tensor  # [B, N, D] of the candidates
    sequence: Tensor  # [B, P, D] the states


@dataclass(frozen=True)
class Sight:
    """What is looked at, and by whom: nothing of it is trained."""

    pictures: Tensor  # [B or 1, N, V] of the candidates
    remembered_pictures: Tensor  # [U, V]
    places: Tensor  # [B, L] of the bank's items among the distinct ones
    usable: Tensor  # [2, B, P, L] bool: what a position holds that has a picture, and a text
    itself: Tensor  # [B, L, N] bool: a candidate does not meet itself


@dataclass(frozen=True)
class _Half:
    """One modality's tables of one user, as the way back needs them."""

    odds: Tensor  # [h, L, N] exp(attention), 0 where a candidate meets itself
    low: Tensor | None  # [h, L, N] bool: where exp() was kept from 0
    added: Tensor  # [h, L, N] products of candidates and remembered items
    weighing: Tensor  # [h, L, 2 P]: what is usable, and the same times the states' scores
    usable: Tensor  # [L, P]
    total: Tensor  # [h, P, N]
    logit: Tensor  # [h, P, N]
    value: Tensor  # [h, P, N]


class Looks(torch.autograd.Function):
    """The tokens' logits and values, [2, B, P, N] each, pictures first; of ``*Given`` and a
    ``Sight``."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        given, sight = Given(*arguments[:-1]), arguments[-1]
        ctx.save_for_backward(*given)
        ctx.sight, ctx.halves = sight, []
        users, candidates = given.vectors.shape[:2]
        shape = (2, users, given.sequence.shape[1], candidates)
        logits, values = (given.sequence.new_empty(shape) for _ in range(2))
        for user in range(users):
            halves = _User(user, given, sight).halves()
            for place, half in enumerate(halves):
                torch.sum(half.logit, 0, out=logits[place, user])
                torch.sum(half.value, 0, out=values[place, user])
            ctx.halves.append(halves)
        return logits, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = Given(*ctx.saved_tensors)
        pulls = Given(*(torch.zeros_like(tensor) for tensor in given))
        for user in reversed(range(len(ctx.halves))):
            one = _User(user, given, ctx.sight)
            one.pull(ctx.halves.pop(), grads[0][:, user], grads[1][:, user], pulls)
        return *pulls, None


class _User:
    """One user's part, without the padding of its bank."""

    def __init__(self, user: int, given: Given, sight: Sight) -> None:
        used = sight.usable[:, user].any(1).any(0).nonzero()
        size = int(used[-1]) + 1 if len(used) else 1
        self.user, self.heads = user, len(given.offset)
        self.places = sight.places[user, :size]
        rows = given.planes.index_select(1, self.places)  # [3 H + 2, L, D]
        looked = 2 * self.heads + 1
        self.seen, self.keys = rows[:looked].flatten(0, 1), rows[looked:].flatten(0, 1)
        self.offset = given.offset.index_select(1, self.places)[..., None]
        self.sharpness = given.sharpness
        self.vectors, self.state = given.vectors[user], given.sequence[user]
        self.pictures = sight.pictures[user if len(sight.pictures) > 1 else 0]
        self.remembered = sight.remembered_pictures.index_select(0, self.places)
        self.usable = sight.usable[:, user, :, :size].mT.to(self.state.dtype)  # [2, L, P]
        self.met = sight.itself[user, :size].nonzero(as_tuple=True)

    def halves(self) -> tuple[_Half, _Half]:
        """What pictures say and what texts say."""
        size, heads = len(self.places), self.heads
        both = (self.seen @ self.vectors.T).view(-1, size, len(self.vectors))  # [2 H + 1, L, N]
        scores = (self.keys @ self.state.T).view(heads + 1, size, -1)  # [H + 1, L, P]
        texts = both[:heads].add_(self.offset)
        pictures = (self.remembered * self.sharpness) @ self.pictures.T
        return (
            self._half(pictures[None], both[2 * heads :], scores[heads:], self.usable[0]),
            self._half(texts, both[heads : 2 * heads], scores[:heads], self.usable[1]),
        )

    def _half(self, attention: Tensor, added: Tensor, scores: Tensor, usable: Tensor) -> _Half:
        """Of ``attention`` [h, L, N], which is used up, ``scores`` [h, L, P]."""
        odds = attention.sub_(attention.amax(1, keepdim=True))
        low = odds < FLOOR if odds.numel() and odds.amin() < FLOOR else None
        odds = (odds if low is None else odds.clamp_(min=FLOOR)).exp_()
        odds[:, self.met[0], self.met[1]] = 0.0
        weighing = torch.cat([usable.expand_as(scores), usable * scores], -1)  # [h, L, 2 P]
        total, logit = (weighing.mT @ odds).chunk(2, 1)  # [h, P, N]
        total = total + (total == 0)
        value = usable.T @ (odds * added) / total
        return _Half(odds, low, added, weighing, usable, total, logit / total, value)

    def pull(self, halves: tuple[_Half, _Half], logit: Tensor, value: Tensor, pulls: Given) -> None:
        """Add to the gradients ``pulls`` by those of the results, [2, P, N]."""
        planes, offset, sharpness, vectors, sequence = pulls
        size, number, heads = len(self.places), len(self.vectors), self.heads
        both = self.vectors.new_empty(2 * heads + 1, size, number)
        scores = self.vectors.new_empty(heads + 1, size, len(self.state))
        pictures = self.vectors.new_empty(1, size, number)
        into = (pictures, both[2 * heads :], scores[heads:])
        _half_pull(halves[0], logit[0], value[0], into)
        into = (both[:heads], both[heads : 2 * heads], scores[:heads])
        _half_pull(halves[1], logit[1], value[1], into)
        flat, keys = both.flatten(0, 1), scores.flatten(0, 1)
        torch.mm(flat.T, self.seen, out=vectors[self.user])
        torch.mm(keys.T, self.keys, out=sequence[self.user])
        rows = torch.cat([flat @ self.vectors, keys @ self.state]).view(-1, size, planes.shape[-1])
        planes.index_add_(1, self.places, rows)
        offset.index_add_(1, self.places, both[:heads].sum(-1))
        sharpness.add_((self.remembered * (pictures[0] @ self.pictures)).sum(0))


def _half_pull(half: _Half, logit: Tensor, value: Tensor, into: tuple[Tensor, ...]) -> None:
    """Gradients of a half's attention and ``added`` [h, L, N] and of its scores [h, L, P]."""
    attention, added, scores = into
    a, b = logit / half.total, value / half.total  # [h, P, N]
    total = (a * half.logit).addcmul_(b, half.value).neg_()
    torch.bmm(half.weighing, torch.cat([total, a], 1), out=attention)
    torch.matmul(half.usable, b, out=added)
    attention.addcmul_(half.added, added).mul_(half.odds)
    if half.low is not None:
        attention.masked_fill_(half.low, 0.0)
    added.mul_(half.odds)
    torch.bmm(half.odds, a.mT, out=scores).mul_(half.usable)
