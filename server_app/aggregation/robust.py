"""One update out of the nodes' updates, although one of them may be wrong.

Norm clipping is after Sun et al., "Can You Really Backdoor Federated Learning?" (2019); the
coordinate-wise median and trimmed mean are those of Yin et al., "Byzantine-Robust Distributed
Learning: Towards Optimal Statistical Rates" (ICML 2018). docs/faults.md says which costs what.

Letters: P nodes with weight; of node p, n_p participants, weight W_p, summed weighted deltas S_p.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate

HARD_LIMIT = 100.0  # times the limit: no honest node, whatever its users are like
_ENOUGH = 3  # of two nodes that disagree nobody can say which is wrong
# The largest honest updates measured stay below 1/1.5 of the limit these make (docs/faults.md).
_SHARED, _OWN = 2.0, 3.0
# Single numbers on a large scale have most of the norm of a mixture's update: what one user brings
# about them has heavier tails than tables and matrices.
_MIXED_SHARED, _MIXED_OWN = 6.0, 6.0

Floats = npt.NDArray[np.float64]


def times_usual(updates: Sequence[LocalUpdate]) -> Floats:
    """How many times the usual norm for its weight each node's update has. [nodes]

    The norm of S_p, over all arrays together, grows as sqrt(W_p) where targets disagree and as W_p
    where they agree. So the median t of ||S_p|| / sqrt(W_p) over the nodes and their median weight
    W~ make the usual norm t * W_p / sqrt(min(W_p, W~)), which for equal nodes is the median norm.
    All zeros where fewer than three nodes have weight.
    """
    times = np.zeros(len(updates))
    having = [place for place, update in enumerate(updates) if update.weight > 0]
    if len(having) < _ENOUGH:
        return times
    norms = np.array([update_norm(updates[place].arrays) for place in having])
    weights = np.array([updates[place].weight for place in having])
    usual = np.median(norms / np.sqrt(weights))
    if usual > 0:
        times[having] = norms * np.sqrt(np.minimum(weights, np.median(weights))) / weights / usual
    return times


def limit(participants: int, mixes: bool) -> float:
    """How many times the usual norm is still honest: nodes differ, those of few users more, and in
    stages with a mixture."""
    shared, own = (_MIXED_SHARED, _MIXED_OWN) if mixes else (_SHARED, _OWN)
    return shared + own / math.sqrt(max(1, participants))


def scaled(update: LocalUpdate, factor: float) -> LocalUpdate:
    """The same update with its arrays times ``factor``; weight and counts stay."""
    return replace(update, arrays={name: a * factor for name, a in update.arrays.items()})


def combined(
    updates: Sequence[LocalUpdate], arrays: Arrays, aggregation: str, trim_share: float
) -> Arrays:
    """The nodes' updates as one, shaped like ``arrays``, float32; at least one has weight.

    ``aggregation`` "mean" and "clipped": sum of S_p / sum of weights, float64, in the order given.
    "median" and "trimmed": in each coordinate over the nodes' means, each node counting the same;
    ``trim_share`` of the nodes is cut at each end.
    """
    having = [update for update in updates if update.weight > 0]
    if aggregation == "median":
        return _trimmed_mean(having, arrays, (len(having) - 1) // 2)
    if aggregation == "trimmed":
        return _trimmed_mean(having, arrays, int(trim_share * len(having)))
    return _weighted_mean(having, arrays)


def _weighted_mean(updates: Sequence[LocalUpdate], arrays: Arrays) -> Arrays:
    weight = sum(update.weight for update in updates)
    result = {}
    for name in arrays:
        first, *others = (update.arrays[name] for update in updates)
        total = first.to(torch.float64, copy=True)
        for other in others:
            total += other
        result[name] = total.div_(weight).float()
    return result


def _trimmed_mean(updates: Sequence[LocalUpdate], arrays: Arrays, cut: int) -> Arrays:
    """Mean of what is left of each coordinate without its ``cut`` lowest and highest nodes.

    With one or two left this is the median.
    """
    result = {}
    for name in arrays:
        nodes = np.stack([u.arrays[name].double().numpy() / u.weight for u in updates])  # [P, ...]
        nodes.sort(axis=0)
        middle = np.asarray(nodes[cut : len(nodes) - cut].mean(axis=0))
        result[name] = torch.from_numpy(middle).float()
    return result


def update_norm(arrays: Arrays) -> float:
    """The L2 norm over all arrays together."""
    squares = [torch.linalg.vector_norm(a, dtype=torch.float64) ** 2 for a in arrays.values()]
    return float(torch.stack(squares).sum().sqrt())
