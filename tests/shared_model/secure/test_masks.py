"""Masks against ChaCha20's published words; numbers as integers and back."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st

from shared_model.errors import NodeError
from shared_model.secure.encoding import decoded, encoded, scale_for
from shared_model.secure.masks import _BLOCK, Words, add_mask, derive
from shared_model.secure.sharing import combine, cut, seal, split, unseal


def test_hkdf_is_that_of_rfc_5869() -> None:
    """Test case 3: no salt, no info."""
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert derive(b"\x0b" * 22, b"", 42).hex() == okm


def test_a_mask_is_the_stream_of_its_key_from_its_first_word_on() -> None:
    """Over several blocks, against one call of the cipher."""
    length = 2 * _BLOCK + 5
    words: Words = np.arange(length, dtype=np.uint32)
    add_mask(words, b"s" * 16, 1)
    stream = Cipher(ChaCha20(derive(b"s" * 16, b"mask", 32), bytes(16)), None).encryptor()
    expected = np.frombuffer(stream.update(bytes(4 * length)), dtype="<u4")
    assert np.array_equal(words - np.arange(length, dtype=np.uint32), expected)
    add_mask(words, b"s" * 16, -1)
    assert np.array_equal(words, np.arange(length, dtype=np.uint32))


@given(st.integers(3, 64), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_sums_of_what_is_allowed_never_overflow(sites: int, bound: float, seed: int) -> None:
    """Each site at its bound, with one sign: the worst that there is."""
    scale = scale_for(bound, sites)
    each = bound / sites
    random = np.random.default_rng(seed)
    vectors = [
        np.array([each, -each, *random.uniform(-each, each, 6)]).astype(np.float32)
        for _ in range(sites)
    ]
    total: Words = np.zeros(8, dtype=np.uint32)
    for vector in vectors:
        total += encoded(vector, scale, each * (1 + 1e-6))
    exact = np.sum([v.astype(np.float64) for v in vectors], axis=0)
    assert np.abs(decoded(total, scale) - exact).max() <= sites / scale / 2 * (1 + 1e-9)
    assert 2 * scale * bound > 2**31 - 64 - 1  # no bit is given away


@pytest.mark.parametrize("value", [1.01, -1.01, float("nan"), float("inf")])
def test_what_clipping_cannot_leave_is_refused(value: float) -> None:
    with pytest.raises(NodeError, match="beyond what clipping leaves"):
        encoded(np.array([0.0, value], dtype=np.float32), 8.0, 1.0)


def test_so_many_shares_give_the_seed_and_fewer_do_not() -> None:
    seed = bytes(range(16))
    shares = dict(enumerate(split(seed, 3, 5)))
    assert combine({k: shares[k] for k in (1, 3, 4)}, 3) == seed
    assert combine(shares, 3) == seed
    with pytest.raises(NodeError, match="too few shares"):
        combine({k: shares[k] for k in (1, 3)}, 3)
    assert combine({k: shares[k] for k in (1, 3)}, 2) != seed


def test_sealed_content_opens_by_its_key_alone() -> None:
    sealed = seal(b"k" * 32, b"0123456789abcdef" * 2)
    assert cut(unseal(b"k" * 32, sealed, "a")) == [b"0123456789abcdef"] * 2
    for key, content in ((b"j" * 32, sealed), (b"k" * 32, sealed[:-1]), (b"k" * 32, b"")):
        with pytest.raises(NodeError, match="did not seal"):
            unseal(key, content, "a")
