"""Real numbers as integers modulo 2^32, whose sums are exact in any order and cannot overflow."""

import math

import numpy as np
import numpy.typing as npt

from shared_model.errors import NodeError
from shared_model.secure.masks import Words
from shared_model.secure.noise import Noise

_HALF = 2**31  # integers lie in [-2^31, 2^31)


def scale_for(bound: float, sites: int) -> float:
    """By what numbers are multiplied: the largest power of two with which a sum cannot overflow.

    ``bound`` is what the absolute value of a number can add up to over all sites; each site rounds
    once, by at most one half.
    """
    return 2.0 ** math.floor(math.log2((_HALF - sites) / bound))


def encoded(
    values: npt.NDArray[np.float32], scale: float, bound: float, noise: Noise | None = None
) -> Words:
    """Numbers [D] as integers, rounded to the nearest 1 / scale, or with noise around them.

    ``NodeError`` if one is not finite or beyond ``bound``, what this site's can be.
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    if not largest <= bound:  # true for NaN, too
        raise NodeError(
            "a sum is beyond what clipping leaves", expected=f"{bound:.6g}", got=f"{largest:.6g}"
        )
    numbers = values.astype(np.float64) * scale  # exact: a power of two
    whole = np.rint(numbers).astype(np.int64) if noise is None else noise.around(numbers)
    return whole.astype(np.uint32)


def decoded(words: Words, scale: float) -> npt.NDArray[np.float64]:
    """Integers modulo 2^32 [D] as the numbers that they stand for."""
    return words.view(np.int32) / scale
