"""Metrics against a brute-force rank, and their sums against means over all users."""

import math

import numpy as np
import pytest

from shared_model.protocol.metrics import CUTOFFS, MetricSums, Ranks, faulty_sums, merge, rank_sums


def test_sums_equal_the_definitions() -> None:
    ranks = [0, 3, 4, 5, 9, 10, 19, 20, 300]
    sums = rank_sums(Ranks(np.array(ranks), np.arange(400, 409)))
    for k in CUTOFFS:
        assert sums[f"hr@{k}"] == sum(rank < k for rank in ranks)
        gains = sum(1 / math.log2(rank + 2) for rank in ranks if rank < k)
        assert sums[f"ndcg@{k}"] == pytest.approx(gains)
    assert sums["mrr"] == pytest.approx(sum(1 / (rank + 1) for rank in ranks))
    assert sums["users"] == len(ranks)
    assert sums["candidates"] == sum(range(400, 409))


def test_merging_nodes_equals_one_node() -> None:
    ranks = np.random.default_rng(0).integers(0, 40, 90)
    whole = MetricSums()
    whole.add("all", "full", Ranks(ranks, ranks + 40))
    parts = []
    for share in np.array_split(ranks, 7):
        part = MetricSums()
        part.add("all", "full", Ranks(share, share + 40))
        parts.append(part.sums)
    merged = merge(parts).report()["all"]["full"]
    assert merged == pytest.approx(whole.report()["all"]["full"])
    assert merged["hr@10"] == pytest.approx(np.mean(ranks < 10))


def test_nobody_leaves_no_trace() -> None:
    sums = MetricSums()
    sums.add("cold", "full", Ranks(np.array([], dtype=np.int64), np.array([], dtype=np.int64)))
    assert sums.report() == {}


def test_who_has_nothing_to_rank_among_is_no_hit() -> None:
    sums = MetricSums()
    sums.add("all", "uniform-100", Ranks(np.array([0, 12, 0]), np.array([0, 30, 0])))
    cell = sums.report()["all"]["uniform-100"]
    assert (cell["users"], cell["candidates"], cell["hr@10"]) == (1.0, 30.0, 0.0)
    sums = MetricSums()
    sums.add("all", "uniform-100", Ranks(np.array([0, 0]), np.array([0, 0])))
    assert sums.report() == {}


def test_sums_that_no_users_have_are_named() -> None:
    sums = MetricSums()
    for protocol in ("uniform-100", "full"):
        sums.add("all", protocol, Ranks(np.array([3, 4]), np.array([100, 90])))
    assert faulty_sums(sums.sums) == []
    for value in (1.0, 201.0, 190.5, float("nan")):  # below one each, above 100 each, no number
        key = "all/uniform-100/candidates"
        assert faulty_sums(sums.sums | {key: value}) == [f"{key}={value}"]
