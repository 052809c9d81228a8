"""The server's part of secure aggregation: who is lost, what is asked of whom, and the sum.

It relays what it cannot read, and learns the sum of the vectors that came, and nothing else.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from shared_model.errors import NodeError, RoundError
from shared_model.secure.masks import SEED_BYTES, Words, add_mask
from shared_model.secure.sharing import combine, cut
from shared_model.secure.site import Masked
from shared_model.secure.use import Use

Shares = Mapping[str, bytes]  # by the site that dealt them


def lost_sites(use: Use, came: Mapping[str, Masked]) -> list[str]:
    """The sites whose vector did not come. ``RoundError`` if too many are lost for any sum."""
    if len(came) < use.threshold:
        raise _too_few("masked vectors", use, sorted(came))
    return [site for site in use.sites if site not in came]


def is_open(use: Use, lost: Sequence[str]) -> bool:
    """Whether the masks of those that came cancel as they are."""
    return not use.self_masked and not lost


def envelopes_for(site: str, came: Mapping[str, Masked]) -> dict[str, bytes]:
    """What each site that came has sealed for this one."""
    return {sender: masked.envelopes[site] for sender, masked in sorted(came.items())}


def check_masked(use: Use, site: str, masked: Masked, length: int) -> None:
    """``NodeError`` unless a site's answer has a vector of that length and every envelope."""
    if masked.words.shape != (length,) or masked.words.dtype != np.uint32:
        raise NodeError("a masked vector of another size", where=site, expected=str(length))
    if tuple(sorted(masked.envelopes)) != use.sites:
        raise NodeError("a masked vector without its envelopes", where=site)


def check_shares(use: Use, site: str, shares: Shares, lost: Sequence[str]) -> None:
    """``NodeError`` unless a site gave what was asked of it."""
    length = SEED_BYTES * (int(use.self_masked) + len(lost))
    there = [other for other in use.sites if other not in lost]
    if sorted(shares) != there or any(len(share) != length for share in shares.values()):
        raise NodeError("not the shares that were asked for", where=site)


def masked_sum(came: Mapping[str, Masked]) -> Words:
    """The sum of the vectors as they came, modulo 2^32. [D]"""
    vectors = [masked.words for masked in came.values()]
    total = vectors[0].copy()
    for words in vectors[1:]:
        total += words
    return total


def opened_sum(
    use: Use, came: Mapping[str, Masked], lost: Sequence[str], given: Mapping[str, Shares]
) -> Words:
    """The sum [D] of the vectors that came, by the shares that sites gave.

    ``RoundError`` if fewer than the threshold gave any.
    """
    total = masked_sum(came)
    if is_open(use, lost):
        return total
    if len(given) < use.threshold:
        raise _too_few("shares", use, sorted(given))
    dealt = {
        site: {use.place(helper): cut(shares[site]) for helper, shares in given.items()}
        for site in came
    }
    for site, by_helper in dealt.items():
        seeds = [
            combine({helper: shares[at] for helper, shares in by_helper.items()}, use.threshold)
            for at in range(int(use.self_masked) + len(lost))
        ]
        if use.self_masked:
            add_mask(total, seeds.pop(0), -1)
        for other, seed in zip(lost, seeds, strict=True):
            add_mask(total, seed, -1 if use.place(site) < use.place(other) else 1)
    return total


def _too_few(what: str, use: Use, there: Sequence[str]) -> RoundError:
    return RoundError(
        f"too few sites sent {what}: the sum stays closed",
        where=f"round {use.round}",
        expected=f"{use.threshold} of {len(use.sites)} sites",
        got=f"{len(there)}: {', '.join(there)}"[:400],
    )
