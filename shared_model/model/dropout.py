"""Dropout whose mask is a pure function of (user, round, site, position, channel).

A generator would make a user's masks depend on who is trained beside it and on the device. Here
the mask is a hash of a counter (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011), so one SuperNode or a hundred, CPU or GPU, drop the same activations (invariant 1).
"""

from functools import lru_cache

import torch
from torch import Tensor

_LEVELS = 256  # one byte of the hash decides about one activation
_M1, _M2 = 0x7FEB352D, 0x2C1B3C6D


class Dropout:
    """A forward pass's dropout: call it at each site, in order.

    ``keys`` [B] int64 is one 64-bit name per row for this pass; ``None`` drops nothing
    (evaluation, frozen groups). ``rate`` is rounded to 1/256.
    """

    def __init__(self, rate: float = 0.0, keys: Tensor | None = None) -> None:
        self.dropped = round(rate * _LEVELS)
        self.keys = keys if self.dropped else None
        self.site = 0

    def __call__(self, x: Tensor, back: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """``x`` [B, T, D] -> [B, T, D], kept values scaled up.

        Positions count from the right, so that a wider batch, with more padding, changes none.
        ``back`` [B, T] int64: how many were after each, if these are but some of them. With
        ``rows`` [R], ``x`` [R, D] are positions of these of the keys, ``back`` [R].
        """
        if self.keys is None:
            return x
        self.site += 1
        scale = _LEVELS / (_LEVELS - self.dropped)
        keys = _site_key(self.keys, self.site)
        each = keys[:, None, None] if rows is None else keys[rows, None]
        drawn = _random_bytes(each, x, back).to(x.dtype)
        # 0 or the scale by arithmetic: to compare bytes, and to turn the answers into numbers,
        # takes a processor three times as long.
        return x * drawn.sub_(self.dropped - 0.5).clamp(0, 0.5).mul_(2 * scale)


def _random_bytes(keys: Tensor, x: Tensor, back: Tensor | None) -> Tensor:
    """A byte per activation of ``x``, whose shape ``keys`` int32 broadcast to: uint8."""
    length, width = x.shape[-2:]
    lanes = -(-width // 4)
    if back is None:
        counter = _counter(length, lanes, x.device)
    else:
        counter = _numbered(back.to(torch.int32), lanes)
    return _scramble(counter ^ keys).view(torch.uint8)[..., :width]


@lru_cache(maxsize=256)
def _counter(length: int, lanes: int, device: torch.device) -> Tensor:
    """Another number for each position and four channels. [T, lanes] int32."""
    return _numbered(torch.arange(length - 1, -1, -1, device=device, dtype=torch.int32), lanes)


def _numbered(back: Tensor, lanes: int) -> Tensor:
    """The same for positions by how many were after them. [..., T] int32 -> [..., T, lanes]."""
    lane = torch.arange(lanes, device=back.device, dtype=torch.int32)
    return (back[..., None] * lanes + lane) * -1640531527  # golden ratio * 2^32


def _site_key(keys: Tensor, site: int) -> Tensor:
    """Fold 64-bit keys and the site to 32 bits. [B] int64 -> [B] int32."""
    mixed = (keys ^ (site * 0x9E3779B97F4A7C1)) * 0x2545F4914F6CDD1D
    return _scramble((mixed >> 32).to(torch.int32))


def _scramble(x: Tensor) -> Tensor:
    """A 32-bit integer hash: multiply and xor-shift, in wrapping int32. Any shape."""
    x = (x >> 16).bitwise_and_(0xFFFF).bitwise_xor_(x).mul_(_M1)
    x = (x >> 15).bitwise_and_(0x1FFFF).bitwise_xor_(x).mul_(_M2)
    return (x >> 16).bitwise_and_(0xFFFF).bitwise_xor_(x)
