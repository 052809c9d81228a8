"""The privacy losses of noised rounds, on a grid: an upper bound of what they tell.

A round is a Poisson-sampled Gaussian mechanism. Its losses are rounded to multiples of the grid by
"Connect the Dots" (Doroshenko et al., PETS 2022): the divergences are the round's at each multiple,
and no smaller between. Google's dp-accounting composes the rounds. Its own rounding is not used: it
loses its digits where sampling is rare, and takes seconds in a loop over the multiples.

Letters: n multiples of the grid, from 1.
"""

import math

import numpy as np
import numpy.typing as npt
from dp_accounting.pld.pld_pmf import DensePLDPmf, compose_pmfs
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

Floats = npt.NDArray[np.float64]
Losses = tuple[DensePLDPmf, DensePLDPmf]  # of a user removed, and of one added

_EPSILONS = np.geomspace(1e-12, 1e6, 4096)  # among which a round's largest loss is looked for
_EXACT = 1e-8  # of epsilon


def divergences(rate: float, multiplier: float, epsilons: Floats) -> tuple[Floats, Floats]:
    """Hockey-stick divergences [n] of a round at epsilons [n] >= 0: a user removed, a user added.

    Sampling makes them those of the Gaussian mechanism, scaled, at a larger epsilon (Balle, Barthe
    and Gaboardi, NeurIPS 2018). Written so, they have all their digits at any rate.
    """
    odds = (1 - rate) / rate
    removed = rate * _gaussian(multiplier, epsilons + np.log1p(-odds * np.expm1(-epsilons)))
    lost = odds * np.expm1(np.minimum(epsilons, 600))  # from 1 on no loss of one added is so large
    lost, possible = np.where(lost < 1, lost, 0), lost < 1
    added = rate * (1 - lost) * _gaussian(multiplier, epsilons - np.log1p(-lost))
    return removed, np.where(possible, added, 0)


def _gaussian(multiplier: float, epsilons: Floats) -> Floats:
    """The Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8)."""
    half, scaled = 0.5 / multiplier, epsilons * multiplier
    divergence = ndtr(half - scaled) - np.exp(epsilons + log_ndtr(-half - scaled))
    return np.asarray(np.maximum(0, divergence))


def largest_loss(rate: float, multiplier: float, cut: float) -> float:
    """The loss of a round beyond which no divergence is above ``cut``, or up to 1% more."""
    beyond = np.maximum(*divergences(rate, multiplier, _EPSILONS)) <= cut
    return float(_EPSILONS[beyond.argmax() if beyond.any() else -1])


def losses_of_round(rate: float, multiplier: float, grid: float, largest: float) -> Losses:
    """The losses of one round; what is beyond the largest one counts as infinite."""
    multiples: Floats = np.arange(max(1, math.ceil(largest / grid)) + 1) * np.float64(grid)
    removed, added = divergences(rate, multiplier, multiples)
    up, down = _masses(removed, grid), _masses(added, grid)
    # What has mass m at loss l in one direction has m exp(-l) at -l in the other. So the losses
    # below 0 come from small divergences, too, and keep their digits.
    falling = np.exp(-multiples[1:])
    return (
        _distribution(up, down * falling, grid, float(removed[-1])),
        _distribution(down, up * falling, grid, float(added[-1])),
    )


def _masses(divergence: Floats, grid: float) -> Floats:
    """Masses [n] that have these divergences at 0 and the multiples of the grid [n + 1]."""
    steps = -np.diff(divergence, append=divergence[-1])
    return np.maximum(0, (steps[:-1] - steps[1:] * math.exp(-grid)) / -math.expm1(-grid))


def _distribution(above: Floats, below: Floats, grid: float, infinite: float) -> DensePLDPmf:
    """Masses [n] at multiples and [n] at those below 0, nearest first; what is left is at 0."""
    rest = max(0.0, 1 - float(above.sum() + below.sum()) - infinite)
    masses = np.concatenate([below[::-1], [rest], above])
    return DensePLDPmf(grid, -len(below), masses, infinite, pessimistic_estimate=True)


def repeat(losses: Losses, count: int) -> Losses:
    """The losses of so many rounds."""
    removed, added = losses
    with np.errstate(over="ignore"):  # in the bounds of its tails: one that overflows is not used
        return removed.self_compose(count), added.self_compose(count)


def compose(first: Losses, second: Losses) -> Losses:
    """The losses of both, on the one grid of both."""
    removed, added = (compose_pmfs(*both, 1e-15) for both in zip(first, second, strict=True))
    return removed, added


def least_epsilon(losses: Losses, delta: float, grid: float) -> float:
    """The least epsilon at this delta, or next above it; infinite if there is none."""

    def above(epsilon: float) -> float:
        return max(float(each.get_delta_for_epsilon(epsilon)) for each in losses) - delta

    if above(0.0) <= 0:
        return 0.0
    if above(math.inf) > 0:
        return math.inf
    low, high = 0.0, grid
    while above(high) > 0:
        low, high = high, 2 * high
    exact = _EXACT * high
    return float(brentq(above, low, high, xtol=exact)) + 2 * exact
