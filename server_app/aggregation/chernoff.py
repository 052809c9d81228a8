"""Chernoff's bound: how unlikely it is that so many of a node's users take part in a round."""

import math


def participation_nats(people: int, users: int, fraction: float) -> float:
    """At least so many nats less likely than certain: that ``people`` or more take part.

    Of ``users``, each takes part by itself with probability ``fraction`` in (0, 1]. The bound is
    ``users`` times the divergence of the two shares; 0 for no more than are expected.
    """
    share = people / max(1, users)
    if share <= fraction:
        return 0.0
    rest = (1 - share) * math.log((1 - share) / (1 - fraction)) if share < 1 else 0.0
    return users * (share * math.log(share / fraction) + rest)
