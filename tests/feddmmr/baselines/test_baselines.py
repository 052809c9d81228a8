"""Baselines against counting by hand, and against the published figures on MovieLens-1M."""

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.data.content import open_content
from client_app.data.dataset import Dataset, cold_rows, split_view
from feddmmr import cli
from feddmmr.baselines.baselines import (
    RECENT,
    evaluate_baselines,
    item_knn,
    markov,
    popularity,
    text_knn,
    train_pairs,
)

COLD = {4, 9}


@pytest.fixture
def dataset(make_dataset: Any, small_histories: Any) -> Dataset:
    return make_dataset(small_histories, num_items=30, cold=COLD)


def train_histories(dataset: Dataset) -> list[list[int]]:
    return [split_view(dataset, row, "train")[0].tolist() for row in range(dataset.num_users)]


def padded(recent: list[int]) -> np.ndarray:
    return np.array([[0] * (RECENT - len(recent)) + recent])


def test_popularity_counts_train_items(dataset: Dataset) -> None:
    counts = Counter(item for history in train_histories(dataset) for item in history)
    scores = popularity(train_pairs(dataset)[1], 30)(padded([3]))[0]
    assert scores.tolist() == [counts[item] for item in range(31)]


def test_markov_counts_steps_and_then_popularity(dataset: Dataset) -> None:
    histories = train_histories(dataset)
    steps = Counter(pair for history in histories for pair in pairwise(history))
    counts = Counter(item for history in histories for item in history)
    score = markov(*train_pairs(dataset), 30)
    order = max(counts.values()) + 1
    for last in range(1, 31):
        expected = [steps[last, item] + counts[item] / order for item in range(31)]
        np.testing.assert_allclose(score(padded([1, last]))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("recent", [[3], [3, 8, 5, 1, 20], [7, 2]])
def test_item_knn_is_the_sum_of_cosines(dataset: Dataset, recent: list[int]) -> None:
    users = {
        item: {row for row, history in enumerate(train_histories(dataset)) if item in history}
        for item in range(31)
    }

    def cosine(a: int, b: int) -> float:
        if a == b or not users[a] or not users[b]:
            return 0.0
        return len(users[a] & users[b]) / (len(users[a]) * len(users[b])) ** 0.5

    expected = [sum(cosine(item, near) for near in recent) for item in range(31)]
    scores = item_knn(*train_pairs(dataset), 30)(padded(recent))[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("recent", [[3], [3, 8, 5, 1, 20], [7, 2, 7]])
def test_text_knn_is_the_sum_of_cosines_of_texts(recent: list[int]) -> None:
    """Without an item's cosine with itself; an item without a text has none."""
    text = np.random.default_rng(2).standard_normal((31, 6)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1)[:, None]
    text[[0, 5, 11]] = 0
    expected = [sum(float(text[i] @ text[r]) for r in recent if r != i) for i in range(31)]
    scores = text_knn(text)(padded(recent))[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert scores[[5, 11]].tolist() == [0, 0]


def test_text_knn_ranks_cold_items_and_the_others_put_them_last(
    make_dataset: Any, small_histories: Any
) -> None:
    """By brute force: what follows the last five items, among everything or cold items alone."""
    text = np.random.default_rng(4).standard_normal((30, 7))
    text /= np.linalg.norm(text, axis=1)[:, None]
    cold = {4, 9, 12, 21, 28}
    long = {user: items for user, items in small_histories.items() if len(items) > 14}
    dataset = make_dataset(long, num_items=30, cold=cold, features={"text": text})
    unit = open_content(dataset, "text").text.numpy()
    found = evaluate_baselines(dataset)
    rows = cold_rows(dataset, np.arange(dataset.num_users))
    assert len(rows) > 3
    reciprocal = {"cold": 0.0, "cold-only": 0.0}
    for row in rows.tolist():
        inputs, target = split_view(dataset, row, "cold")
        near = inputs[-RECENT:].tolist()
        scores = [sum(float(unit[i] @ unit[n]) for n in near if n != i) for i in range(31)]
        for group, among in (("cold", range(1, 31)), ("cold-only", sorted(cold))):
            ahead = [i for i in among if i != target and not scores[i] < scores[target]]
            reciprocal[group] += 1 / (1 + len(ahead))
    for group, total in reciprocal.items():
        assert found["text-knn"][group]["full"]["mrr"] == pytest.approx(total / len(rows))
        last = 1 / (len(cold) if group == "cold-only" else 30)
        for name in ("item-knn", "markov", "popularity"):
            assert found[name][group]["full"]["mrr"] == pytest.approx(last)


def test_ranks_of_popularity_by_brute_force(dataset: Dataset) -> None:
    """Full ranking: warm items other than the target that are at least as popular."""
    counts = Counter(item for history in train_histories(dataset) for item in history)
    hits = {"full": 0, "full-unseen": 0}
    for row in range(dataset.num_users):
        history, target = split_view(dataset, row, "test")
        ahead = [
            item
            for item in range(1, 31)
            if item not in COLD and item != target and counts[item] >= counts[target]
        ]
        hits["full"] += len(ahead) < 10
        hits["full-unseen"] += len([item for item in ahead if item not in history]) < 10
    found = evaluate_baselines(dataset)["popularity"]["all"]
    for protocol, count in hits.items():
        assert found[protocol]["hr@10"] == pytest.approx(count / dataset.num_users)
        assert found[protocol]["users"] == dataset.num_users


def test_the_demo_rewards_sequence_over_popularity(
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a folder the demo is meant, the one of the runs."""
    file = tmp_path / "baselines.json"
    (tmp_path / ".feddmmr").symlink_to(demo_folder.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["feddmmr", "baselines", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert "item-knn" in capsys.readouterr().out
    figures = json.loads(file.read_text())["baselines"]
    found = {name: figures[name]["all"]["uniform-100"]["hr@10"] for name in figures}
    assert found["popularity"] < 0.25
    assert 0.35 < found["markov"] < 0.5
    assert 0.3 < found["item-knn"] < 0.45
    cold = {name: figures[name]["cold-only"]["full"]["hr@10"] for name in figures}
    assert 0.0 < cold["text-knn"] < 0.3  # the demo's texts tell an order, not what is alike
    assert cold["popularity"] == cold["markov"] == cold["item-knn"] == 0.0
    assert set(figures["markov"]["all"]) == {"uniform-100", "full", "full-unseen"}


@pytest.mark.slow
def test_movielens_1m_has_the_known_figures(ml1m_dataset: Dataset) -> None:
    """HR@10 and NDCG@10 of the anchors; uniform-100 depends on the sample, by about 0.006."""
    figures = evaluate_baselines(ml1m_dataset)
    known = {
        "popularity": ((0.441, 0.239), (0.037, 0.018)),
        "item-knn": ((0.653, 0.432), (0.164, 0.089)),
        "markov": ((0.642, 0.458), (0.214, 0.126)),
    }
    for name, (uniform, unseen) in known.items():
        of_all = figures[name]["all"]
        sampled, full = of_all["uniform-100"], of_all["full-unseen"]
        assert (sampled["hr@10"], sampled["ndcg@10"]) == pytest.approx(uniform, abs=0.01)
        assert (full["hr@10"], full["ndcg@10"]) == pytest.approx(unseen, abs=0.002)
