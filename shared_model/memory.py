"""A user's memory: what it holds just before a position of the user's history.

Two tiers, named after the two stores of Atkinson and Shiffrin (1968); the rules are our own (design
section 3). The short-term memory holds the last interactions. One that *leaves* it is decided upon:
merged into a long-term slot that is nearly the same, written, or forgotten. So the two tiers never
hold one interaction twice (an item that comes back may stand in both), and the memory at position t
is a function of the interactions before t alone.

Letters: L interactions, F feature size, P positions, K slots of both tiers, M long-term slots.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

EMPTY = 0  # no item in this slot
BLOCK = 64  # interactions compared at once: a matrix product costs less than as many vectors
GRID = 2.0**11  # features are rounded to multiples of 1 / GRID
NOVELTY_BINS = 2048  # of a novelty, 1 - cosine, over [0, 2]
BINS_PER_UNIT = NOVELTY_BINS // 2


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """When something is remembered, and for how long."""

    short_term: int = 50  # interactions
    long_term: int = 200  # slots
    novelty: float  # 1 - cosine to the nearest slot from which an interaction is written
    surprise: float  # nats from which it is written even if it is not novel
    duplicate: float = 0.98  # cosine to the nearest slot from which it is merged instead
    recency: float = 200.0  # interactions after which the recency term is down to 1 / e


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of one user at P positions, and what happened up to the last of them."""

    slots: Ints  # [P, K] items, short-term first, most recent first in each tier, then EMPTY
    candidates: int  # interactions that left the short-term memory
    writes: int
    merges: int  # what was neither written nor merged is forgotten
    evictions: int


def memory_slots(
    items: Items, features: Floats, surprise: Floats, positions: Ints, settings: MemorySettings
) -> Memory:
    """The memory just before each position, 0 to L: it holds interactions before it only.

    ``items`` [L] in time order, ``features`` [L, F] their content, of length 1 or all zero
    (nothing known: such an item is like itself and like no other), ``surprise`` [L] the incoming
    model's loss on each interaction in nats, ``positions`` [P] in any order.
    """
    left = np.maximum(positions - settings.short_term, 0)  # [P] how many were decided upon
    end = int(left.max(initial=0)) if settings.long_term else 0
    memory = LongTermMemory(items[:end], features[:end], surprise[:end], settings)
    long_term = np.full((len(positions), settings.long_term), EMPTY, dtype=np.int64)
    for row in np.argsort(left, kind="stable"):
        while memory.candidates < min(left[row], end):
            memory.decide()
        long_term[row, : memory.size] = memory.items_held()
    recent = _short_term(items, positions, settings.short_term)
    return Memory(
        np.hstack([recent, long_term]),
        memory.candidates,
        memory.writes,
        memory.merges,
        memory.evictions,
    )


def _short_term(items: Items, positions: Ints, size: int) -> Ints:
    """The last ``size`` items before each position, most recent first. [P, size]."""
    padded = np.concatenate([[EMPTY], items]).astype(np.int64)
    recent: Ints = padded[np.maximum(positions[:, None] - np.arange(size), 0)]
    return recent


class LongTermMemory:
    """The long-term memory of one user as its interactions leave the short-term memory.

    Slots stand in the order of their last refresh, oldest first, so that "the first of the best"
    breaks every tie by age. The tie is a real one: recency vanishes beside the log of the frequency
    once a slot is old enough.
    """

    def __init__(
        self, items: Items, features: Floats, surprise: Floats, settings: MemorySettings
    ) -> None:
        self.items, self.surprise, self.settings = items, surprise, settings
        self.content = np.rint(features * np.float32(GRID))
        self.slots = np.zeros((4, settings.long_term), dtype=np.int64)
        # of each slot: its interaction, how many it stands for, when it was last refreshed, and
        # its column in the block of similarities
        self.place, self.frequency, self.refreshed, self.column = self.slots
        self.block = np.zeros((0, 0), dtype=np.float32)  # [BLOCK, slots at its start + BLOCK]
        self.block_row = 0
        self.size = self.candidates = self.writes = self.merges = self.evictions = 0

    def items_held(self) -> Items:
        """The items in the slots, last refreshed first. [size]."""
        held: Items = self.items[self.place[: self.size][::-1]]
        return held

    def decide(self) -> float:
        """Merge, write or forget the next interaction; returns its novelty.

        A near-duplicate is merged however surprising it is: the memory already holds it.
        """
        place, settings = self.candidates, self.settings
        similarity, nearest = self._nearest()
        novelty = 1 - similarity
        if similarity >= settings.duplicate:
            slot = self._take(nearest)
            self._append(slot[0], slot[1] + 1, place, slot[3])
            self.merges += 1
        elif novelty >= settings.novelty or self.surprise[place] >= settings.surprise:
            if self.size == settings.long_term:
                self._take(self._least_useful())
                self.evictions += 1
            column = self.block.shape[1] - len(self.block) + self.block_row
            self._append(place, 1, place, column)
            self.writes += 1
        self.candidates += 1
        self.block_row += 1
        return novelty

    def _nearest(self) -> tuple[float, int]:
        """Similarity of the next interaction to the slot most like it, and that slot.

        The first interaction finds no slot: -1, the least that a cosine can be.
        """
        if self.block_row == len(self.block):
            self._compare_block()
        if not self.size:
            return -1.0, 0
        similarity = self.block[self.block_row, self.column[: self.size]]
        nearest = int(similarity.argmax())
        return float(similarity[nearest]), nearest

    def _compare_block(self) -> None:
        """Compare the next interactions with the slots and with each other.

        No other similarity can be asked for before the block ends, so that work and memory grow
        with L and not with its square.
        """
        coming = np.arange(self.candidates, min(self.candidates + BLOCK, len(self.items)))
        others = np.concatenate([self.place[: self.size], coming])
        self.column[: self.size] = np.arange(self.size)
        self.block = similarities(self.items, self.content, coming, others)
        self.block_row = 0

    def _least_useful(self) -> int:
        """The slot with the lowest utility: log(1 + frequency) + exp(-age / recency)."""
        age = self.candidates - self.refreshed
        return int((np.log1p(self.frequency) + np.exp(-age / self.settings.recency)).argmin())

    def _take(self, slot: int) -> list[int]:
        """Take a slot out; the newer ones move up."""
        taken: list[int] = self.slots[:, slot].tolist()
        self.slots[:, slot : self.size - 1] = self.slots[:, slot + 1 : self.size]
        self.size -= 1
        return taken

    def _append(self, *slot: int) -> None:
        """Add a slot as the newest: place, frequency, refreshed, column."""
        self.slots[:, self.size] = slot
        self.size += 1


def similarities(items: Items, content: Floats, rows: Ints, columns: Ints) -> Floats:
    """Cosines between two lists of places; an item and itself have 1, features or not.

    ``content`` [L, F] holds whole numbers, features times GRID, so every partial sum is a whole
    number below 2^24 and exact in float32: the result is the same to the bit on any machine, in
    any order and block. Otherwise a threshold could fall either way. A cosine is off by about
    2e-4. [rows, columns].
    """
    cosines: Floats = content[rows] @ content[columns].T / np.float32(GRID**2)
    cosines[items[rows][:, None] == items[columns]] = 1
    return cosines


def novelties(
    features: Floats, histories: Iterable[Items], settings: MemorySettings
) -> npt.NDArray[np.float64]:
    """The novelty that a memory which writes everything meets, sorted.

    ``features`` [I + 1, F] of the whole catalogue, ``histories`` of item indices;
    ``settings.novelty`` is not used. Near-duplicates, first interactions and items without features
    do not count: novelty decides nothing about them. Nor does it where there are no slots.
    """
    everything = replace(settings, novelty=-np.inf)
    known = np.abs(features).max(axis=1) > 0
    found = [np.zeros(0)]
    for items in histories if settings.long_term else ():
        calm = np.zeros(len(items), dtype=np.float32)
        memory = LongTermMemory(items, features[items], calm, everything)
        met = np.array([memory.decide() for _ in items])
        found.append(met[1:][known[items[1:]]])
    met = np.concatenate(found)
    return np.sort(met[met > 1 - settings.duplicate])


def novelty_counts(features: Floats, histories: Iterable[Items], settings: MemorySettings) -> Ints:
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
