"""Baselines on the splits, groups, candidates and ranks that the models are evaluated with.

popularity: how often an item is in the histories that baselines learn from.
markov: how often an item follows the user's last one; popularity among equals.
item-knn: cosine of items as sets of users, summed over the user's last five.
text-knn: cosine of their text features, summed likewise; where there are such features. It alone
knows cold items: the others leave them behind all that are not cold, as a Stage 1 does.
All learn from every user's train items only; the test input has the valid item as well.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from client_app.data.content import open_content, whole
from client_app.data.dataset import Dataset, Rows, Split, cold_rows, input_lengths
from client_app.data.split import train_places
from client_app.evaluation.cases import make_cases, protocol_ranks
from client_app.evaluation.evaluate import Ranked
from client_app.evaluation.target_groups import candidates, groups_of
from shared_model.protocol.metrics import MetricSums, Report

RECENT = 5  # items of the history that item-knn and text-knn look at
BATCH = 256
CONTENT = "text-knn"

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Scorer = Callable[[Ints], Scores]  # last RECENT items [B, RECENT], left padded, to [B, I + 1]


def evaluate_baselines(dataset: Dataset, split: Split = "test", seed: int = 0) -> dict[str, Report]:
    """Metrics of each baseline: name -> group -> protocol -> metric -> value, over all users."""
    sums: dict[str, MetricSums] = {name: MetricSums() for name in scorers(dataset)}
    for name, found in rank_baselines(dataset, split, seed):
        for protocol, ranks in found.ranks.items():
            sums[name].add(found.group, protocol, ranks)
    return {name: found.report() for name, found in sums.items()}


def rank_baselines(
    dataset: Dataset, split: Split = "test", seed: int = 0
) -> Iterator[tuple[str, Ranked]]:
    """Each baseline's ranks of all users, group by group and batch by batch; cold cases last."""
    known = scorers(dataset)
    for part, rows in _batches(dataset, split):
        cases = {
            group: make_cases(dataset, rows, part, seed, RECENT, group)
            for group in groups_of(dataset, part)
        }
        one = next(iter(cases.values()))
        users = (rows, one.targets.numpy(), input_lengths(dataset, rows, part))
        for name, score in known.items():
            scores = torch.from_numpy(score(one.inputs.numpy()))
            if name != CONTENT:
                scores = scores.masked_fill(torch.from_numpy(dataset.cold), -torch.inf)
            for group, of_group in cases.items():
                among = torch.from_numpy(candidates(dataset, group))
                yield name, Ranked(group, *users, protocol_ranks(scores, of_group, among))


def scorers(dataset: Dataset) -> dict[str, Scorer]:
    """The baselines that this dataset has what they need for, by name."""
    users, items = train_pairs(dataset)
    found = {
        "popularity": popularity(items, dataset.num_items),
        "markov": markov(users, items, dataset.num_items),
        "item-knn": item_knn(users, items, dataset.num_items),
    }
    if dataset.info.get("text_dim"):
        found[CONTENT] = text_knn(whole(open_content(dataset, "text").text).numpy())
    return found


def _batches(dataset: Dataset, split: Split) -> Iterator[tuple[Split, Rows]]:
    """All users of a split, and after "test" those with a cold test case."""
    everyone = np.arange(dataset.num_users, dtype=np.int64)
    parts: list[tuple[Split, Rows]] = [(split, everyone)]
    if split == "test":
        parts.append(("cold", cold_rows(dataset, everyone)))
    for part, rows in parts:
        for start in range(0, len(rows), BATCH):
            yield part, rows[start : start + BATCH]


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


def text_knn(text: Scores) -> Scorer:
    """Scores an item by the sum of its cosines with the recent items, itself left out.

    ``text`` [I + 1, S] has unit rows, zero ones where there is no text: such items score 0.
    """

    def score(recent: Ints) -> Scores:
        scores: Scores = text[recent].sum(1) @ text.T  # [B, I + 1]
        for place in range(recent.shape[1]):
            rows, own = np.arange(len(recent)), recent[:, place]
            scores[rows, own] -= np.square(text[own]).sum(1)
        return scores

    return score


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
