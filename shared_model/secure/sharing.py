"""Shares of seeds, so many of which give the seed back and fewer nothing; sealed for who gets them.

Shamir (1979) in GF(2^128), by pycryptodome; ChaCha20-Poly1305 (RFC 8439), by cryptography.
"""

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shared_model.errors import NodeError
from shared_model.secure.masks import SEED_BYTES

_NONCE = bytes(12)  # each key seals one message


def split(seed: bytes, threshold: int, sites: int) -> list[bytes]:
    """Shares of a seed [16 bytes each], by place. Any ``threshold`` of them are enough."""
    return [share for _, share in Shamir.split(threshold, sites, seed, ssss=False)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The seed of which these are shares, by place. The first ``threshold`` of them are used."""
    if len(shares) < threshold:
        raise NodeError("too few shares", expected=f"{threshold} of them", got=str(len(shares)))
    first = sorted(shares.items())[:threshold]
    return bytes(Shamir.combine([(place + 1, share) for place, share in first], ssss=False))


def seal(key: bytes, content: bytes) -> bytes:
    """Content that nobody reads or changes without the key [32 bytes], which seals nothing else."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, content, None)


def unseal(key: bytes, sealed: bytes, sender: str) -> bytes:
    """What was sealed. ``NodeError`` if it was changed, or is of another use."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        raise NodeError("shares that their sender did not seal", where=ascii(sender)) from error


def cut(content: bytes) -> list[bytes]:
    """Shares that were put one behind the other."""
    return [content[at : at + SEED_BYTES] for at in range(0, len(content), SEED_BYTES)]
