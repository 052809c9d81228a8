"""The long-term memories of many users, simulated in lockstep.

At step t every user decides about its interaction t, so that one array operation serves all. What
happened is kept as lives: an interaction that refreshed a slot lives until the slot is refreshed
again or evicted. As an interaction refreshes one slot at most, the lives that include a moment are
the memory of that moment, in the order of their last refresh.

Letters: B users in lockstep, N interactions, M slots, T interactions of a block, W users that write
or merge, P moments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_model.memory.cosines import Cosines, FeatureTable, Ints, Items

Flags = npt.NDArray[np.bool_]

BLOCK = 128  # interactions compared at once: a matrix product costs less than as many vectors
USERS = 64  # in lockstep at most
INTERACTIONS = 2**15  # theirs at most, so that the features at hand take little memory
TABLE = 40_000_000  # cosines that a table holds at most: 160 MB
FOREVER = np.iinfo(np.int32).max


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
class Lives:
    """What one user's long-term memory did with N interactions in turn."""

    items: Items  # [N] what the slot holds that an interaction was written to or merged into
    until: npt.NDArray[
        np.integer[Any]
    ]  # [N] after how many interactions it is last held so; 0: it never is
    novelty: npt.NDArray[np.float64]  # [N] 1 - cosine to the nearest slot, 2 if there is none
    written: Flags  # [N]
    merged: Flags  # [N]; what was neither written nor merged is forgotten

    def held(self, moments: Ints, slots: int) -> Ints:
        """What is held after so many interactions: items, last refreshed first. [P, slots]."""
        held = np.zeros((len(moments), slots), dtype=np.int64)
        newest_first = np.arange(len(self.items))[::-1]
        for start in range(0, len(moments), BLOCK):
            after = moments[start : start + BLOCK, None]
            alive = (newest_first < after) & (after <= self.until[newest_first])  # [BLOCK, N]
            filled = np.arange(slots) < np.count_nonzero(alive, axis=1)[:, None]  # [BLOCK, slots]
            held[start : start + BLOCK][filled] = self.items[newest_first[np.nonzero(alive)[1]]]
        return held

    def compact(self) -> "Lives":
        """The same without novelty, in arrays of its own: 10 bytes an interaction."""
        return Lives(
            self.items.copy(),
            self.until.astype(np.int32),
            self.novelty[:0].copy(),
            self.written.copy(),
            self.merged.copy(),
        )


def simulate(
    histories: Sequence[Items],
    features: FeatureTable,
    surprising: Sequence[Flags],
    settings: MemorySettings,
) -> list[Lives]:
    """Lives of each user's whole history [N]; there must be slots.

    ``features`` [I + 1, F] of the catalogue, ``surprising`` [N] tells what is written even if it is
    not novel. The more users the faster: those who share items share their cosines.
    """
    lengths = np.array([len(items) for items in histories], dtype=np.int64)
    items = _distinct(histories)
    pairs = int((lengths * np.minimum(lengths, 2 * settings.long_term)).sum())
    worthwhile = len(items) ** 2 <= min(pairs, TABLE)
    shared = Cosines(features, items, table=True) if worthwhile else None
    lives: dict[int, Lives] = {}
    for users in _groups(lengths):
        own = [histories[user] for user in users]
        lockstep = Lockstep(
            own,
            shared or Cosines(features, _distinct(own), table=False),
            [surprising[user] for user in users],
            settings,
        )
        lives.update(zip(users, lockstep.run(), strict=True))
    return [lives[user] for user in range(len(histories))]


def _distinct(histories: Sequence[Items]) -> Items:
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *histories]))


def _groups(lengths: Ints) -> Iterator[list[int]]:
    """Users of similar lengths, longest first."""
    group: list[int] = []
    for user in np.argsort(-lengths, kind="stable").tolist():
        longest = lengths[(*group, user)[0]]
        if len(group) == USERS or (group and (len(group) + 1) * longest > INTERACTIONS):
            yield group
            group = []
        group.append(user)
    if group:
        yield group


class Lockstep:
    """The long-term memories of B users, longest history first, who decide at the same time.

    Slots stand in no order; those not yet filled are alike to nothing.
    """

    def __init__(
        self,
        histories: Sequence[Items],
        cosines: Cosines,
        surprising: Sequence[Flags],
        settings: MemorySettings,
    ) -> None:
        self.settings, self.cosines = settings, cosines
        self.lengths = np.array([len(items) for items in histories])
        users, longest = len(histories), int(self.lengths.max(initial=0))
        self.places = np.zeros((users, longest), dtype=np.int64)  # [B, N] as cosines has them
        self.surprising = np.zeros((users, longest), dtype=bool)  # [B, N]
        for user, (items, flags) in enumerate(zip(histories, surprising, strict=True)):
            self.places[user, : len(items)] = cosines.places(items)
            self.surprising[user, : len(items)] = flags
        # as in Lives, but the items by place
        self.kept, self.until = np.zeros((2, users, longest), dtype=np.int64)  # [B, N]
        self.novelty = np.zeros((users, longest))  # [B, N]
        self.written, self.merged = np.zeros((2, users, longest), dtype=bool)  # [B, N]
        self.size = np.zeros(users, dtype=np.int64)  # [B]
        self.slots, block = min(settings.long_term, longest), min(BLOCK, longest)
        self.refreshed, self.frequency = np.zeros((2, users, self.slots), dtype=np.int64)  # [B, M]
        # of the coming interactions with the slots [B, T, M], and with each other [B, T, T]
        self.similar = np.full((users, block, self.slots), -np.inf, dtype=np.float32)
        self.mutual = np.zeros((users, block, block), dtype=np.float32)
        # the terms of the utility, by frequency and by age
        self.frequent = np.log1p(np.arange(longest + 2))
        self.recent = np.exp(-np.arange(longest) / settings.recency)

    def run(self) -> list[Lives]:
        """Decide about all interactions."""
        for now in range(self.places.shape[1]):
            if now % BLOCK == 0:
                self._compare(now)
            self._decide(now)
        return [self._lives(user) for user in range(len(self.lengths))]

    def _compare(self, start: int) -> None:
        """Compare the next interactions with the slots and with each other.

        No other cosine can be asked for before the block ends, so that work and memory grow with
        N and not with its square.
        """
        for user in np.flatnonzero(self.lengths > start):
            coming = self.places[user, start : min(start + BLOCK, self.lengths[user])]
            size = self.size[user]
            slots = self.kept[user, self.refreshed[user, :size]]
            self.similar[user, : len(coming), :size] = self.cosines.between(coming, slots)
            mutual = self.cosines.between(coming, coming)
            self.mutual[user, : len(coming), : len(coming)] = mutual

    def _decide(self, now: int) -> None:
        """Merge, write or forget one interaction of each user that has one more.

        A near-duplicate is merged however surprising it is: the memory already holds it.
        """
        going = int(np.count_nonzero(self.lengths > now))
        nearest = self.similar[:going, now % BLOCK].max(axis=1).astype(np.float64)
        nearest[self.size[:going] == 0] = -1  # the least that a cosine can be
        novelty = 1 - nearest
        self.novelty[:going, now] = novelty
        merged = nearest >= self.settings.duplicate
        wanted = (novelty >= self.settings.novelty) | self.surprising[:going, now]
        if merged.any():
            self._merge(np.flatnonzero(merged), now)
        self._write(np.flatnonzero(wanted & ~merged), now)

    def _merge(self, users: Ints, now: int) -> None:
        """Merge the interaction into the nearest slot [W], which keeps its item."""
        similar = self.similar[users, now % BLOCK]  # [W, M]
        slots = self._oldest(users, similar == similar.max(axis=1, keepdims=True))
        self.kept[users, now] = self.kept[users, self.refreshed[users, slots]]
        self.until[users, self.refreshed[users, slots]] = now
        self.frequency[users, slots] += 1
        self.merged[users, now] = True
        self._refresh(users, slots, now)

    def _write(self, users: Ints, now: int) -> None:
        """Write the interaction to an empty slot [W], or else to the least useful one."""
        slots = self.size[users]
        full = slots == self.slots
        self.size[users] += ~full
        if full.any():
            slots[full] = self._evict(users[full], now)
        self.kept[users, now] = self.places[users, now]
        self.frequency[users, slots] = 1
        self.written[users, now] = True
        self._refresh(users, slots, now)
        coming = slice(now % BLOCK + 1, None)
        self.similar[users, coming, slots] = self.mutual[users, now % BLOCK, coming]

    def _refresh(self, users: Ints, slots: Ints, now: int) -> None:
        self.refreshed[users, slots] = now
        self.until[users, now] = FOREVER

    def _evict(self, users: Ints, now: int) -> Ints:
        """End the slot [W] with the lowest utility: log(1 + frequency) + exp(-age / recency).

        The oldest of equals, and there are some: recency vanishes beside the log of the frequency
        once slots are old enough.
        """
        age = now - self.refreshed[users]  # [W, M]
        utility = self.frequent[self.frequency[users]] + self.recent[age]
        slots = self._oldest(users, utility == utility.min(axis=1, keepdims=True))
        self.until[users, self.refreshed[users, slots]] = now
        return slots

    def _oldest(self, users: Ints, among: Flags) -> Ints:
        """The slot of each user that was refreshed first, among some [W, M]. [W]."""
        oldest: Ints = np.where(among, self.refreshed[users], FOREVER).argmin(axis=1)
        return oldest

    def _lives(self, user: int) -> Lives:
        """What one user's memory did, without the padding."""
        length = self.lengths[user]
        return Lives(
            self.cosines.items[self.kept[user, :length]],
            self.until[user, :length],
            self.novelty[user, :length],
            self.written[user, :length],
            self.merged[user, :length],
        )
