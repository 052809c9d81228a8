"""The sampled next-item loss against the full softmax that it stands for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app.data.dataset import Dataset
from client_app.training.sampled_softmax import _some_of, draw_sample, next_item_loss
from shared_model.model.sasrec import PAD
from shared_model.seeds import STRIDE, mix
from tests.conftest import MakeDataset

USERS, TARGETS, NEGATIVES = 6, 32, 256  # the last two as by default


def world(make: MakeDataset, num_items: int, longest: int) -> Dataset:
    """Users with 4 to ``longest`` warm items; every tenth item is cold."""
    random, cold = np.random.default_rng(num_items), set(range(10, num_items + 1, 10))
    warm = [item for item in range(1, num_items + 1) if item not in cold]
    lengths = np.linspace(4, min(longest, len(warm)), USERS).astype(int)
    histories = {u: random.permutation(warm)[:n].tolist() for u, n in enumerate(lengths)}
    return make(histories, num_items=num_items, cold=cold)


def targets_of(dataset: Dataset, seed: int) -> np.ndarray:
    """Some of each user's train items but the first, which nothing precedes: [B, P], PAD padded."""
    random, drawn = np.random.default_rng(seed), np.zeros((USERS, TARGETS), np.int64)
    for user in range(USERS):
        some = random.permutation(train_items(dataset, user)[1:])[:TARGETS]
        drawn[user, : len(some)] = some
    return drawn


def train_items(dataset: Dataset, user: int) -> list[int]:
    return dataset.items[dataset.indptr[user] : dataset.indptr[user + 1] - 2].tolist()


def full_softmax(
    dataset: Dataset, scores: Tensor, user: int, target: int, as_cold: np.ndarray
) -> float:
    """By its definition, over the warm items without those of the user that are scored as cold."""
    trained = set(train_items(dataset, user))
    among = [
        item
        for item in range(1, dataset.num_items + 1)
        if not dataset.cold[item] and (item == target or not (item in trained and as_cold[item]))
    ]
    return float(scores[among].logsumexp(0) - scores[target])


def sampled_losses(
    dataset: Dataset, scores: Tensor, targets: np.ndarray, as_cold: np.ndarray, seed: int
) -> Tensor:
    """[B, P], of one sample; ``scores`` [I+1] are the same at every position."""
    rows = np.arange(USERS)
    sample = draw_sample(dataset, rows, targets, as_cold, (2 * seed, 2 * seed + 1), NEGATIVES)
    items = torch.from_numpy(np.concatenate([targets, sample.items], 1))
    known = torch.from_numpy((targets != PAD) & ~as_cold[targets])
    at_each = scores[items][:, None].expand(-1, targets.shape[1], -1)
    log_weights = torch.from_numpy(sample.log_weights)
    return next_item_loss(at_each, items[:, : targets.shape[1]], known, log_weights)


@pytest.mark.parametrize("num_items", [9, 50, 150, 500])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_in_a_small_catalogue_the_loss_is_the_full_softmax(
    make_dataset: MakeDataset, num_items: int, share: float
) -> None:
    """Whatever the scores: these have as heavy a tail as those of a trained model."""
    dataset = world(make_dataset, num_items, longest=36)
    generator = torch.Generator().manual_seed(num_items)
    scores = 3 * torch.randn(num_items + 1, generator=generator).double()
    as_cold = dataset.cold | (np.random.default_rng(1).random(num_items + 1) < share)
    targets = targets_of(dataset, 0)
    losses, compared = sampled_losses(dataset, scores, targets, as_cold, 3), 0
    for user in range(USERS):
        for place, target in enumerate(targets[user]):
            if target != PAD:
                expected = full_softmax(dataset, scores, user, target, as_cold)
                assert float(losses[user, place]) == pytest.approx(expected, abs=1e-5)
                compared += 1
    assert compared > 6


def test_a_sample_of_a_large_catalogue_estimates_its_sum_without_bias(
    make_dataset: MakeDataset,
) -> None:
    """The sum of exp(score): of what the user was trained on, and of what it was not."""
    dataset = world(make_dataset, 2_000, longest=300)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2_001, generator=generator).double()
    as_cold = dataset.cold | (np.random.default_rng(2).random(2_001) < 0.15)
    draws, ratios, excess = 300, [], []
    for seed in range(draws):
        targets = targets_of(dataset, seed)[:, :1]  # nothing else of the user's is there anyway
        losses = sampled_losses(dataset, scores, targets, as_cold, seed)[:, 0]
        exact = torch.tensor(
            [full_softmax(dataset, scores, u, targets[u, 0], as_cold) for u in range(USERS)]
        )
        ratios.append((losses - exact).exp().numpy())
        excess.append((losses - exact).numpy())
    means, errors = np.mean(ratios, 0), np.std(ratios, 0) / draws**0.5
    assert (errors < 0.01).all()
    assert (np.abs(means - 1) < 4.5 * errors).all()
    assert np.abs(np.mean(excess)) < 0.01


def test_a_sample_belongs_to_its_user_alone(make_dataset: MakeDataset) -> None:
    dataset = world(make_dataset, 2_000, longest=300)
    targets = targets_of(dataset, 0)
    together = draw_sample(dataset, np.arange(USERS), targets, dataset.cold, (1, 2), NEGATIVES)
    for user in range(USERS):
        rows, own = np.array([user]), targets[[user]]
        alone = draw_sample(dataset, rows, own, dataset.cold, (1, 2), NEGATIVES)
        kept, found = alone.items[0] != PAD, together.items[user] != PAD
        assert (alone.items[0][kept] == together.items[user][found]).all()
        assert (alone.log_weights[0][kept] == together.log_weights[user][found]).all()
        assert np.isneginf(together.log_weights[user][~found]).all()


def test_a_users_own_sample_is_of_the_lowest_hashes() -> None:
    generator = np.random.default_rng(3)
    among = generator.random((40, 300)) < generator.random((40, 1))
    among[7] = False
    keys = generator.integers(0, 2**63, 40).astype(np.uint64)
    found = _some_of(among, keys, seed=11)
    for user, key in enumerate(keys):
        items = np.flatnonzero(among[user])
        hashes = mix(11, key ^ (items.astype(np.uint64) * STRIDE))
        lowest = items[np.argsort(hashes)][:16]
        assert (found[user][: len(lowest)] == lowest).all()
        assert (found[user][len(lowest) :] == PAD).all()
