"""One sum of a session: what all of its sites and the server have to agree on."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from shared_model.errors import NodeError

LEAST_SITES = 3  # of a federation: of two sites, each always knows the other's vector from the sum
MOST_SITES = 64  # each site deals a share of every pair to every other: sites^2 shares a message
NAME_LENGTH = 200


@dataclass(frozen=True)
class Use:
    """A session's keys serve many sums, its uses; masks are drawn anew for each.

    A round that is tried again is another use of the same round.
    """

    session: str  # hex, drawn by the server; sites draw keys for it
    number: int  # rises from use to use: what was drawn for one is never drawn again
    round: int
    sites: tuple[str, ...]  # who is asked for a vector, in order
    threshold: int  # sites without which no sum comes out
    self_masked: bool  # against a server that lies (docs/security.md)

    def digest(self) -> bytes:
        """By which keys are bound to the use: another one in any part has other keys."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()

    def place(self, site: str) -> int:
        """Where a site stands among the sites, from 0."""
        if site not in self.sites:
            raise NodeError("a site is not asked in this round", where=ascii(site)[:NAME_LENGTH])
        return self.sites.index(site)

    def others(self, site: str) -> list[str]:
        """All sites but this one."""
        return [other for other in self.sites if other != site]


def least_threshold(sites: int) -> int:
    """Two thirds of the sites, rounded up.

    With t of n, a lying server needs the help of 2t - n sites or more to learn both secrets of
    another one: each of the rest gives shares of one (Bonawitz et al., CCS 2017, section 6.2).
    """
    return -(-2 * sites // 3)


def threshold_of(share: float, sites: int) -> int:
    """How many of the sites a sum needs: that share of them, and two thirds at least."""
    return max(least_threshold(sites), math.ceil(share * sites - 1e-9))


def spread_of(share: float, sites: int) -> float:
    """How much more noise a sum of all sites has than one of the fewest, each adding its share."""
    return math.sqrt(sites / threshold_of(share, sites))


def check_use(use: Use, pinned: int) -> None:
    """``NodeError`` for a use that hides too little, whoever asks for it.

    ``pinned`` is the number of sites that the asked one knows by their keys; 0 = none: then those
    asked count. Sites that are away are not asked, so these may be fewer.
    """
    known = max(pinned, len(use.sites))
    if sorted(set(use.sites)) != list(use.sites):
        raise NodeError("the sites of a round are not in order", got=", ".join(use.sites)[:200])
    if known > MOST_SITES or 0 < pinned < LEAST_SITES:
        raise NodeError(
            "a sum of so many sites hides nothing, or is not made here",
            expected=f"{LEAST_SITES} to {MOST_SITES} sites",
            got=str(known),
        )
    if not max(2, least_threshold(known)) <= use.threshold <= len(use.sites):
        raise NodeError(
            "the threshold of a sum is too low, or beyond its sites",
            where="run-config key 'secure-threshold'",
            expected=f"{least_threshold(known)} (two thirds of {known} sites) to {len(use.sites)}",
            got=str(use.threshold),
        )
