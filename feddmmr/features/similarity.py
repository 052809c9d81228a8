"""Are items that a user chose alike? Pair statistics of features against random pairs.

A *pair* is two items that both have features. Two kinds: consecutive in a history, and any two of
one user's history. Each is a mean over users of the user's mean cosine, which is compared with the
mean over all pairs of the catalogue. What chance does to the difference has two parts, added up:
other users might have been drawn (the variance over users), and features that mean nothing, dealt
out to the items at random, would not give exactly zero either (Mantel's exact variance, Cancer
Research 27, 1967). Without the second, shuffled features "tell preferences" whenever a few items
are in most histories.

Letters: U users, I items, N interactions, F feature size. Items count from 0 here.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]  # [I, F], rows of norm 1 or 0
Ints = npt.NDArray[np.int64]
Z95 = 1.959964  # two-sided 95% of the normal distribution
CHUNK = 1 << 14  # pairs or items compared at once
SMALL = 0.01  # a mean cosine below which a percentage of it says nothing


@dataclass(frozen=True)
class Histories:
    """Users' items in time order, as CSR: `items[indptr[u]:indptr[u + 1]]`, none twice."""

    indptr: Ints  # [U + 1]
    items: Ints  # [N]


@dataclass(frozen=True)
class Lift:
    """Mean cosine of chosen pairs, of random ones, and what lies between them, with 95% bounds."""

    users: int  # that have such a pair
    mean: float
    random: float
    difference: float
    difference_low: float
    difference_high: float
    lift_percent: float | None  # None: random pairs are around zero, or there are no pairs
    lift_low: float | None
    lift_high: float | None
    popular: float  # random pairs drawn as often as the histories have the items
    tells: bool  # the whole interval lies above zero

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def lifts(features: Features, histories: Histories) -> dict[str, Lift]:
    """The two statistics: "consecutive" and "within". Items without features are left out."""
    known = np.asarray(features.any(axis=1))
    keep = known[histories.items]
    ends = np.concatenate(([0], np.cumsum(keep)))[histories.indptr]
    user = np.repeat(np.arange(len(ends) - 1), np.diff(histories.indptr))
    kept = Histories(ends, histories.items[keep])
    result = {}
    for name, pairs in (
        ("consecutive", _consecutive(features, histories, keep, user)),
        ("within", _within(features, kept)),
    ):
        result[name] = _lift(features[known], *pairs, kept, known)
    return result


def random_mean(features: Features) -> float:
    """Mean cosine over all pairs of different items, which must all have features."""
    count = len(features)
    total = features.sum(axis=0, dtype=np.float64)
    squares = float((features.astype(np.float64) ** 2).sum())
    return (float(total @ total) - squares) / (count * (count - 1)) if count > 1 else 0.0


def mantel_variance(features: Features, weights: sparse.csr_array) -> float:
    """Variance of sum(weights * cosines) when the rows of `features` [n, F] are dealt out anew.

    `weights` [n, n] symmetric without diagonal. Exact, in O(n F^2). 0 for fewer than 4 items.
    """
    n = len(features)
    if n < 4:
        return 0.0
    f = features.astype(np.float64)
    squared = (f**2).sum(axis=1)
    mean = random_mean(features)
    rows = f @ f.sum(axis=0) - squared - mean * (n - 1)  # of the centred cosines
    s_all = ((f.T @ f) ** 2).sum() - (squared**2).sum() - mean**2 * n * (n - 1)
    s_rows = (rows**2).sum()
    w_all, w_rows = float((weights.data**2).sum()), float((weights.sum(axis=1) ** 2).sum())
    w_total = float(weights.sum())
    same = 2 * w_all * s_all / (n * (n - 1))
    sharing = 4 * (w_rows - w_all) * (s_rows - s_all) / (n * (n - 1) * (n - 2))
    apart = (w_total**2 - 4 * w_rows + 2 * w_all) * (2 * s_all - 4 * s_rows)
    return max(0.0, float(same + sharing + apart / (n * (n - 1) * (n - 2) * (n - 3))))


def near_duplicates(features: Features, threshold: float) -> tuple[int, list[tuple[int, int]]]:
    """How many items have another one with a cosine of at least `threshold`, and the first pairs.

    Items without features have none. Two places from 0 a pair, five pairs at most.
    """
    known = np.flatnonzero(features.any(axis=1))
    dense, count = features[known], 0
    examples: list[tuple[int, int]] = []
    rows = max(1, 4 * 10**7 // max(1, len(known)))  # a block of at most 160 MB
    for start in range(0, len(known), rows):
        cosines = dense[start : start + rows] @ dense.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -1
        near = cosines >= threshold
        count += int(near.any(axis=1).sum())
        if len(examples) < 5:
            pairs = np.argwhere(near) + np.array([start, 0])
            examples += [(int(known[a]), int(known[b])) for a, b in pairs if a < b]
    return count, examples[:5]


def _consecutive(
    features: Features, histories: Histories, keep: npt.NDArray[np.bool_], user: Ints
) -> tuple[Floats, sparse.csr_array]:
    """Users' mean cosine of neighbours in the whole history, and the pairs' weights [I, I]."""
    items, count = histories.items, len(features)
    pair = np.flatnonzero((user[1:] == user[:-1]) & keep[1:] & keep[:-1])
    first, second, owner = items[pair], items[pair + 1], user[pair]
    cosine = np.empty(len(pair))
    for start in range(0, len(pair), CHUNK):
        part = slice(start, start + CHUNK)
        cosine[part] = np.einsum("ij,ij->i", features[first[part]], features[second[part]])
    pairs = np.bincount(owner, minlength=len(histories.indptr) - 1)
    sums = np.bincount(owner, cosine, minlength=len(pairs))
    having = pairs > 0
    share = 0.5 / (pairs[owner] * max(1, having.sum()))
    places = (np.concatenate([first, second]), np.concatenate([second, first]))
    weights = sparse.csr_array((np.concatenate([share, share]), places), shape=(count, count))
    weights.sum_duplicates()
    return sums[having] / pairs[having], weights


def _within(features: Features, kept: Histories) -> tuple[Floats, sparse.csr_array]:
    """Users' mean cosine of all pairs of their items, and the pairs' weights [I, I]."""
    lengths = np.diff(kept.indptr)
    ones = np.ones(len(kept.items), dtype=np.float32)
    shape = (len(lengths), len(features))
    chosen = sparse.csr_array((ones, kept.items, kept.indptr), shape=shape)
    having = lengths > 1
    chosen, lengths = chosen[having], lengths[having]
    pairs = (lengths * (lengths - 1)).astype(np.float64)
    totals = np.asarray(chosen @ features, dtype=np.float64)
    squared = (features.astype(np.float64) ** 2).sum(axis=1)
    means = ((totals**2).sum(axis=1) - chosen @ squared) / pairs
    scaled = chosen * np.sqrt(1 / (pairs * max(1, len(pairs))))[:, None].astype(np.float32)
    weights = sparse.csr_array(scaled.T @ scaled)
    weights.setdiag(0)
    return means, weights


def _lift(
    dense: Features,
    means: Floats,
    weights: sparse.csr_array,
    kept: Histories,
    known: npt.NDArray[np.bool_],
) -> Lift:
    """Compare users' means with the catalogue's. `dense`: the rows that are `known`."""
    random, popular = random_mean(dense), _popular_mean(dense, kept, known)
    if len(means) < 2:
        return Lift(len(means), 0.0, random, 0.0, 0.0, 0.0, None, None, None, popular, False)
    present = np.flatnonzero(known)
    shuffled = mantel_variance(dense, weights[present][:, present])
    error = Z95 * float(np.sqrt(means.var(ddof=1) / len(means) + shuffled))
    mean = float(means.mean())
    difference = mean - random
    low, high = difference - error, difference + error
    as_percent = 100 / random if random > SMALL else None
    return Lift(
        users=len(means),
        mean=mean,
        random=random,
        difference=difference,
        difference_low=low,
        difference_high=high,
        lift_percent=as_percent and as_percent * difference,
        lift_low=as_percent and as_percent * low,
        lift_high=as_percent and as_percent * high,
        popular=popular,
        tells=low > 0,
    )


def _popular_mean(dense: Features, kept: Histories, known: npt.NDArray[np.bool_]) -> float:
    """Mean cosine of two different items, each drawn by its share of the interactions."""
    counts = np.bincount(kept.items, minlength=len(known))[known].astype(np.float64)
    share = counts / max(1.0, counts.sum())
    total, same = share @ dense, float((share**2).sum())
    squares = float(share**2 @ (dense.astype(np.float64) ** 2).sum(axis=1))
    return (float(total @ total) - squares) / (1 - same) if same < 1 else 0.0
