"""Divergences of noised rounds by their definition."""

import math

from scipy.special import log_ndtr, ndtr


def gaussian_delta(eps: float, mu: float) -> float:
    """The Gaussian mechanism, Balle and Wang (ICML 2018), theorem 8; ``mu`` = sensitivity / std."""
    return float(ndtr(mu / 2 - eps / mu) - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)))


def sampled_delta(eps: float, rate: float, multiplier: float) -> float:
    """One Poisson-sampled Gaussian: the larger of the hockey sticks of (1-q) N(0) + q N(1) against
    N(0), and the reverse, by where the losses cross ``eps``."""

    def crossing(level: float) -> float:  # x where 1 - q + q exp((2x - 1) / 2 s^2) = level
        return multiplier**2 * math.log((level - 1 + rate) / rate) + 0.5

    def above(x: float, mean: float) -> float:
        return float(ndtr((mean - x) / multiplier))

    x = crossing(math.exp(eps))
    removed = (1 - rate) * above(x, 0) + rate * above(x, 1) - math.exp(eps) * above(x, 0)
    if math.exp(-eps) <= 1 - rate:
        return removed
    x = crossing(math.exp(-eps))
    mixture = (1 - rate) * (1 - above(x, 0)) + rate * (1 - above(x, 1))
    return max(removed, 1 - above(x, 0) - math.exp(eps) * mixture)
