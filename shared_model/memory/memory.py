"""A user's memory: what it holds just before a position of the user's history.

Two tiers, named after the two stores of Atkinson and Shiffrin (1968); the rules are our own (design
section 3). The short-term memory holds the last interactions. One that *leaves* it is decided upon:
merged into a long-term slot that is nearly the same, written, or forgotten. So the two tiers never
hold one interaction twice (an item that comes back may stand in both), and the memory at position t
is a function of the interactions before t alone.

Letters: L interactions, F feature size, P positions, K slots of both tiers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shared_model.memory.cosines import FeatureTable as FeatureTable
from shared_model.memory.cosines import Floats as Floats
from shared_model.memory.cosines import Ints as Ints
from shared_model.memory.cosines import Items as Items
from shared_model.memory.long_term import Lives, simulate
from shared_model.memory.long_term import MemorySettings as MemorySettings

EMPTY = 0  # no item in this slot
NOVELTY_BINS = 2048  # of a novelty, 1 - cosine, over [0, 2]
BINS_PER_UNIT = NOVELTY_BINS // 2


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of one user at P positions, and what happened up to the last of them."""

    slots: Ints  # [P, K] items, short-term first, most recent first in each tier, then EMPTY
    candidates: int  # interactions that left the short-term memory
    writes: int
    merges: int
    evictions: int


def remember(
    histories: Sequence[Items],
    features: FeatureTable,
    surprise: Sequence[Floats],
    positions: Sequence[Ints],
    settings: MemorySettings,
) -> list[Memory]:
    """Each user's memory just before each position, 0 to L: it holds interactions before it only.

    ``histories`` [L] in time order and ``surprise`` [L], the incoming model's loss on each
    interaction in nats, and ``positions`` [P] in any order, for each user; ``features`` [I + 1, F]
    of the whole catalogue, of length 1 or all zero (nothing known: such an item is like itself and
    like no other). The more users at once the faster.
    """
    seen = [
        items[: places.max(initial=0)] for items, places in zip(histories, positions, strict=True)
    ]
    lives = live(seen, features, surprise, settings)
    return [
        recalled(items, life, places, settings)
        for items, life, places in zip(histories, lives, positions, strict=True)
    ]


def live(
    histories: Sequence[Items],
    features: FeatureTable,
    surprise: Sequence[Floats],
    settings: MemorySettings,
) -> list[Lives]:
    """What each user's long-term memory does with a whole history [L]; arguments as `remember`."""
    ends = [left(len(items), settings) for items in histories]
    return simulate(
        [items[:end] for items, end in zip(histories, ends, strict=True)],
        features,
        [nats[:end] >= settings.surprise for nats, end in zip(surprise, ends, strict=True)],
        settings,
    )


def left(count: int, settings: MemorySettings) -> int:
    """How many of so many interactions left the short-term memory, and were decided upon."""
    return max(count - settings.short_term, 0) if settings.long_term else 0


def recalled(items: Items, life: Lives, positions: Ints, settings: MemorySettings) -> Memory:
    """One user's memory: the end of its history, and what its long-term memory holds.

    ``life`` may go on beyond the last position [P], which changes nothing.
    """
    recent = _short_term(items, positions, settings.short_term)
    moments = np.array([left(place, settings) for place in positions.tolist()], dtype=np.int64)
    slots = np.hstack([recent, life.held(moments, settings.long_term)])
    end = int(moments.max(initial=0))
    writes, merges = (int(flags[:end].sum()) for flags in (life.written, life.merged))
    return Memory(slots, end, writes, merges, max(0, writes - settings.long_term))


def _short_term(items: Items, positions: Ints, size: int) -> Ints:
    """The last ``size`` items before each position, most recent first. [P, size]."""
    padded = np.concatenate([[EMPTY], items]).astype(np.int64)
    recent: Ints = padded[np.maximum(positions[:, None] - np.arange(size), 0)]
    return recent


def novelties(
    features: FeatureTable, histories: Iterable[Items], settings: MemorySettings
) -> npt.NDArray[np.float64]:
    """The novelty that a memory which writes everything meets, sorted.

    ``features`` [I + 1, F] of the whole catalogue, ``histories`` of item indices;
    ``settings.novelty`` is not used. Near-duplicates, first interactions and items without features
    do not count: novelty decides nothing about them. Nor does it where there are no slots.
    """
    everything = replace(settings, novelty=-np.inf)
    whole = list(histories) if settings.long_term else []
    calm = [np.zeros(len(items), dtype=bool) for items in whole]
    lives = simulate(whole, features, calm, everything)
    found = [np.zeros(0)]
    for items, life in zip(whole, lives, strict=True):
        found.append(life.novelty[1:][features[items[1:]].any(axis=1)])
    met = np.concatenate(found)
    return np.sort(met[met > 1 - settings.duplicate])


def novelty_counts(
    features: FeatureTable, histories: Iterable[Items], settings: MemorySettings
) -> Ints:
    """Histogram of ``novelties``, arguments as there: counts [NOVELTY_BINS] over [0, 2].

    Counts of disjoint groups of users add up to those of all, so that nodes find one threshold
    however the users are spread over them. A novelty out of bounds counts in the last bin at its
    side: the rounding of features makes it off by up to 2e-4.
    """
    bins = (novelties(features, histories, settings) * BINS_PER_UNIT).astype(np.int64)
    counts: Ints = np.bincount(np.clip(bins, 0, NOVELTY_BINS - 1), minlength=NOVELTY_BINS)
    return counts


def threshold_of(counts: Ints, quantile: float = 0.5) -> float:
    """The data-driven default of ``MemorySettings.novelty``, from ``novelty_counts``.

    A quantile, since the cosines of one encoder spread over [0, 1] and those of another over
    [0.7, 0.9]. The median, since a slot should go to what adds more than is usual; the rest is
    remembered if it surprises. It is the lower edge of the bin that holds the quantile, so that
    this whole bin is written; 0 where nothing was counted.
    """
    total = int(counts.sum())
    rank = max(1, math.ceil(quantile * total))  # from 1
    return int(np.searchsorted(np.cumsum(counts), rank)) / BINS_PER_UNIT if total else 0.0
