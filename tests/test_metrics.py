"""Metrics against a brute-force rank, and their sums against means over all users."""

import math

import numpy as np
import pytest

from shared_model.metrics import CUTOFFS, MetricSums, merge, rank_sums


def test_sums_equal_the_definitions() -> None:
    ranks = [0, 3, 4, 5, 9, 10, 19, 20, 300]
    sums = rank_sums(np.array(ranks))
    for k in CUTOFFS:
        assert sums[f"hr@{k}"] == sum(rank < k for rank in ranks)
        gains = sum(1 / math.log2(rank + 2) for rank in ranks if rank < k)
        assert sums[f"ndcg@{k}"] == pytest.approx(gains)
    assert sums["mrr"] == pytest.approx(sum(1 / (rank + 1) for rank in ranks))
    assert sums["users"] == len(ranks)


def test_merging_nodes_equals_one_node() -> None:
    ranks = np.random.default_rng(0).integers(0, 40, 90)
    whole = MetricSums()
    whole.add("all", "full", ranks)
    parts = []
    for share in np.array_split(ranks, 7):
        part = MetricSums()
        part.add("all", "full", share)
        parts.append(part.sums)
    merged = merge(parts).report()["all"]["full"]
    assert merged == pytest.approx(whole.report()["all"]["full"])
    assert merged["hr@10"] == pytest.approx(np.mean(ranks < 10))


def test_nobody_leaves_no_trace() -> None:
    sums = MetricSums()
    sums.add("cold", "full", np.array([], dtype=np.int64))
    assert sums.report() == {}
