"""A site's part of secure aggregation: masked vectors, and shares when a sum is opened.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017),
section 4, with keys that serve many sums as in Ma et al., "Flamingo" (IEEE S&P 2023): pair seeds
are derived anew for each use, and their shares travel with the masked vector. Each step returns the
session after it, which has to be on the disk before the answer leaves the site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from secrets import token_bytes

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from shared_model.errors import NodeError
from shared_model.secure.identity import Identity, SignedKey
from shared_model.secure.masks import SEED_BYTES, Words, add_mask, derive
from shared_model.secure.sharing import cut, seal, split, unseal
from shared_model.secure.use import Use, check_use


@dataclass(frozen=True)
class Session:
    """What a site keeps of a session. Whoever has ``private`` can read what it masked."""

    name: str
    private: bytes  # X25519
    number: int = 0  # of the last use that was masked
    masked: str = ""  # its digest, hex
    opened: int = 0  # number of the last use that was opened
    opened_round: int = 0


@dataclass(frozen=True)
class Masked:
    """A site's answer: its vector under masks, and shares of their seeds, sealed for each site."""

    words: Words  # [D]
    envelopes: dict[str, bytes]


def begin(
    name: str, identity: Identity, before: Session | None = None
) -> tuple[SignedKey, Session]:
    """Draw the keys of a session. What was masked and opened in it ``before`` still counts."""
    private = X25519PrivateKey.generate()
    public, own = private.public_key().public_bytes_raw(), private.private_bytes_raw()
    known = before if before is not None and before.name == name else Session(name, own)
    return identity.sign(name, public), replace(known, private=own)


def mask(
    session: Session,
    identity: Identity,
    use: Use,
    keys: Sequence[SignedKey],
    words: Words,
) -> tuple[Masked, Session]:
    """The site's vector ``words`` [D] under its masks. ``NodeError`` for a use that is refused.

    The sum of all sites' masks between pairs is zero. The site's own mask, if there is one, is
    taken off by those who sit on its shares, once it is settled whose vectors are in the sum.
    """
    check_use(use, len(identity.pins or ()))
    _check_fresh(session, use)
    shared = _agreed(session, identity, use, keys)
    pairs = _pair_seeds(shared, identity.site, use)
    own = [token_bytes(SEED_BYTES)] if use.self_masked else []
    masked, place = words.copy(), use.place(identity.site)
    for other, seed in pairs.items():
        add_mask(masked, seed, 1 if place < use.place(other) else -1)
    for seed in own:
        add_mask(masked, seed, 1)
    dealt = [split(seed, use.threshold, len(use.sites)) for seed in (*own, *pairs.values())]
    envelopes = {
        other: seal(_seal_key(shared[other], use, identity.site, other), b"".join(shares))
        for other, *shares in zip(use.sites, *dealt, strict=True)
    }
    after = replace(session, number=use.number, masked=use.digest().hex())
    return Masked(masked, envelopes), after


def reveal(
    session: Session,
    identity: Identity,
    use: Use,
    keys: Sequence[SignedKey],
    lost: Sequence[str],
    envelopes: Mapping[str, bytes],
) -> tuple[dict[str, bytes], Session]:
    """This site's shares, by the site that dealt them: of its own mask, and of its pairs with lost
    sites. ``NodeError`` for what is refused.

    Each site is either lost or not, and a use is opened once. So of a lost site nobody ever gives a
    share of its own mask, and of the others none of a pair with one that is not lost.
    """
    there = [site for site in use.sites if site not in lost]
    _check_opening(session, identity.site, use, there, lost)
    if sorted(envelopes) != there:
        raise NodeError("not one envelope from each site that is there", where=identity.site)
    shared = _agreed(session, identity, use, keys)
    shares = {}
    for sender in there:
        key = _seal_key(shared[sender], use, sender, identity.site)
        own, pairs = _dealt(use, sender, unseal(key, envelopes[sender], sender))
        shares[sender] = b"".join([*own, *(pairs[site] for site in use.sites if site in lost)])
    return shares, replace(session, opened=use.number, opened_round=use.round)


def pair_seeds(
    session: Session, identity: Identity, use: Use, keys: Sequence[SignedKey]
) -> dict[str, bytes]:
    """What a site knows of others' masks, by the other site: what it could tell if it colluded."""
    return _pair_seeds(_agreed(session, identity, use, keys), identity.site, use)


def _check_fresh(session: Session, use: Use) -> None:
    if use.session != session.name:
        raise NodeError("the round is of a session that this site has no keys of")
    if use.number <= session.number:
        raise NodeError(
            "a mask would serve twice",
            expected=f"a use after {session.number}",
            got=str(use.number),
        )
    if use.round <= session.opened_round:
        raise NodeError(
            "the sum of this round was opened already: another of it would tell their difference",
            expected=f"a round after {session.opened_round}",
            got=str(use.round),
        )


def _check_opening(
    session: Session, site: str, use: Use, there: Sequence[str], lost: Sequence[str]
) -> None:
    if use.digest().hex() != session.masked:
        raise NodeError("only the sum that was masked last can be opened", where=site)
    if session.opened >= use.number:
        raise NodeError("this sum was opened already", where=site)
    if site not in there or not set(lost) <= set(use.sites):
        raise NodeError("the lost sites cannot be lost", where=site, got=", ".join(lost)[:200])
    if len(there) < use.threshold:
        raise NodeError(
            "too few sites are in the sum", expected=str(use.threshold), got=str(len(there))
        )


def _agreed(
    session: Session, identity: Identity, use: Use, keys: Sequence[SignedKey]
) -> dict[str, bytes]:
    """The secret that this site has with each of the use's sites, itself included (RFC 7748)."""
    if tuple(key.site for key in keys) != use.sites:
        raise NodeError("not the keys of the round's sites", where=identity.site)
    private, shared = X25519PrivateKey.from_private_bytes(session.private), {}
    for key in keys:
        identity.check(use.session, key)
        try:
            shared[key.site] = private.exchange(X25519PublicKey.from_public_bytes(key.public))
        except ValueError as error:  # not a point that a key can have
            raise NodeError("the key of a site is none", where=ascii(key.site)) from error
    own = keys[use.place(identity.site)]
    if own.public != private.public_key().public_bytes_raw():
        raise NodeError("this site's key of the session is another one", where=identity.site)
    return shared


def _pair_seeds(shared: Mapping[str, bytes], site: str, use: Use) -> dict[str, bytes]:
    purpose = b"pair" + use.digest()
    return {other: derive(shared[other], purpose, SEED_BYTES) for other in use.others(site)}


def _seal_key(shared: bytes, use: Use, sender: str, receiver: str) -> bytes:
    names = b"%d %d" % (use.place(sender), use.place(receiver))
    return derive(shared, b"seal" + use.digest() + names, 32)


def _dealt(use: Use, sender: str, content: bytes) -> tuple[list[bytes], dict[str, bytes]]:
    """An envelope's shares: of the sender's own mask, and by site of its pairs."""
    shares, others = cut(content), use.others(sender)
    own = int(use.self_masked)
    if len(content) != SEED_BYTES * (own + len(others)):
        raise NodeError("an envelope without all shares", where=ascii(sender))
    return shares[:own], dict(zip(others, shares[own:], strict=True))
