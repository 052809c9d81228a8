"""Intervals of shares of users, from counts alone: no user's rank leaves its node."""

import math
from collections.abc import Mapping

Z95 = 1.959963984540054  # two-sided 95% of a standard normal


def wilson(share: float, users: float) -> tuple[float, float]:
    """The 95% interval of a share of ``users``: Wilson, JASA 22 (1927).

    It needs nothing but how many were asked and how many were hits, and holds for 0 and 1 as well.
    ``ValueError`` without users.
    """
    if users <= 0:
        raise ValueError("no interval of nobody")
    weight = Z95**2 / users
    middle = (share + weight / 2) / (1 + weight)
    half = Z95 / (1 + weight) * math.sqrt(share * (1 - share) / users + weight / (4 * users))
    return max(0.0, middle - half), min(1.0, middle + half)


def with_interval(figures: Mapping[str, float] | None, metric: str = "hr@10") -> str:
    """A hit rate and its interval, ``0.748 .703-.788``; "-" where there is none."""
    if figures is None:
        return "-"
    low, high = wilson(figures[metric], figures["users"])
    return f"{figures[metric]:.3f} {_short(low)}-{_short(high)}"


def _short(share: float) -> str:
    """Without the leading zero, to be read beside a figure that has it."""
    text = f"{share:.3f}"
    return text.removeprefix("0")
