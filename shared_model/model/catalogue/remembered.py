"""What a user's state and memory make of any candidate, as linear maps of the candidate's vector.

The formula is ``Mixture.forward``'s (a test compares), arranged for one user and many candidates:
all that it takes of a candidate is its vector, its picture and the router's weights, so that text
features, queries and wishes of candidates never exist.

Letters: N candidates of a block, K of them, M items that one user remembers, L that anybody does, H
heads, D hidden size, V and S the feature dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.model.catalogue.projected import Remembered
from shared_model.model.looking import FLOOR
from shared_model.model.matmul import product, rounded

_CELLS = 2**19  # numbers of one user and some candidates at once: what a processor's cache holds
# Candidates, and rows of maps, come in few numbers: oneDNN compiles and keeps what a shape needs.
_GRAIN, _ROWS = 256, 8


@dataclass(frozen=True)
class Block:
    """Some candidates, for all users."""

    names: Tensor  # [N]
    vectors: Tensor  # [N, D], by which they are scored
    pictures: Tensor  # [N, V]


@dataclass(frozen=True)
class Said:
    """What a memory says of candidates, in each modality: ``CrossModalFusion`` puts it together."""

    base: Tensor  # [K] the state's share of the score
    logits: Tensor  # [K, 2]
    values: Tensor  # [K, 2]


@dataclass(frozen=True)
class Glimpse:
    """What a memory says of candidates as far as their vectors tell it: all but how their pictures
    are compared."""

    base: Tensor  # [K] the state's share of the score
    logit: Tensor  # [K] of the texts
    value: Tensor  # [K] of the texts
    shown: Tensor  # [2, K], the least and the largest that a remembered picture adds


@dataclass(frozen=True)
class Common:
    """What some users remember in one modality."""

    items: Remembered  # L of them, whoever remembers them
    places: list[Tensor]  # [M] of each user's among these
    wished: Tensor  # [H, B, L] how each user's state weighs them

    @classmethod
    def of(cls, items: Remembered, held: Tensor, states: Tensor) -> "Common":
        """Of users with ``states`` [B, D], who have ``held`` [B, I] bool in memory."""
        places = places_of(held.index_select(1, items.names))
        return cls(items, places, states @ items.key.mT)

    def side_by_side(self) -> tuple[Tensor, Tensor]:
        """Each user's places, and the weights of its plain mean: two of [B, M]. Who has fewer has
        its first one again, of weight 0; who has none has the place L."""
        counts = torch.tensor([len(own) for own in self.places])
        places = nn.utils.rnn.pad_sequence(self.places, batch_first=True, padding_value=-1)
        places = functional.pad(places, (0, 1 - min(1, places.shape[1])), value=-1)
        real, first = places >= 0, places[:, :1]
        first = first.masked_fill(first < 0, len(self.items.names))
        equal = real.to(self.wished.dtype) / counts.clamp(min=1)[:, None]
        return torch.where(real, places, first), equal


class Crowd:
    """Some users of states [B, D]; what they remember is projected once for all of them."""

    def __init__(
        self, states: Tensor, held: Tensor, pictures: Remembered, texts: Remembered
    ) -> None:
        """Of those that have ``held`` [B, I] bool, and of what anybody has."""
        self.states = states
        self.pictures, self.texts = (Common.of(of, held, states) for of in (pictures, texts))
        self.minds = [Mind(user, state, self) for user, state in enumerate(states)]


class Mind:
    """One user: a state [D], and what its memory holds in each modality."""

    def __init__(self, user: int, state: Tensor, crowd: Crowd) -> None:
        self.state = state
        both = [(common, common.places[user]) for common in (crowd.pictures, crowd.texts)]
        self.pictures, self.texts = (common.items.at(places) for common, places in both)
        wished = [common.wished[:, user].index_select(1, places) for common, places in both]
        self.weighing = [torch.stack([one, torch.ones_like(one)], 1) for one in wished]
        maps = [state[None], self.pictures.value[0], *self.texts.attention, *self.texts.value]
        self.maps = _rounded(torch.cat(maps))  # [R, D]
        self.compared = _rounded(self.pictures.attention)  # [R, V]

    @property
    def memories(self) -> tuple[Remembered, Remembered]:
        """Pictures and texts."""
        return self.pictures, self.texts

    def say(self, block: Block, places: Tensor, held: Tensor) -> Said:
        """Of the candidates at ``places`` [K] of a block, of which the memory holds ``held`` [K]
        bool: these do not meet themselves."""
        more = _few_sizes(len(places)) - len(places)
        padded, holds = functional.pad(places, (0, more)), functional.pad(held, (0, more))
        size = self._at_once()
        parts = zip(torch.split(padded, size), torch.split(holds, size), strict=True)
        said = torch.cat([self._say(block, *part) for part in parts], -1)[:, : len(places)]
        return Said(said[0], said[1::2].T, said[2::2].T)

    def glimpse(self, vectors: Tensor, names: Tensor) -> Glimpse:
        """Of the candidates ``names`` [K], by ``vectors`` [I, D] of all: none of them is held."""
        padded = functional.pad(names, (0, _few_sizes(len(names)) - len(names)))
        parts = [
            self._glimpse(vectors.index_select(0, part))
            for part in torch.split(padded, self._at_once())
        ]
        base, logit, value, *shown = torch.cat(parts, -1)[:, : len(names)]
        return Glimpse(base, logit, value, torch.stack(shown))

    def _at_once(self) -> int:
        return max(_GRAIN, _CELLS // len(self.maps) // _GRAIN * _GRAIN)

    def _glimpse(self, vectors: Tensor) -> Tensor:
        """The same of few enough: base, texts' logit and value, pictures' extremes. [5, K]."""
        base, shown, asked, told = self._by_vector(vectors)
        nobody = shown.new_empty(0, dtype=torch.long)
        text = self._token(1, asked, told, nobody, nobody)
        if not len(shown):
            shown = torch.zeros_like(base)
        return torch.cat([base, text, shown.amin(0, True), shown.amax(0, True)])

    def _by_vector(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of candidates' vectors [K, D]: the state's share [1, K], what each picture adds [M, K],
        and how each text is asked and what it adds, [H, M, K] each."""
        said = product(self.maps, vectors)  # [R, K]
        (heads, read), seen = self.texts.value.shape[:2], len(self.pictures.names)
        sizes = [1, seen, heads * read, heads * read]
        base, shown, asked, told = torch.split(said[: sum(sizes)], sizes)
        of_heads = (heads, read, len(vectors))
        return base, shown, asked.view(of_heads).add_(self.texts.offset), told.view(of_heads)

    def _say(self, block: Block, places: Tensor, held: Tensor) -> Tensor:
        """The same of few enough: base, and each modality's logit and value. [5, K]."""
        base, shown, texts, told = self._by_vector(block.vectors.index_select(0, places))
        alike = product(self.compared, block.pictures.index_select(0, places))  # [M.., K]
        known = held.nonzero()[:, 0]
        names = block.names[places[known]]
        visual = self._token(0, alike[None, : len(shown)], shown[None], known, names)
        text = self._token(1, texts, told, known, names)
        return torch.cat([base, visual, text])

    def _token(
        self, modality: int, attention: Tensor, values: Tensor, known: Tensor, names: Tensor
    ) -> Tensor:
        """One modality's logit and value [2, K], by ``attention``, which is used up, and ``values``
        [H, M, K]; the candidates at ``known`` [C] must not meet their ``names`` [C]."""
        items = self.memories[modality].names
        if not items.numel():
            return attention.new_zeros(2, attention.shape[-1])
        # As ``unsummed``, in place.
        odds = attention.sub_(attention.amax(1, keepdim=True)).clamp_(min=FLOOR).exp_()
        if known.numel():
            itself = items[:, None] == names
            odds[..., known] = odds[..., known].masked_fill(itself, 0.0)
        sums = self.weighing[modality] @ odds  # [H, 2, K]: wished, and all
        total = sums[:, 1] + (sums[:, 1] == 0).to(sums.dtype)
        added = odds.mul_(values).sum(1)
        return (torch.stack([sums[:, 0], added]) / total).sum(1)


def places_of(flags: Tensor) -> list[Tensor]:
    """Where each row of [B, N] bool is true."""
    return [torch.from_numpy(np.flatnonzero(row)) for row in flags.numpy()]


def _few_sizes(count: int) -> int:
    """The number of candidates to give a product for ``count``: powers of 2, later 4 an octave."""
    step = 1 << max(0, (count - 1).bit_length() - (3 if count > _GRAIN else 0))
    return max(1, -(-count // step)) * step


def _rounded(rows: Tensor) -> Tensor:
    """With rows of zeros, for few shapes."""
    more = rounded(-(-len(rows) // _ROWS) * _ROWS) - len(rows)
    return functional.pad(rows, (0, 0, 0, more))
