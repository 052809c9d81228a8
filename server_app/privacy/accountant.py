"""The accountant: what rounds of noised sums cost in epsilon, and what noise a budget needs.

A round is a Poisson-sampled Gaussian mechanism; neighbours differ by one user, added or removed.
Rounds compose by their privacy loss distribution (Koskela et al., AISTATS 2020) on a grid, which
tells more epsilon than there is, never less: it is made finer until that no longer matters. All of
it is a function of what was released and of delta, so a run that resumes tells the same.
dp_accounting is imported on use: a run without differential privacy does not pay for it.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

from shared_model.errors import ConfigError
from shared_model.protocol.dp_rules import LEAST_NOISE, MOST_NOISE

_FIRST = 64  # grid steps, at least, in the largest loss of a round that counts
_FINER = 4  # times, from one grid to the next
_MATTERS = 5e-3  # of epsilon, by which the next grid has to tell less for another one
_MOST = 2**18  # losses of all rounds together on a grid: as many take half a second
_CUT = 1e-4  # of delta: what larger losses weigh together, which count as infinite
# Of delta, for each round: how far off the Fourier transform is that composes them. It is twice
# the largest error that was found, against one that sums the logarithms near 0.
_ROUNDING = 2.0**-50
_DIGITS = 4  # of a noise multiplier


@dataclass(frozen=True, order=True)
class Mechanism:
    """One round: each user's share of at most one clip norm, with this much noise on the sum."""

    rate: float  # probability with which a user takes part
    multiplier: float  # std of the noise, in clip norms


Spending = Counter[Mechanism]  # how often each was released
_Rounds = tuple[tuple[Mechanism, int], ...]  # the same, in order


def epsilon(spent: Spending, delta: float) -> float:
    """Epsilon of everything that was released, at this delta; 0 for nothing.

    Less than 2% above what there is; docs/privacy.md has the exceptions. Infinite for so many
    rounds at so small a delta that rounding errors are as large: 120,000 at 1e-10.
    """
    return _epsilon(tuple(sorted((m, count) for m, count in spent.items() if count)), delta)


@lru_cache(maxsize=256)
def _epsilon(rounds: _Rounds, delta: float) -> float:
    from server_app.privacy.losses import largest_loss, least_epsilon

    if not rounds:
        return 0.0
    total = sum(count for _, count in rounds)
    cut = _CUT * delta / len(rounds)
    largest = {m: largest_loss(m.rate, m.multiplier, cut / count) for m, count in rounds}
    # Powers of two: each multiple of a grid is one of the finer grids, too, which so tell less.
    grid, told = 2.0 ** math.floor(math.log2(max(largest.values()) / _FIRST)), math.inf
    while True:
        losses = _composed(rounds, grid, largest)
        before, told = told, least_epsilon(losses, delta - total * _ROUNDING, grid)
        too_many = _FINER * max(each.size for each in losses) > _MOST
        if told in (0, math.inf) or told > (1 - _MATTERS) * before or too_many:
            return told
        grid /= _FINER


def _composed(rounds: _Rounds, grid: float, largest: dict[Mechanism, float]) -> Any:
    from server_app.privacy.losses import compose, losses_of_round, repeat

    stages = (
        repeat(losses_of_round(m.rate, m.multiplier, grid, largest[m]), count)
        for m, count in rounds
    )
    return reduce(compose, stages)


def planned(rate: float, multiplier: float, rounds: int, spread: float = 1.0) -> Spending:
    """So many rounds, of which all but the last have ``spread`` times the noise.

    That is what secure sums of all sites have; the last one may be of the fewest.
    """
    as_usual = Counter({Mechanism(rate, multiplier * spread): rounds - 1})
    return as_usual + Counter({Mechanism(rate, multiplier): 1})


def affordable(
    mechanism: Mechanism, most: int, budget: float, delta: float, before: Spending
) -> int:
    """How many rounds, at most ``most``, fit the budget on top of what was spent ``before``."""

    def excess(rounds: int) -> float:
        return _excess(before + Counter({mechanism: rounds}), budget, delta)

    if excess(most) <= 0:
        return most
    if most <= 1 or excess(1) > 0:
        return 0
    found = round(_root(lambda rounds: excess(round(rounds)), 1, most, 0.5))
    while excess(found) > 0:
        found -= 1
    while excess(found + 1) <= 0:
        found += 1
    return found


def noise_for(rate: float, rounds: int, budget: float, delta: float, spread: float = 1.0) -> float:
    """The least noise multiplier with which so many rounds, as ``planned``, stay in budget,
    rounded up. ``ConfigError`` if none does.
    """

    def excess(multiplier: float) -> float:
        return _excess(planned(rate, multiplier, rounds, spread), budget, delta)

    # Where it is if losses are normal, as those of many rounds with much noise are.
    high = rate * math.sqrt(2 * rounds * math.log(1 / delta)) / budget
    high = min(max(1.0, high), MOST_NOISE)
    while excess(high) > 0:
        if high == MOST_NOISE:
            raise ConfigError("no noise keeps this budget", got=f"epsilon {budget:g}")
        high = min(2 * high, MOST_NOISE)
    while excess(low := max(high / 2, LEAST_NOISE)) <= 0:
        if low == LEAST_NOISE:
            return LEAST_NOISE
        high = low
    found = _root(excess, low, high, max(1.0, low) * 10.0 ** (1 - _DIGITS) / 2)
    step = 10.0 ** (max(0, math.floor(math.log10(found))) + 1 - _DIGITS)
    least = math.ceil(found / step)
    while excess(rounded := min(MOST_NOISE, round(least * step, _DIGITS))) > 0:
        least += 1
    return rounded


def _excess(spent: Spending, budget: float, delta: float) -> float:
    """Logarithm of epsilon over the budget: nearly a line in that of rounds or noise."""
    return math.log(min(max(epsilon(spent, delta), 1e-300), 1e300)) - math.log(budget)


def _root(excess: Callable[[float], float], low: float, high: float, exact: float) -> float:
    """Where the excess changes its sign."""
    from scipy.optimize import brentq

    ends = math.log(low), math.log(high)
    return math.exp(brentq(lambda x: excess(math.exp(x)), *ends, xtol=exact / high))
