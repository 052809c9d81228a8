"""Evaluation cases: target, candidates and ranks, the same for every model and stage.

Letters: B users of a batch, I items, C sampled candidates.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from client_app.data.dataset import (
    Dataset,
    Ints,
    Items,
    Rows,
    Split,
    input_lengths,
    membership,
    pad_batch,
)
from client_app.evaluation.target_groups import candidates
from shared_model.protocol.metrics import SAMPLED, Ranks
from shared_model.seeds import STRIDE, mix, stable_hash


@dataclass(frozen=True)
class Cases:
    """A batch of users, each with the target of a split and what it is ranked among."""

    inputs: Tensor  # [B, T] int64, left padded
    targets: Tensor  # [B] int64
    negatives: Tensor  # [B, C] int64, uniform over the candidates not met; 0 = fewer exist
    seen: Tensor  # [B, I+1] bool, the items of the whole input

    def to(self, device: torch.device) -> "Cases":
        """The cases on another device."""
        return Cases(*(value.to(device) for value in vars(self).values()))


def make_cases(
    dataset: Dataset, rows: Rows, split: Split, seed: int, max_length: int, group: str = "all"
) -> Cases:
    """The cases of users ``rows`` [B]. The groups of a split differ in their negatives only."""
    inputs, targets = pad_batch(dataset, rows, split, max_length)
    negatives = _negatives(dataset, rows.tobytes(), split, seed, group).astype(np.int64)
    seen = membership(dataset, rows, input_lengths(dataset, rows, split))
    arrays = (inputs, targets, negatives, seen)
    return Cases(*(torch.from_numpy(array) for array in arrays))


def protocol_ranks(
    scores: Tensor, cases: Cases, candidates: Tensor, own: Tensor | None = None
) -> dict[str, Ranks]:
    """Ranks of the targets by protocol, in one pass.

    ``scores`` [B, I+1]; ``candidates`` [I+1] bool are the catalogue items that compete; ``own`` [B]
    is what targets score, if that is not in ``scores``. A rank counts the candidates that do not
    score *below* the target: ties, and NaN, count against us.
    """
    targets = cases.targets[:, None]
    own = scores.gather(1, targets) if own is None else own[:, None]
    ahead = _not_below(scores, own).scatter_(1, targets, False)  # [B, I+1]
    others = candidates.expand_as(ahead).scatter(1, targets, False)
    return {
        "uniform-100": _ranks(ahead.gather(1, cases.negatives), cases.negatives > 0),
        "full": _ranks(ahead, others),
        "full-unseen": _ranks(ahead, others & ~cases.seen),
    }


def _not_below(scores: Tensor, own: Tensor) -> Tensor:
    """Which of ``scores`` [B, N] are not below ``own`` [B, 1]: by numpy where that is faster."""
    if scores.device.type == "cpu":
        return torch.from_numpy(~(scores.numpy() < own.numpy()))
    return ~(scores < own)


def _ranks(ahead: Tensor, candidates: Tensor) -> Ranks:
    """How many of the ``candidates`` [B, N] are ``ahead`` [B, N], and how many there are."""
    counts = [_counts(ahead & candidates), _counts(candidates)]
    return Ranks(*torch.stack(counts).cpu().numpy())


def _counts(flags: Tensor) -> Tensor:
    """How many are true in each row of [B, N] bool, int64 [B]: by numpy where that is faster, and
    row by row, which takes a sixth of what it takes along an axis."""
    if flags.device.type == "cpu":
        return torch.tensor([np.count_nonzero(row) for row in flags.numpy()], dtype=torch.int64)
    return flags.sum(1)


def warm_candidates(dataset: Dataset) -> Tensor:
    """The items that group "all" ranks among: no padding, no cold item. [I+1] bool."""
    return torch.from_numpy(candidates(dataset, "all"))


@lru_cache(maxsize=256)  # every validation of a run asks for the same
def _negatives(dataset: Dataset, users: bytes, split: Split, seed: int, group: str) -> Items:
    """A group's negatives of the rows in ``users``, int32 [B, C]: a function of user, split, group
    and seed alone."""
    rows = np.frombuffer(users, dtype=np.int64)
    met = membership(dataset, rows, dataset.lengths(rows))
    met[np.arange(len(rows)), dataset.cold_target[rows]] = True  # PAD, if there is none
    # "all" has the name, and rejects the cold items among its draws, as before there were groups.
    name = ("negatives", split) if group == "all" else ("negatives", split, group)
    pool = np.flatnonzero(dataset.cold) if group == "cold-only" else np.arange(met.shape[1])[1:]
    excluded = met | ~candidates(dataset, group)
    drawn = _uniform_negatives(stable_hash(seed, *name), dataset.user_keys[rows], pool, excluded)
    return drawn.astype(np.int32)


def _uniform_negatives(seed: int, keys: np.ndarray, pool: Ints, excluded: np.ndarray) -> np.ndarray:
    """Distinct items of a pool drawn uniformly from those not excluded. -> [B, C] int64.

    ``keys`` [B], ``pool`` [P] item indices, ``excluded`` [B, I+1] bool. Draws by hash until every
    row has its items; rows with fewer than C choices are padded with 0.
    """
    wanted = np.minimum(SAMPLED, np.count_nonzero(~excluded.take(pool, axis=1), axis=1))
    draws = 2 * SAMPLED
    while True:
        names = np.arange(draws, dtype=np.uint64) * STRIDE
        drawn = pool[mix(seed, keys[:, None] ^ names) % np.uint64(len(pool))]  # [B, draws]
        usable = ~np.take_along_axis(excluded, drawn, 1) & _first_of_its_kind(drawn)
        if (usable.sum(1) >= wanted).all():
            break
        draws *= 2
    order = np.argsort(~usable, axis=1, kind="stable")[:, :SAMPLED]
    filled = np.arange(SAMPLED) < wanted[:, None]
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
