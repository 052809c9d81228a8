"""The two-tier memory against a reference in plain Python, and its rules one by one by hand.

Over 300 lines on purpose: a naive reference of the whole memory, and the cases that it is for.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from shared_model.memory import long_term as module
from shared_model.memory.cosines import GRID, Cosines
from shared_model.memory.long_term import Lockstep
from shared_model.memory.memory import (
    NOVELTY_BINS,
    Memory,
    MemorySettings,
    novelties,
    novelty_counts,
    remember,
    threshold_of,
)

# 1 and 2 are like each other (0.96) and unlike the rest, 6 is half like 3 (0.6), 7 and 8 unknown
CATALOGUE = np.zeros((9, 8), dtype=np.float32)
CATALOGUE[1, 0] = CATALOGUE[3, 2] = CATALOGUE[4, 3] = CATALOGUE[5, 4] = 1
CATALOGUE[2, :2] = 0.96, 0.28
CATALOGUE[6, 2:7] = 0.6, 0, 0, 0, 0.8

SETTINGS = MemorySettings(
    short_term=0, long_term=3, novelty=0.5, surprise=9.0, duplicate=0.9, recency=10.0
)


def one(
    items: np.ndarray,
    features: np.ndarray,
    surprise: np.ndarray,
    positions: np.ndarray,
    settings: MemorySettings,
) -> Memory:
    return remember([items], features, [surprise], [positions], settings)[0]


def after(
    history: list[int],
    settings: MemorySettings = SETTINGS,
    surprising: tuple[int, ...] = (),
    positions: list[int] | None = None,
) -> Memory:
    """The memory after a history of CATALOGUE; ``surprising`` are places, none by default."""
    items = np.array(history, dtype=np.int32)
    surprise = np.where(np.isin(np.arange(len(items)), surprising), 9, 1).astype(np.float32)
    at = np.array([len(history)] if positions is None else positions, dtype=np.int64)
    return one(items, CATALOGUE, surprise, at, settings)


def held(history: list[int], settings: MemorySettings = SETTINGS, *surprising: int) -> list[int]:
    return after(history, settings, surprising).slots[0].tolist()


def reference(
    items: list[int],
    features: list[list[float]],
    surprise: list[float],
    settings: MemorySettings,
) -> tuple[list[int], tuple[int, int, int, int]]:
    """The memory after a whole history: its slots, and (candidates, writes, merges, evictions)."""
    left = max(0, len(items) - settings.short_term) if settings.long_term else 0
    slots: list[dict[str, int]] = []
    writes = merges = evictions = 0

    def likeness(a: int, b: int) -> float:
        if items[a] == items[b]:
            return 1.0
        return sum(x * y for x, y in zip(features[a], features[b], strict=True))

    def utility(slot: dict[str, int], now: int) -> float:
        return math.log(1 + slot["n"]) + math.exp((slot["time"] - now) / settings.recency)

    for now in range(left):
        best = max((likeness(now, slot["place"]) for slot in slots), default=-1.0)
        if best >= settings.duplicate:
            same = [slot for slot in slots if likeness(now, slot["place"]) == best]
            oldest = min(same, key=lambda slot: slot["time"])
            oldest["n"] += 1
            oldest["time"] = now
            merges += 1
        elif 1 - best >= settings.novelty or surprise[now] >= settings.surprise:
            if len(slots) == settings.long_term:
                worst = min(slots, key=lambda slot: (utility(slot, now), slot["time"]))
                slots = [slot for slot in slots if slot is not worst]
                evictions += 1
            slots.append({"place": now, "n": 1, "time": now})
            writes += 1
    recent = items[::-1][: settings.short_term]
    kept = [items[s["place"]] for s in sorted(slots, key=lambda s: -s["time"])]
    recent += [0] * (settings.short_term - len(recent))
    kept += [0] * (settings.long_term - len(kept))
    return recent + kept, (left, writes, merges, evictions)


def random_histories(
    seed: int, longest: int
) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray], MemorySettings]:
    """Clusters, twins with equal features, unknown items; features on the grid, so exact."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(random.integers(1, 6), 6))
    catalogue = centres[random.integers(0, len(centres), 25)] + 0.5 * random.normal(size=(25, 6))
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    catalogue = (np.rint(catalogue * GRID) / GRID).astype(np.float32)
    catalogue[20:] = catalogue[5:10]
    catalogue[random.integers(0, 25, 3)] = 0
    lengths = [*random.integers(0, longest, 5), 0, longest]
    histories = [random.integers(1, 25, length).astype(np.int32) for length in lengths]
    settings = MemorySettings(
        short_term=int(random.choice([0, 1, 2, 5, 50])),
        long_term=int(random.choice([0, 1, 2, 3, 4, 6, 20])),
        novelty=random.uniform(0, 1.2),
        surprise=random.uniform(0.5, 4),
        duplicate=random.uniform(0.8, 1),
        recency=float(random.choice([0.1, 3, 30])),
    )
    surprise = [random.exponential(1, length).astype(np.float32) for length in lengths]
    return histories, catalogue, surprise, settings


def check(seed: int, longest: int, positions: list[np.ndarray] | None = None) -> np.ndarray:
    """Compare a batch with the reference at some positions, all by default; what happened."""
    histories, catalogue, surprise, settings = random_histories(seed, longest)
    random = np.random.default_rng(seed)
    positions = positions or [random.permutation(len(items) + 1) for items in histories]
    happened = np.zeros(4, dtype=int)
    memories = remember(histories, catalogue, surprise, positions, settings)
    for items, nats, at, memory in zip(histories, surprise, positions, memories, strict=True):
        known = items.tolist(), catalogue[items].astype(float).tolist(), nats.tolist()
        for position, slots in zip(at, memory.slots.tolist(), strict=True):
            expected, counts = reference(*(part[:position] for part in known), settings)
            assert slots == expected, (seed, position)
            if position == at.max():
                found = memory.candidates, memory.writes, memory.merges, memory.evictions
                assert found == counts
        happened += found
    return happened


@pytest.mark.parametrize(
    ("block", "users", "interactions", "table"),
    [(1, 64, 2**15, 0), (5, 3, 2**15, 0), (5, 64, 100, 10**6), (128, 64, 2**15, 10**6)],
)
def test_it_equals_the_reference_at_every_position(
    block, users, interactions, table, monkeypatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "USERS", users)
    monkeypatch.setattr(module, "INTERACTIONS", interactions)
    monkeypatch.setattr(module, "TABLE", table)
    happened = sum(check(seed, 60) for seed in range(30))
    assert happened.min() > 200  # the histories exercise every branch


@pytest.mark.parametrize("table", [0, 10**6])
def test_it_equals_the_reference_on_long_histories(table, monkeypatch) -> None:
    monkeypatch.setattr(module, "TABLE", table)
    happened = sum(check(seed, 400, [np.array([0])] * 7) for seed in range(3))
    for seed in range(100, 140):
        lengths = [len(items) for items in random_histories(seed, 400)[0]]
        happened += check(seed, 400, [np.array([length // 2, length]) for length in lengths])
    assert happened.min() > 1000


def test_company_and_order_change_nothing() -> None:
    histories, catalogue, surprise, settings = random_histories(3, 300)
    settings = replace(settings, short_term=5, long_term=6)
    at = [np.arange(len(items) + 1) for items in histories]
    together = remember(histories, catalogue, surprise, at, settings)
    backwards = remember(histories[::-1], catalogue, surprise[::-1], at[::-1], settings)[::-1]
    for user, memory in enumerate(together):
        alone = one(histories[user], catalogue, surprise[user], at[user], settings)
        assert (alone.slots == memory.slots).all()
        assert (backwards[user].slots == memory.slots).all()
    assert remember([], catalogue, [], [], settings) == []


def wide_history(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, MemorySettings]:
    """The real feature size, off the grid, in clusters; no item comes back."""
    random = np.random.default_rng(length)
    features = random.normal(size=(20, 896))[random.integers(0, 20, length)]
    features += random.normal(size=(length, 896))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    items = random.permutation(length).astype(np.int32) + 1
    catalogue = np.zeros((length + 1, 896), dtype=np.float32)
    catalogue[items] = features
    settings = MemorySettings(short_term=20, long_term=30, novelty=0.5, surprise=3.0, recency=50)
    return items, catalogue, random.exponential(1, length).astype(np.float32), settings


def test_the_future_changes_nothing() -> None:
    items, features, surprise, settings = wide_history(400)
    every = np.arange(401)
    slots = one(items, features, surprise, every, settings).slots
    for cut in (0, 1, 20, 21, 22, 85, 86, 150, 398):
        other = items.copy(), features.copy(), surprise.copy()
        for array in (other[0], other[2]):
            array[cut:] = array[cut:][::-1]
        other[1][items[cut:]] = np.roll(features[items[cut:]], 1, axis=0)
        other[2][cut:] += 5
        changed = one(*other, every, settings).slots
        assert (changed[: cut + 1] == slots[: cut + 1]).all()
        assert (changed[cut + 1 :] != slots[cut + 1 :]).any()
        past = one(items[:cut], features, surprise[:cut], every[: cut + 1], settings)
        assert (past.slots == slots[: cut + 1]).all()


def test_it_repeats_and_leaves_its_inputs_alone() -> None:
    items, features, surprise, settings = wide_history(200)
    before = items.copy(), features.copy(), surprise.copy()
    positions = np.array([200, 3, 150, 3])
    first = one(items, features, surprise, positions, settings)
    again = one(items, features, surprise, positions, settings)
    assert (first.slots == again.slots).all()
    assert (first.slots[1] == first.slots[3]).all()
    for array, copy in zip((items, features, surprise), before, strict=True):
        assert (array == copy).all()


def test_the_short_term_is_first_in_first_out() -> None:
    settings = replace(SETTINGS, short_term=3, long_term=1)
    memory = after([1, 3, 4, 4, 5], settings, positions=[0, 1, 2, 3, 4, 5])
    assert memory.slots.tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [3, 1, 0, 0],
        [4, 3, 1, 0],
        [4, 4, 3, 1],  # an interaction goes to the long-term memory as it leaves the short-term one
        [5, 4, 4, 3],
    ]
    assert (memory.candidates, memory.writes, memory.merges, memory.evictions) == (2, 2, 0, 1)


def test_empty_histories_and_no_positions() -> None:
    assert held([]) == [0, 0, 0]
    assert held([3]) == [3, 0, 0]
    none = after([1, 3, 4], positions=[])
    assert none.slots.shape == (0, 3)
    assert none.candidates == 0
    assert held([1, 3], replace(SETTINGS, long_term=0)) == []
    defaults = MemorySettings(novelty=0.5, surprise=9.0)
    assert held([1, 3], defaults) == [3, 1] + [0] * 248


def test_only_what_is_novel_or_surprising_is_written() -> None:
    assert held([3, 6]) == [3, 0, 0]  # novelty 0.4
    assert held([3, 6], replace(SETTINGS, novelty=0.39)) == [6, 3, 0]
    assert held([3, 6], SETTINGS, 1) == [6, 3, 0]
    assert held([3, 6], SETTINGS, 0) == [3, 0, 0]  # another one's surprise
    assert after([3, 6]).writes == 1


def test_near_duplicates_are_merged_however_surprising() -> None:
    memory = after([1, 3, 2], surprising=(2,))
    assert memory.slots[0].tolist() == [1, 3, 0]  # 2 refreshes the slot of 1, which keeps its item
    assert (memory.writes, memory.merges) == (2, 1)
    assert held([1, 3, 2], replace(SETTINGS, duplicate=0.97), 2) == [2, 3, 1]


def test_a_merge_goes_to_the_nearest_slot_and_to_the_oldest_of_equals() -> None:
    apart = replace(SETTINGS, duplicate=0.97, novelty=0.01)
    assert held([1, 2, 3, 2], apart) == [2, 3, 1]
    features = CATALOGUE.copy()
    features[1] = np.sqrt([0, 0, 0.5, 0.5, 0, 0, 0, 0])  # as like 3 as 4
    loose = replace(SETTINGS, duplicate=0.7)
    items, surprise = np.array([3, 4, 5, 1], np.int32), np.zeros(4, np.float32)
    slots = one(items, features, surprise, np.array([4]), loose).slots
    assert slots[0].tolist() == [3, 5, 4]


def test_the_lowest_utility_is_evicted() -> None:
    two = replace(SETTINGS, long_term=2)
    # when 5 comes: 3 has log 3 + exp(-0.2) = 1.92, 4 has log 2 + exp(-0.1) = 1.60
    assert held([3, 3, 4, 5], two) == [5, 3]
    # 6 is forgotten ten times, then 3 has log 3 + exp(-1.2) = 1.40, 4 has 1.60 as before
    long = [3, 3, *[6] * 10, 4, 5]
    assert held(long, two) == [5, 4]
    # a longer time constant: log 3 + exp(-0.12) = 1.99, log 2 + exp(-0.01) = 1.68
    assert held(long, replace(two, recency=100)) == [5, 3]
    # a merge refreshes: 3 has log 3 + exp(-0.1) = 2.00, 4 has log 2 + exp(-0.2) = 1.51
    assert held([3, 4, 3, 5], two) == [5, 3]
    assert after([3, 4, 3, 5], two).evictions == 1


def test_ties_of_utility_go_by_age() -> None:
    forgetful = replace(SETTINGS, long_term=2, recency=0.01)  # every recency term is lost to 0
    assert held([3, 4, 5], forgetful) == [5, 4]
    assert held([3, 4, 4, 3, 5], forgetful) == [5, 3]  # equal frequency, refreshed later


def test_items_without_features_are_known_by_identity() -> None:
    memory = after([7, 8, 7, 1])
    assert memory.slots[0].tolist() == [1, 7, 8]
    assert (memory.writes, memory.merges) == (3, 1)


@pytest.mark.parametrize("table", [False, True])
def test_cosines_are_exact(table: bool) -> None:
    items, features, _, _ = wide_history(300)
    items = np.sort(items)[::2]
    features[items[3]] = 0
    cosines = Cosines(features, items, table=table)
    rows, columns = np.arange(40, 70), np.random.default_rng(0).permutation(150)
    whole = np.rint(features[items] * GRID).astype(np.int64)
    wanted = (whole @ whole.T) / GRID**2
    np.fill_diagonal(wanted, 1)
    for some in (columns, rows):
        found = cosines.between(rows, some)
        assert found.dtype == np.float32
        assert (found == wanted[rows][:, some]).all()
    near = features[items].astype(float) @ features[items].astype(float).T
    assert abs(near - wanted)[np.arange(150) != 3].max() < 1e-3
    assert (cosines.places(items[[5, 2]]) == [5, 2]).all()


def test_work_and_memory_grow_with_the_length_alone(monkeypatch) -> None:
    sizes: list[int] = []
    between = Cosines.between

    def counted(*arguments: np.ndarray) -> np.ndarray:
        found = between(*arguments)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(Cosines, "between", counted)
    totals = []
    for length in (15, 820, 1620, 3220):
        items, features, surprise, settings = wide_history(length)
        sizes.clear()
        one(items, features[:, :8], surprise, np.arange(length + 1), settings)
        totals.append(sum(sizes))
    assert totals[0] == 0  # a history that fits the short-term memory compares nothing
    assert max(sizes) <= module.BLOCK * (module.BLOCK + 30)
    assert totals[3] - totals[2] <= 2.1 * (totals[2] - totals[1])


def test_a_batch_has_bounded_arrays(monkeypatch) -> None:
    monkeypatch.setattr(module, "USERS", 4)
    monkeypatch.setattr(module, "INTERACTIONS", 100)
    seen: list[Lockstep] = []
    run = Lockstep.run
    monkeypatch.setattr(Lockstep, "run", lambda self: seen.append(self) or run(self))
    items, features, surprise, settings = wide_history(400)
    lengths = [0, 10, 60, 7, 21, 400, 30, 22, 23, 24, 45]
    at = [np.array([length]) for length in lengths]
    remember([items[:n] for n in lengths], features, [surprise] * len(lengths), at, settings)
    assert [group.places.shape for group in seen] == [(1, 380), (2, 40), (4, 10), (4, 1)]
    for table, expected in ((120, False), (121, True)):  # 11 items, more cosines than that
        seen.clear()
        monkeypatch.setattr(module, "TABLE", table)
        remember([items[:31]] * 9, features, [surprise] * 9, [np.array([31])] * 9, settings)
        assert [group.cosines.table is not None for group in seen] == [expected] * 3


def test_no_more_is_decided_than_the_positions_ask_for(monkeypatch) -> None:
    decided: list[int] = []
    decide = Lockstep._decide
    monkeypatch.setattr(
        Lockstep, "_decide", lambda self, now: decided.append(now) or decide(self, now)
    )
    items, features, surprise, settings = wide_history(400)
    memory = one(items, features, surprise, np.array([100, 40, 100, 7]), settings)
    assert decided == list(range(80))
    assert memory.candidates == 80


def test_the_novelty_that_is_counted_is_what_can_be_decided() -> None:
    # 6 after 3 has novelty 0.4, 1 after 3 has 1, 6 after 3 and 1 has 0.4, 2 after 1 is a duplicate
    histories = [np.array(h, dtype=np.int32) for h in ([3, 6], [3, 1, 6, 7, 7], [1, 2], [5], [])]
    for settings in (SETTINGS, replace(SETTINGS, novelty=2.0, surprise=0.0, short_term=9)):
        counts = novelty_counts(CATALOGUE, histories, settings)
        assert counts.shape == (NOVELTY_BINS,)
        assert counts[[409, 1024]].tolist() == [2, 1]  # 0.4 * 1024 = 409.6
        assert counts.sum() == 3
        met = novelties(CATALOGUE, histories, settings)
        assert met == pytest.approx([0.4, 0.4, 1], abs=1e-3)
    thresholds = [threshold_of(counts, q) for q in (0, 0.5, 2 / 3, 0.67, 1)]
    assert thresholds == [409 / 1024] * 3 + [1, 1]
    for nothing in (
        novelty_counts(CATALOGUE, [], SETTINGS),
        novelty_counts(0 * CATALOGUE, histories, SETTINGS),
        novelty_counts(CATALOGUE, histories, replace(SETTINGS, long_term=0)),
    ):
        assert not nothing.any()
        assert threshold_of(nothing) == 0


def test_novelty_counts_add_up_in_any_order() -> None:
    items, catalogue, _, settings = wide_history(600)
    histories = np.split(items, np.arange(40, 600, 40))
    whole = novelty_counts(catalogue, histories, settings)
    assert whole.sum() > 400
    assert (novelty_counts(catalogue, histories[::-1], settings) == whole).all()
    for parts in (2, 5, 15):
        nodes = [novelty_counts(catalogue, histories[n::parts], settings) for n in range(parts)]
        assert (sum(nodes) == whole).all()


def test_novelties_out_of_bounds_are_counted_at_the_edges() -> None:
    catalogue = np.array([[0, 0], [1.01, 0], [1.01, 0], [-1.01, 0]], dtype=np.float32)
    histories = [np.array(h, dtype=np.int32) for h in ([1, 2], [1, 3])]  # novelty -0.02 and 2.02
    counts = novelty_counts(catalogue, histories, replace(SETTINGS, duplicate=1.1))
    assert np.flatnonzero(counts).tolist() == [0, NOVELTY_BINS - 1]


@pytest.mark.parametrize("quantile", [0.0, 0.05, 0.25, 0.5, 0.95, 1.0])
def test_the_threshold_is_the_edge_below_the_quantile(quantile: float) -> None:
    for size in (1, 2, 3, 100, 1001):
        met = np.random.default_rng(size).uniform(0.1, 1.9, size)
        counts, edges = np.histogram(met, bins=NOVELTY_BINS, range=(0, 2))
        inside = np.quantile(met, quantile, method="inverted_cdf")
        threshold = threshold_of(counts, quantile)
        assert threshold in edges
        assert threshold <= inside < threshold + 2 / NOVELTY_BINS


def test_the_median_writes_about_half_whatever_the_spread_of_the_encoder() -> None:
    _, features, _, settings = wide_history(600)
    shared = np.ones(896, dtype=np.float32) / np.float32(math.sqrt(896))
    for common in (0.0, 3.0):  # cosines up to 0.5, cosines of 0.9 and more
        narrow = features + common * shared
        narrow[0] = 0
        narrow[1:] /= np.linalg.norm(narrow[1:], axis=1, keepdims=True)
        history = np.arange(1, 601, dtype=np.int32)
        tuned = replace(settings, surprise=np.inf, duplicate=1.0, long_term=600)
        tuned = replace(tuned, novelty=threshold_of(novelty_counts(narrow, [history], tuned)))
        quiet = np.zeros(600, dtype=np.float32)
        memory = one(history, narrow, quiet, np.array([600]), tuned)
        assert 0.3 < memory.writes / memory.candidates < 0.7
