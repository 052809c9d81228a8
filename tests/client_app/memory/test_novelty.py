"""The novelty that nodes count: the same sum in every topology, and what `analyze` reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_app.data.content import open_content
from client_app.data.dataset import Dataset, open_dataset, partition_rows, split_view
from client_app.memory import novelty as module
from client_app.memory.novelty import count_novelty, sample_share, sampled_rows
from feddmmr.features.analysis import analyze, modalities
from feddmmr.features.files import read_features
from shared_model.memory.memory import NOVELTY_BINS, MemorySettings, novelties, threshold_of

SETTINGS = MemorySettings(novelty=0.3, surprise=2.0)  # neither has a say in what is counted


def everyone(dataset: Dataset) -> np.ndarray:
    return np.arange(dataset.num_users)


@pytest.mark.parametrize("sampled", [2000, 60])  # of 400 users
def test_every_topology_finds_the_threshold_that_analyze_reports(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch, sampled: int
) -> None:
    monkeypatch.setattr(module, "SAMPLED_USERS", sampled)
    dataset = open_dataset(demo_folder)
    report, _ = analyze(demo_folder, users=0)
    share = sample_share(dataset.num_users)
    for asked, kind in (("both", "combined"), ("visual", "visual"), ("text", "text")):
        content, counts = open_content(dataset, asked).combined, []
        for nodes in (1, 3, 7):
            parts = [partition_rows(dataset, node, nodes) for node in range(nodes)]
            counts.append(
                sum(count_novelty(dataset, content, rows, share, SETTINGS) for rows in parts)
            )
        assert (counts[0] == counts[1]).all()
        assert (counts[0] == counts[2]).all()
        found = report["modalities"][kind]["preferences"]["novelty"]
        assert 0 < found["threshold"] == threshold_of(counts[2])
        assert found["measured"] == counts[2].sum() > 1000
    told = len(sampled_rows(dataset, everyone(dataset), share))
    assert report["histories"]["novelty_users"] == told
    assert told == 400 if sampled == 2000 else 40 < told < 80


def test_analyze_sees_the_features_that_a_node_uses(demo_folder: Path) -> None:
    content = open_content(open_dataset(demo_folder), "both")
    arrays = modalities(read_features(demo_folder))
    assert (arrays["combined"] == content.combined[1:]).all()
    assert (arrays["visual"] == content.visual.numpy()[1:]).all()
    assert (arrays["text"] == content.text.numpy()[1:]).all()


def test_the_train_histories_of_the_sampled_users_are_counted(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    combined = open_content(dataset, "both").combined
    rows = np.arange(5, 90)
    chosen = sampled_rows(dataset, rows, 0.3)
    train = [split_view(dataset, row, "train")[0] for row in chosen]
    met = novelties(combined, train, SETTINGS)
    bars, _ = np.histogram(met, bins=NOVELTY_BINS, range=(0, 2))
    counts = count_novelty(dataset, combined, rows, 0.3, SETTINGS)
    assert bars.sum() > 500
    assert (counts == bars).all()
    reversed_ = count_novelty(dataset, combined, rows[::-1], 0.3, SETTINGS)
    assert (reversed_ == counts).all()
    assert not count_novelty(dataset, combined, rows[:0], 0.3, SETTINGS).any()


def test_sites_with_their_own_folders_add_up(
    make_dataset: Any, small_histories: dict[int | str, list[int]]
) -> None:
    random = np.random.default_rng(0).standard_normal((30, 4))
    features = {"text": (random / np.linalg.norm(random, axis=1, keepdims=True)).astype("f2")}
    users = list(small_histories)
    counts = []
    for sites in ([users], [users[:4], users[4:]], [users[::2], users[1::2]]):
        total = np.zeros(NOVELTY_BINS, dtype=np.int64)
        for site in sites:
            own = {user: small_histories[user] for user in site}
            dataset = make_dataset(own, num_items=30, features=features)
            combined = open_content(dataset, "both").combined
            total += count_novelty(dataset, combined, everyone(dataset), 0.5, SETTINGS)
        counts.append(total)
    assert counts[0].sum() > 20
    assert (counts[0] == counts[1]).all()
    assert (counts[0] == counts[2]).all()


def test_the_sample_is_a_share_of_the_users_and_grows_with_it(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    rows = everyone(dataset)
    assert (sampled_rows(dataset, rows, 1.0) == rows).all()
    half, tenth = (set(sampled_rows(dataset, rows, share).tolist()) for share in (0.5, 0.1))
    assert tenth < half
    assert 160 < len(half) < 240
    assert set(sampled_rows(dataset, rows[50:120], 0.5).tolist()) == half & set(range(50, 120))


def test_about_two_thousand_users_tell_the_novelty() -> None:
    assert [sample_share(n) for n in (1, 1999, 2000)] == [1, 1, 1]
    assert sample_share(8000) == 0.25
