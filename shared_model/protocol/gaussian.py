"""Gaussian noise that nobody can repeat without a secret, and that its owner can.

A run-config is public, so noise that is a function of its seed would hide nothing. It is a function
of a secret on the disk of who draws it: a run that resumes adds the same noise again, and the round
that it repeats tells nothing new.
"""

import hashlib
import hmac
import json
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared_model.errors import ConfigError
from shared_model.files import write_whole
from shared_model.model.sasrec import PAD
from shared_model.stages import TABLE

_BYTES = 32


def read_secret(path: Path) -> bytes | None:
    """A file's secret, or ``None``. ``ConfigError`` if it is cut, or others can read it."""
    try:
        mode, text = path.stat().st_mode & 0o777, path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError("unreadable noise secret", where=str(path), got=str(error)) from error
    if mode & 0o077:
        raise ConfigError(
            "a noise secret that others can read",
            where=str(path),
            expected="mode 600",
            got=f"{mode:o}",
            todo="if nobody did, chmod 600; else what was released under it is not private",
        )
    try:
        return _whole(bytes.fromhex(text))
    except ValueError as error:
        raise ConfigError("damaged noise secret", where=str(path), got=str(error)) from error


def draw_secret() -> bytes:
    """A new secret, from the operating system."""
    return secrets.token_bytes(_BYTES)


def keep_secret(path: Path) -> bytes:
    """The secret of a file, drawn if there is none yet."""
    known = read_secret(path)
    return write_secret(path, draw_secret()) if known is None else known


def write_secret(path: Path, secret: bytes) -> bytes:
    """Put a secret into a file that its owner alone can read, in place of the one there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, secret.hex().encode(), mode=0o600, rivals=True)
    except OSError as error:
        raise ConfigError("cannot keep a noise secret", where=str(path), got=str(error)) from error
    return secret


def derive(secret: bytes, *names: int | str) -> bytes:
    """A key for one purpose (HMAC-SHA256): it tells nothing of the secret or of another key."""
    return hmac.new(secret, json.dumps(names).encode(), hashlib.sha256).digest()


def array_noise(key: bytes, name: str, shape: torch.Size, std: float) -> Tensor:
    """The noise of a named array: float64 [shape]. Padding's row is nobody's and stays."""
    noise = gaussian(derive(key, name), shape, std)
    if name == TABLE:
        noise[PAD] = 0.0
    return noise


def gaussian(key: bytes, shape: torch.Size, std: float) -> Tensor:
    """Normal numbers with that standard deviation, a function of the key: float64 [shape].

    SHAKE-256 makes the bits, Box and Muller (1958) the numbers. They are floating-point numbers,
    which Mironov (CCS 2012) showed to leak in principle: docs/privacy.md.
    """
    pairs = -(-shape.numel() // 2)
    bits = np.frombuffer(hashlib.shake_256(key).digest(16 * pairs), dtype="<u8").reshape(2, pairs)
    radius = np.sqrt(-2 * np.log(_positive(bits[0])))
    angle = 2 * np.pi * _positive(bits[1])
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: shape.numel()]
    return torch.from_numpy(drawn * std).reshape(shape)


def _positive(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in (0, 1], of 53 bits each."""
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)


def _whole(secret: bytes) -> bytes:
    if len(secret) != _BYTES:
        raise ValueError(f"{len(secret)} bytes instead of {_BYTES}")
    return secret
