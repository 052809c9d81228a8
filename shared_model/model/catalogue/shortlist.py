"""The mixture's scores of a large catalogue, where only those near a threshold are worked out.

Bounds (``bounds.py``) tell of most candidates whether they come before a target; the others are
worked out by the whole formula (``remembered.py``). So ranks are the formula's, and a batch of
users costs little more than their products with all candidates' vectors.

Letters: B users, I items with padding, N of them, K pairs of a user and an item, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shared_model.model.catalogue.bounds import Bounds, Extent, extents_of, sides_of
from shared_model.model.catalogue.projected import Reader, Remembered
from shared_model.model.catalogue.remembered import Block, Crowd, Mind, Said, places_of
from shared_model.model.mixture import Candidates, Mixture
from shared_model.model.sasrec import PAD

_PART = 2**12  # candidates that are compared at once
_PROJECTED = 2**10  # and projected
_OVERHEAD = 0.5  # pairs an item up to which users are taken one by one
_FEW = 2**7  # candidates of a user that are worked out without a closer look
_SAMPLE = 1024  # items by which the sides of bounds are chosen


class Rows(Protocol):
    """Features [I, F] of which some rows are asked for: a tensor, or a file."""

    def __getitem__(self, items: Tensor, /) -> Tensor:
        """Of items [N]: [N, F]."""


# Which scores that are at most ``off`` from ``middle`` [B, N] are still to be worked out, of some
# users; if these are no numbers, all are.
Undecided = Callable[[Tensor, Tensor, slice], Tensor]


class Shortlist:
    """Every item as a candidate, and as one that can be remembered; on a processor."""

    def __init__(
        self, mixture: Mixture, ids: Tensor, visual: Rows, text: Rows, cold: Tensor
    ) -> None:
        """``ids`` [I, D], features [I, .] and ``cold`` [I] bool by index, padding too."""
        self.mixture, self.ids, self.visual, self.text, self.cold = mixture, ids, visual, text, cold
        self.size, self.reader = len(ids), Reader(mixture)
        self.vectors, self.weights = torch.empty_like(ids), ids.new_empty(self.size, 2)
        for part in self._slices(_PROJECTED):
            self.vectors[part], self.weights[part] = self._made(self._names(part))
        some = torch.arange(1, self.size, max(1, self.size // _SAMPLE))
        self.sides = sides_of(self._remembered(some))
        parts = torch.split(self.vectors, _PROJECTED)
        along = torch.cat([extents_of(part, self.sides) for part in parts])
        self.extent = Extent.of(self.vectors, along, self.weights)

    def around(self, sequence: Tensor, held: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all items for B users [B, I], of states ``sequence`` [B, D], memories ``held``
        [B, I] bool and ``targets`` [B]; and what each target would score if it were cold, [B].

        A score is worked out, or on the right side of both of the target's.
        """
        crowd = self._crowd(sequence, held)
        own, by_content = self._of_targets(crowd.minds, held, targets)
        first = torch.where(own.isnan(), by_content, own)[:, None]
        second = torch.where(by_content.isnan(), own, by_content)[:, None]
        useless = first.isnan()  # a rank behind what is no number needs no scores
        wrecked = bool(useless.any())

        def undecided(middle: Tensor, off: Tensor, users: slice) -> Tensor:
            near = (middle - first[users]).abs_()
            near = _not_above(torch.minimum(near, (middle - second[users]).abs_()), off)
            return near & ~useless[users] if wrecked else near

        always = held.scatter(1, targets[:, None], True)
        return self._scores(crowd, held, always, undecided), by_content

    def best(self, sequence: Tensor, held: Tensor, count: int) -> Tensor:
        """Scores of all items for B users [B, I], as ``around``; those of each user's ``count``
        best are worked out, and no other is higher."""
        crowd = self._crowd(sequence, held)
        bounds = self._bounds(crowd)
        found = sequence.new_full((len(sequence), count), -torch.inf)
        for part in self._slices(_PART):
            middle, off = bounds.of(part)
            low = middle.sub_(off).masked_fill_(held[:, part], -torch.inf)
            low.masked_fill_(self._names(part) == PAD, -torch.inf)
            found = torch.cat([found, low], 1).topk(count, 1).values
        least = found.min(1, keepdim=True).values

        def undecided(middle: Tensor, off: Tensor, users: slice) -> Tensor:
            return _not_above(least[users], middle + off)

        return self._scores(crowd, held, held, undecided)

    def say(self, state: Tensor, held: Tensor) -> tuple[Tensor, Said]:
        """Scores of all items for one user [I], all of them worked out, and what they are made of;
        ``state`` [D], ``held`` [I] bool."""
        [mind] = self._crowd(state[None], held[None]).minds
        parts = []
        for part in self._slices(_PART):
            block = self._block(self._names(part))
            parts.append(mind.say(block, torch.arange(len(block.names)), held[part]))
        said = _joined(parts)
        return self._fused([said], self.weights, self.cold, held), said

    def bounds_of(self, sequence: Tensor, held: Tensor) -> Bounds:
        """Of the scores of B users; arguments as ``around``."""
        return self._bounds(self._crowd(sequence, held))

    def _scores(self, crowd: Crowd, held: Tensor, always: Tensor, undecided: Undecided) -> Tensor:
        """The middle of each score's bounds, and where ``undecided`` or ``always`` [B, I] the
        score. [B, I]."""
        bounds, near = self._bounds(crowd), torch.empty_like(held)
        scores, everybody = self.ids.new_empty(held.shape), slice(0, len(held))
        for part in self._slices(_PART):
            middle, off = bounds.of(part)
            near[:, part] = undecided(middle, off, everybody)
            scores[:, part] = middle
        sure, left = places_of(always), places_of(near & ~always)
        for user, names in enumerate(left):
            if len(names) > _FEW:
                middle, off = bounds.closer(user, names)
                scores[user].index_copy_(0, names, middle)
                still = undecided(middle[None], off[None], slice(user, user + 1))[0]
                left[user] = names.masked_select(still)
        left = [torch.cat(own) for own in zip(sure, left, strict=True)]
        for names, places in self._groups(left):
            self._work_out(scores, crowd.minds, held, names, places)
        return scores

    def _groups(self, left: list[Tensor]) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
        """Items [N], and whose scores of which of them are ``left``: for each user its items'
        places among these. User by user if that reads no more features, or else all users with what
        some have in common."""
        if sum(map(len, left)) <= _OVERHEAD * self.size:
            for user, own in enumerate(left):
                for names in torch.split(own, _PART):
                    yield names, {user: torch.arange(len(names))}
            return
        for part in self._slices(_PART):
            inside = [own[(own >= part.start) & (own < part.stop)] for own in left]
            names = torch.unique(torch.cat(inside))
            yield names, {user: torch.searchsorted(names, own) for user, own in enumerate(inside)}

    def _work_out(
        self,
        scores: Tensor,
        minds: list[Mind],
        held: Tensor,
        names: Tensor,
        places: dict[int, Tensor],
    ) -> None:
        """Put the scores of some users and items, at ``places`` of ``names`` [N], where they
        belong."""
        block = self._block(names)
        for user, few in places.items():
            if len(few):
                items = names.index_select(0, few)
                holds = held[user].index_select(0, items)
                said = minds[user].say(block, few, holds)
                of_items = (self.weights.index_select(0, items), self.cold.index_select(0, items))
                scores[user].index_copy_(0, items, self._fused([said], *of_items, holds))

    def _fused(self, said: Sequence[Said], weights: Tensor, cold: Tensor, held: Tensor) -> Tensor:
        """Scores [K] of what memories said of candidates with the router's ``weights`` [K, 2]."""
        whole, remembered = _joined(said), (held & ~cold)[None, None]
        tokens = (whole.logits[None, None], whole.values[None, None])
        fused = self.mixture.fusion(*tokens, weights[None], remembered)
        scores: Tensor = whole.base + self.mixture.gate * fused[0, 0]
        return scores

    def _of_targets(
        self, minds: list[Mind], held: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores of each user's target [B], as it is and as if it were cold: two of [B]."""
        own, cold = self._block(targets), torch.ones_like(targets, dtype=torch.bool)
        vectors, weights = self._made(targets, cold)
        features = own.pictures.repeat(2, 1)
        both = Block(targets.repeat(2), torch.cat([own.vectors, vectors]), features)
        holds = held.gather(1, targets[:, None])  # [B, 1]
        pairs = torch.arange(2 * len(minds)).view(2, -1).T  # [B, 2] places in the block
        said = [
            mind.say(both, pair, one.expand(2))
            for mind, pair, one in zip(minds, pairs, holds, strict=True)
        ]
        weights = torch.stack([self.weights[targets], weights], 1)  # [B, 2, 2]
        by_content = torch.stack([self.cold[targets], cold], 1)
        of_items = weights.flatten(0, 1), by_content.flatten()
        scores = self._fused(said, *of_items, holds.expand(-1, 2).flatten())
        return scores[::2], scores[1::2]

    def _crowd(self, sequence: Tensor, held: Tensor) -> Crowd:
        names = torch.from_numpy(np.flatnonzero(held.numpy().any(0)))
        return Crowd(sequence, held, *self._remembered(names))

    def _remembered(self, names: Tensor) -> tuple[Remembered, Remembered]:
        pictures, texts = self.visual[names], self.text[names]
        return self.reader.pictures(names, pictures), self.reader.texts(names, texts)

    def _block(self, names: Tensor) -> Block:
        return Block(names, self.vectors.index_select(0, names), self.visual[names])

    def _made(self, names: Tensor, cold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors [N, D] by which candidates are scored, and the router's weights [N, 2]."""
        cold = self.cold[names] if cold is None else cold
        parts = (self.ids[names], self.visual[names], self.text[names], cold, names)
        items = Candidates(*(part[None] for part in parts))
        made = self.mixture.embed(items)
        return made.vectors[0], made.weights[0]

    def _bounds(self, crowd: Crowd) -> Bounds:
        return Bounds(crowd, self.mixture.gate, self.sides, self.extent)

    def _names(self, part: slice) -> Tensor:
        return torch.arange(part.start, part.stop)

    def _slices(self, size: int) -> Iterator[slice]:
        for start in range(0, self.size, size):
            yield slice(start, min(start + size, self.size))


def _not_above(least: Tensor, most: Tensor) -> Tensor:
    """Where the first is not above the second, or either is no number: torch takes far longer."""
    return torch.from_numpy(~(least.numpy() > most.numpy()))


def _joined(said: Sequence[Said]) -> Said:
    """What was said of some candidates after another."""
    parts = zip(*(vars(one).values() for one in said), strict=True)
    return Said(*(torch.cat(each) for each in parts))
