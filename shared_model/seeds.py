"""Randomness as a pure function of names and seed, never of node, order or a global generator."""

import hashlib

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

# key ^ (number * STRIDE) names a numbered draw about one user.
STRIDE = np.uint64(0xD1342543DE82EF95)

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def stable_hash(*parts: int | str) -> int:
    """64-bit hash of a tuple of names and numbers, the same on every machine and in every process.

    Types are part of the hash: ``1`` and ``"1"`` differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def user_key(user_id: int | str) -> int:
    """The 64-bit name under which a user is known to every random choice about it."""
    return stable_hash("user", str(user_id))


def mix(seed: int, keys: UInt64) -> UInt64:
    """Hash every key with a 64-bit seed, vectorised. ``keys`` [N] uint64 -> [N] uint64.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied twice so that seed
    and key are both diffused.
    """
    with np.errstate(over="ignore"):
        return _finalise(_finalise(keys + np.uint64(_GOLDEN)) ^ np.uint64(seed & _MASK))


def _finalise(x: UInt64) -> UInt64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, keys: UInt64) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per key. ``keys`` [N] uint64 -> [N] float64."""
    return (mix(seed, keys) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def rng(*parts: int | str) -> np.random.Generator:
    """A numpy generator that depends on the names alone."""
    return np.random.Generator(np.random.Philox(key=stable_hash(*parts)))


def participates(
    seed: int | str, stage: int, round_: int, fraction: float, keys: UInt64
) -> npt.NDArray[np.bool_]:
    """Poisson participation: which users take part in a round. [N] bool."""
    return uniform(stable_hash(seed, "participate", stage, round_), keys) < fraction
