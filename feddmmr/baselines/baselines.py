"""Baselines on the splits, candidates and ranks that the models are evaluated with.

popularity: how often an item is in the histories that baselines learn from.
markov: how often an item follows the user's last one; popularity among equals.
item-knn: cosine of items as sets of users, summed over the user's last five.
All learn from every user's train items only; the test input has the valid item as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from client_app.data.dataset import Dataset, Split
from client_app.data.split import train_places
from client_app.evaluation.cases import make_cases, protocol_ranks, warm_candidates
from shared_model.protocol.metrics import MetricSums

RECENT = 5  # items of the history that item-knn looks at
BATCH = 256

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Scorer = Callable[[Ints], Scores]  # last RECENT items [B, RECENT], left padded, to [B, I + 1]


def evaluate_baselines(
    dataset: Dataset, split: Split = "test", seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of each baseline: name -> protocol -> metric -> value, over all users."""
    users, items = train_pairs(dataset)
    scorers = {
        "popularity": popularity(items, dataset.num_items),
        "markov": markov(users, items, dataset.num_items),
        "item-knn": item_knn(users, items, dataset.num_items),
    }
    sums = {name: MetricSums() for name in scorers}
    candidates = warm_candidates(dataset)
    for start in range(0, dataset.num_users, BATCH):
        rows = np.arange(start, min(start + BATCH, dataset.num_users))
        cases = make_cases(dataset, rows, split, seed, RECENT)
        for name, score in scorers.items():
            scores = torch.from_numpy(score(cases.inputs.numpy()))
            for protocol, ranks in protocol_ranks(scores, cases, candidates).items():
                sums[name].add("all", protocol, ranks)
    return {name: sums[name].report()["all"] for name in scorers}


def train_pairs(dataset: Dataset) -> tuple[Ints, Ints]:
    """Row and item of every train interaction, by user and then time: int64 [n] each."""
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.indptr))
    train = train_places(dataset.indptr)
    return users[train], dataset.items[train].astype(np.int64)


def popularity(items: Ints, num_items: int) -> Scorer:
    """Scores every item by its number of interactions."""
    counts = _counts(items, num_items)
    return lambda recent: np.tile(counts, (len(recent), 1))


def markov(users: Ints, items: Ints, num_items: int) -> Scorer:
    """Scores an item by how often it follows the last one; less than one count by popularity."""
    follows = users[1:] == users[:-1]
    steps = _sparse(items[:-1][follows], items[1:][follows], num_items + 1, num_items + 1)
    counts = _counts(items, num_items)
    tie_break = counts / (counts.max() + 1)
    return lambda recent: _sum_of_rows(steps, recent[:, -1:]) + tie_break


def item_knn(users: Ints, items: Ints, num_items: int) -> Scorer:
    """Scores an item by the sum of its cosines with the recent items, itself left out."""
    matrix = _sparse(users, items, users.max() + 1, num_items + 1)
    norms = np.sqrt(np.maximum(_counts(items, num_items), 1))
    unit = matrix @ sp.diags_array(1 / norms)
    similar = sp.csr_array(unit.T @ unit)
    similar.setdiag(0)
    return lambda recent: _sum_of_rows(similar, recent)


def _sum_of_rows(matrix: Any, recent: Ints) -> Scores:
    """For each row of `recent` [B, n] the sum of those rows of a sparse matrix: [B, I + 1].

    The row of PAD is empty, since no history has it.
    """
    owner = np.repeat(np.arange(len(recent)), recent.shape[1])
    chosen = _sparse(owner, recent.ravel(), len(recent), matrix.shape[0])
    return np.asarray((chosen @ matrix).toarray(), dtype=np.float32)


def _sparse(rows: Ints, columns: Ints, num_rows: int, num_columns: int) -> Any:
    """How often each (row, column) comes."""
    ones = np.ones(len(rows), np.float32)
    return sp.csr_array((ones, (rows, columns)), shape=(num_rows, num_columns))


def _counts(items: Ints, num_items: int) -> Scores:
    return np.bincount(items, minlength=num_items + 1).astype(np.float32)
