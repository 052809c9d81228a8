"""Discrete Gaussian noise around real numbers, and how much of it each site adds to a sum.

The distributed discrete Gaussian of Kairouz, Liu and Steinke (ICML 2021), with one change: a site
does not round its numbers and then add noise, it draws integers *around* its numbers. So rounding
adds nothing to what one user can change. docs/privacy.md has the bound on what the sum tells.
"""

import hashlib
import hmac
import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from shared_model.errors import NodeError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_SHARE = (
    8.0  # units: from here on what separates a sum of shares from one Gaussian is < 2^-400
)
TAIL = 12.0  # stds: a sum's number is as far off once in 2^102
_SMOOTHING = 16.0  # units^2 of a sum's variance that the bound takes for its being integers
_UP = 1 + 2.0**-40  # times what rounding errors of a share can take off
_MOST = 2.0**29  # units, for which a word of 64 bits has room
_BLOCK = 2**18  # numbers at a time
_FIRST = bytes(16)  # counter and nonce: a key serves once
_BITS = 53  # of the uniform number that decides at first
_DOUBT = 1024.0  # in 2^-53: more than floating point can be wrong about a probability
_MORE = 256  # bits that decide where these do not


def share_of(std: float, scale: float, threshold: int) -> float:
    """Standard deviation of a site's noise in units, for one of ``std`` on the sum of as many sites
    as the threshold. More sites have more noise.

    Of the sum's variance 16 units^2 do not count: a sum with what is left in continuous noise can
    be made into this one without looking at the data.
    """
    return math.sqrt(((std * scale) ** 2 + _SMOOTHING) / threshold) * _UP


@dataclass(frozen=True)
class Noise:
    """Noise of a site for one vector: a function of its key, which serves once."""

    std: float  # units
    key: bytes  # 32 bytes

    def around(self, centres: Floats) -> Ints:
        """Integers [D], each one of the discrete Gaussian around its centre [D].

        That is x with probability proportional to exp(-(x - centre)^2 / 2 std^2), up to 2^-256.
        ``NodeError`` for a standard deviation that the bound or 64 bits do not reach.
        """
        if not LEAST_SHARE <= self.std <= _MOST:
            raise NodeError(
                "a share of the noise is no noise, or too much",
                expected=f"{LEAST_SHARE:g} to {_MOST:.3g} units",
                got=f"{self.std:.6g}",
            )
        streams = tuple(_stream(self.key, purpose) for purpose in (b"proposed", b"doubt"))
        parts = (centres[at : at + _BLOCK] for at in range(0, len(centres), _BLOCK))
        drawn = [_block(part, self.std, *streams) for part in parts]
        return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)


class _Stream:
    """Words of ChaCha20 (RFC 8439)."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(ChaCha20(key, _FIRST), mode=None).encryptor()

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")

    def integer(self, bits: int) -> int:
        return int.from_bytes(self._cipher.update(bytes(bits // 8)), "little")


def _stream(key: bytes, purpose: bytes) -> _Stream:
    return _Stream(hmac.new(key, purpose, hashlib.sha256).digest())


def _block(centres: Floats, std: float, stream: _Stream, doubt: _Stream) -> Ints:
    """By rejection: what is not accepted is proposed anew."""
    nearest = np.rint(centres)
    off, drawn = centres - nearest, nearest.astype(np.int64)
    pending = np.arange(len(centres))
    while len(pending):
        steps, halvings, possible = _proposed(stream.words(len(pending)), std)
        uniform = (stream.words(len(pending)) >> np.uint64(64 - _BITS)).astype(np.float64)
        accepted = _accepted(steps, off[pending], halvings, uniform, std, doubt) & possible
        drawn[pending[accepted]] += steps[accepted]
        pending = pending[~accepted]
    return drawn


def _proposed(
    words: npt.NDArray[np.uint64], std: float
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Integers [n], how often the density of each was halved [n], and which of them count [n].

    A word is a place in a cell, a sign, and zeros that count cells, each half as likely as the one
    before. Cells are as wide as lets the Gaussian fall faster than that. What has more zeros than a
    word would be accepted less than once in 2^1000, and zero has one sign.
    """
    bits = max(1, math.ceil(math.log2(math.sqrt(2 * math.log(2)) * std + 1)))
    place = (words & np.uint64(2**bits - 1)).astype(np.int64)
    negative = (words >> np.uint64(bits)) & np.uint64(1) == 1
    rest = words >> np.uint64(bits + 1)
    lowest = (rest & (~rest + np.uint64(1))).astype(np.float64)  # a power of two, or 0
    cells = np.maximum(np.frexp(lowest)[1] - 1, 0).astype(np.int64)
    size = (cells << bits) + place
    possible = (rest != 0) & ~(negative & (size == 0))
    return np.where(negative, -size, size), cells, possible


def _accepted(
    steps: Ints, off: Floats, halvings: Ints, uniform: Floats, std: float, doubt: _Stream
) -> npt.NDArray[np.bool_]:
    """Which proposals [n] are accepted: with probability 2^halvings exp(-(step - off)^2 / 2 std^2).

    In floating point where its error cannot matter, else by 256 more bits.
    """
    chance = np.ldexp(np.exp(-((steps - off) ** 2) / (2 * std**2)), halvings + _BITS)
    accepted: npt.NDArray[np.bool_] = uniform < chance
    for at in np.flatnonzero(np.abs(uniform - chance) <= _DOUBT):
        given = int(steps[at]), float(off[at]), int(halvings[at]), int(uniform[at])
        accepted[at] = _decided(*given, std, doubt.integer(_MORE))
    return accepted


def _decided(step: int, off: float, halvings: int, uniform: int, std: float, more: int) -> bool:
    exponent = (Fraction(step) - Fraction(off)) ** 2 / (2 * Fraction(std) ** 2)
    with localcontext(prec=120):  # digits
        power = (Decimal(-exponent.numerator) / Decimal(exponent.denominator)).exp()
        chance = Fraction(power) * 2**halvings
    return bool(Fraction((uniform << _MORE) + more, 1 << (_BITS + _MORE)) < chance)
