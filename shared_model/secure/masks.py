"""Masks: words of a stream cipher, a function of a seed that serves once.

ChaCha20 (RFC 8439) with a key of its own for each seed: no counter or nonce ever meets a key again,
since no seed does (``site.Session`` refuses a use that was there before).
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Words = npt.NDArray[np.uint32]  # integers modulo 2^32

SEED_BYTES = 16  # what is shared: 128 bits, an element of Shamir's field
_BLOCK = 2**18  # words at a time, which fit in a processor's cache
_FIRST = bytes(16)  # counter and nonce
_SLACK = 63  # bytes that a stream cipher wants beside what it writes


def derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    """A key for one purpose (HKDF-SHA256, RFC 5869)."""
    return HKDF(SHA256(), length, salt=None, info=purpose).derive(secret)


def add_mask(words: Words, seed: bytes, sign: int) -> None:
    """Add the mask of a seed to ``words`` [D] in place, modulo 2^32, or take it off (-1)."""
    stream = Cipher(ChaCha20(derive(seed, b"mask", 32), _FIRST), mode=None).encryptor()
    zeros = np.zeros(min(_BLOCK, len(words)), dtype="<u4")
    room = bytearray(zeros.nbytes + _SLACK)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        stream.update_into(zeros[: len(block)].data.cast("B"), room)
        mask = np.frombuffer(room, dtype="<u4", count=len(block))
        (np.add if sign > 0 else np.subtract)(block, mask, out=block)
