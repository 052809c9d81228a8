"""Fingerprints by which server and nodes know that they run the same code on the same arrays."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a manifest is read without torch
    from torch import Tensor

_PACKAGES = ("client_app", "server_app", "shared_model")


@cache
def app_sha256() -> str:
    """Hash of the three packages' source files, as imported by this process.

    Ray actors may import the ClientApp from another folder than the submitted bundle; comparing
    this hash in every round plan turns that into an error instead of a silent mixture.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def arrays_sha256(arrays: "Mapping[str, Tensor]") -> str:
    """Hash of named arrays: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.flatten().numpy().data)  # no copy: it may be a large table
    return digest.hexdigest()


def rows_sum(rows: Iterable[int], values: "Tensor") -> int:
    """Sum, modulo 2**256, of one sha256 a row: of its number and of its values [K, D] float32.

    The sum over all rows of a table is its version: a few rows that change, change it by theirs.
    Against accidents; who may choose rows could find two tables with one sum.
    """
    array = values.detach().cpu().contiguous().numpy()
    total = 0
    for row, part in zip(rows, array, strict=True):
        digest = hashlib.sha256(row.to_bytes(8, "little") + part.tobytes()).digest()
        total += int.from_bytes(digest, "little")
    return total % 2**256


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """The one JSON text of a value. ``ValueError`` for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def text_sha256(text: str) -> str:
    """Hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
