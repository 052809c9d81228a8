"""How well a score tells members from others. Ties count against the attacker; half in the AUC."""

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def auc(scores: Floats, members: Bools) -> float | None:
    """Share of (member, other) pairs in which the member scores higher, ties half: 0.5 is chance.

    ``scores`` [N], ``members`` [N]; ``None`` where one of the kinds is absent. The Mann-Whitney
    statistic (Hanley and McNeil, Radiology 1982).
    """
    some, others = int(members.sum()), int((~members).sum())
    if not some or not others:
        return None
    ranks = float(rankdata(scores)[members].sum())
    return (ranks - some * (some + 1) / 2) / (some * others)


def chance_deviation(members: Bools) -> float:
    """Standard deviation of the AUC of a score that knows nothing of ``members`` [N]."""
    some, others = int(members.sum()), int((~members).sum())
    return float(np.sqrt((some + others + 1) / (12 * some * others)))


def true_positives(scores: Floats, members: Bools, false_positives: float) -> float:
    """Share of the members above a threshold that at most that share of the others exceeds.

    Carlini et al., "Membership Inference Attacks From First Principles" (IEEE S&P 2022): what an
    attack finds while it is hardly ever wrong.
    """
    others = np.sort(scores[~members])[::-1]
    threshold = others[int(false_positives * len(others))]
    return float((scores[members] > threshold).mean())


def precision_at(scores: Floats, members: Bools, k: int) -> float:
    """Share of members among the k highest scores."""
    order = np.lexsort((members, -scores))
    return float(members[order[:k]].mean())
