"""The accountant: what rounds of noised sums cost in epsilon, and what noise a budget needs.

A round is a Poisson-sampled Gaussian mechanism; neighbours differ by one user, added or removed.
Rounds compose by their privacy loss distribution (Koskela et al., AISTATS 2020; Doroshenko et al.,
"Connect the Dots", PETS 2022), as Google's dp-accounting has it. dp_accounting is imported on use:
a run without differential privacy does not pay for it.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared_model.errors import ConfigError
from shared_model.promise import LEAST_NOISE, MOST_NOISE

# The grid of privacy losses. Losses are rounded up, so a coarser one tells more epsilon, never
# less: 5e-4 costs 0.05% of it at 0.1 of the users and 300 rounds, and a fifth of the time of 1e-4.
_GRID = 5e-4
_DIGITS = 3  # of a noise multiplier


@dataclass(frozen=True)
class Mechanism:
    """One round: each user's share of at most one clip norm, with this much noise on the sum."""

    rate: float  # probability with which a user takes part
    multiplier: float  # std of the noise, in clip norms


Spending = Counter[Mechanism]  # how often each was released


def epsilon(spent: Spending, delta: float) -> float:
    """Epsilon of everything that was released, at this delta; 0 for nothing."""
    return _epsilon(frozenset((m, count) for m, count in spent.items() if count), delta)


@lru_cache(maxsize=64)
def _epsilon(spent: frozenset[tuple[Mechanism, int]], delta: float) -> float:
    accountant = _accountant()
    for mechanism, count in sorted(spent, key=lambda pair: (pair[0].rate, pair[0].multiplier)):
        accountant.compose(_event(mechanism), count)
    return float(accountant.get_epsilon(delta))


def affordable(
    mechanism: Mechanism, most: int, budget: float, delta: float, before: Spending
) -> int:
    """How many rounds, at most ``most``, fit the budget on top of what was spent ``before``."""
    low, high = 0, most + 1  # ``low`` fits (or is none), ``high`` does not
    if epsilon(before + Counter({mechanism: most}), delta) <= budget:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        fits = epsilon(before + Counter({mechanism: middle}), delta) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def noise_for(rate: float, rounds: int, budget: float, delta: float) -> float:
    """The least noise multiplier with which so many rounds stay in budget, rounded up.

    ``ConfigError`` if none does: no budget can be told more finely than the accountant's grid.
    """
    from dp_accounting import ExplicitBracketInterval, SelfComposedDpEvent, calibrate_dp_mechanism

    def fits(multiplier: float) -> bool:
        return epsilon(Counter({Mechanism(rate, multiplier): rounds}), delta) <= budget

    def event(multiplier: float) -> Any:
        return SelfComposedDpEvent(_event(Mechanism(rate, multiplier)), rounds)

    high = 1.0
    while not fits(high):
        high *= 2
        if high > MOST_NOISE:
            raise ConfigError("no noise keeps this budget", got=f"epsilon {budget:g}")
    while fits(high / 2):
        if high / 2 <= LEAST_NOISE:
            return LEAST_NOISE
        high /= 2
    interval = ExplicitBracketInterval(high / 2, high)
    found = calibrate_dp_mechanism(_accountant, event, budget, delta, interval, tol=10**-_DIGITS)
    return max(LEAST_NOISE, float(math.ceil(found * 10**_DIGITS) / 10**_DIGITS))


def _accountant() -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, _GRID)


def _event(mechanism: Mechanism) -> Any:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    return PoissonSampledDpEvent(mechanism.rate, GaussianDpEvent(mechanism.multiplier))
