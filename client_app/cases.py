"""Evaluation cases: target, candidates and ranks, the same for every model and stage.

Letters: B users of a batch, I items, C sampled candidates.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client_app.data import Dataset, Rows, Split, pad_batch
from shared_model.seeds import mix, stable_hash

NUM_NEGATIVES = 100


@dataclass(frozen=True)
class Cases:
    """A batch of users, each with the target of a split and what it is ranked among."""

    inputs: Tensor  # [B, T] int64, left padded
    targets: Tensor  # [B] int64
    negatives: Tensor  # [B, C] int64, uniform over the items the user never met; 0 = fewer exist
    seen: Tensor  # [B, I+1] bool, the items of the whole input


def make_cases(dataset: Dataset, rows: Rows, split: Split, seed: int, max_length: int) -> Cases:
    """The cases of users ``rows`` [B]. Negatives depend on user, split and seed alone."""
    inputs, targets = pad_batch(dataset, rows, split, max_length)
    met = _membership(dataset, rows, 0)
    negatives = _uniform_negatives(
        stable_hash(seed, "negatives", split), dataset.user_keys[rows], met | dataset.cold
    )
    seen = _membership(dataset, rows, {"valid": 2, "test": 1}[split])
    arrays = (inputs, targets, negatives, seen)
    return Cases(*(torch.from_numpy(array) for array in arrays))


def protocol_ranks(scores: Tensor, cases: Cases, candidates: Tensor) -> dict[str, np.ndarray]:
    """Ranks [B] of the targets by protocol, from 0, in one pass.

    ``scores`` [B, I+1]; ``candidates`` [I+1] bool are the catalogue items that compete. A rank
    counts the candidates that do not score *below* the target: ties, and NaN, count against us.
    """
    targets = cases.targets[:, None]
    ahead = ~(scores < scores.gather(1, targets)) & candidates  # [B, I+1]
    ahead.scatter_(1, targets, False)
    sampled = ahead.gather(1, cases.negatives) & (cases.negatives > 0)
    return {
        "uniform-100": sampled.sum(1).numpy(),
        "full": ahead.sum(1).numpy(),
        "full-unseen": (ahead & ~cases.seen).sum(1).numpy(),
    }


def warm_candidates(dataset: Dataset) -> Tensor:
    """The items that group "all" ranks among: no padding, no cold item. [I+1] bool."""
    warm = ~dataset.cold
    warm[0] = False
    return torch.from_numpy(warm)


def _membership(dataset: Dataset, rows: Rows, held_out: int) -> np.ndarray:
    """Which items each user met, without its last ``held_out`` interactions. [B, I+1] bool."""
    items, offsets = dataset.histories(rows)
    owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
    kept = np.arange(len(items)) < np.repeat(offsets[1:] - held_out, np.diff(offsets))
    member = np.zeros((len(rows), dataset.num_items + 1), dtype=bool)
    member[owner[kept], items[kept]] = True
    return member


def _uniform_negatives(seed: int, keys: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Distinct items drawn uniformly from those not excluded. [B] and [B, I+1] -> [B, C] int64.

    Draws by hash until every row has its items; rows with fewer than C choices are padded with 0.
    """
    num_items = excluded.shape[1] - 1
    wanted = np.minimum(NUM_NEGATIVES, num_items - excluded[:, 1:].sum(1))
    draws = 2 * NUM_NEGATIVES
    while True:
        names = np.arange(draws, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
        drawn = mix(seed, keys[:, None] ^ names) % np.uint64(num_items) + np.uint64(1)
        drawn = drawn.astype(np.int64)  # [B, draws]
        usable = ~np.take_along_axis(excluded, drawn, 1) & _first_of_its_kind(drawn)
        if (usable.sum(1) >= wanted).all():
            break
        draws *= 2
    order = np.argsort(~usable, axis=1, kind="stable")[:, :NUM_NEGATIVES]
    filled = np.arange(NUM_NEGATIVES) < wanted[:, None]
    return np.where(filled, np.take_along_axis(drawn, order, 1), 0)


def _first_of_its_kind(values: np.ndarray) -> np.ndarray:
    """Marks each value's first occurrence in its row. [B, N] -> [B, N] bool."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    first = np.ones_like(values, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    marks = np.empty_like(first)
    np.put_along_axis(marks, order, first, 1)
    return marks
