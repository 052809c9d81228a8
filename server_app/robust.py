"""One update out of the nodes' updates, although one of them may be wrong.

Norm clipping is after Sun et al., "Can You Really Backdoor Federated Learning?" (2019); the
coordinate-wise median and trimmed mean are those of Yin et al., "Byzantine-Robust Distributed
Learning: Towards Optimal Statistical Rates" (ICML 2018). docs/faults.md says which costs what.

Letters: P nodes with weight; of node p, n_p participants, weight W_p, summed weighted deltas S_p.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from shared_model.model import Arrays
from shared_model.plan import LocalUpdate

HARD_LIMIT = 100.0  # times the limit: no honest node, whatever its users are like
_ENOUGH = 3  # of two nodes that disagree nobody can say which is wrong
# How many times the usual norm is still honest: nodes differ, and those of few users differ more.
# The largest measured one stays below 1/1.5 of the limit (docs/faults.md).
_SHARED, _OWN = 2.0, 3.0

Floats = npt.NDArray[np.float64]


def norm_ratios(updates: Sequence[LocalUpdate]) -> Floats:
    """How large each node's update is by the limit for honest ones. Above 1: too large. [nodes]

    The norm of S_p, over all arrays together, grows as sqrt(W_p) where targets disagree and as W_p
    where they agree. So ||S_p|| / sqrt(W_p) is compared with its median t over the nodes; W~ being
    their median weight, limit_p = (2 + 3 / sqrt(n_p)) * t * W_p / sqrt(min(W_p, W~)), which is
    2 + 3 / sqrt(n) times the median norm for equal nodes. All zeros where fewer than three nodes
    have weight.
    """
    ratios = np.zeros(len(updates))
    having = [place for place, update in enumerate(updates) if update.weight > 0]
    if len(having) < _ENOUGH:
        return ratios
    norms = np.array([_norm(updates[place].arrays) for place in having])
    weights = np.array([updates[place].weight for place in having])
    people = np.array([updates[place].participants for place in having])
    usual = np.median(norms / np.sqrt(weights))
    if usual > 0:
        limits = usual * weights / np.sqrt(np.minimum(weights, np.median(weights)))
        ratios[having] = norms / (limits * (_SHARED + _OWN / np.sqrt(people)))
    return ratios


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
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in arrays.items()}
    weight = 0.0
    for update in updates:
        weight += update.weight
        for name, total in sums.items():
            total += update.arrays[name]
    return {name: (total / weight).float() for name, total in sums.items()}


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


def _norm(arrays: Arrays) -> float:
    squares = [torch.linalg.vector_norm(a, dtype=torch.float64) ** 2 for a in arrays.values()]
    return float(torch.stack(squares).sum().sqrt())
