"""Checkpoints: safetensors files written whole or not at all, and verified on use."""

import hashlib
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from server_app.record.artifact import write_atomically as write_atomically
from shared_model.errors import ManifestError
from shared_model.fingerprint import file_sha256
from shared_model.model.recommender import Arrays

_MODEL = "model/"


class Stateful(Protocol):
    """What goes on from arrays that it kept between rounds: the optimizer, the guard."""

    state: Arrays


def save_checkpoint(folder: Path, stem: str, arrays: Arrays, **beside: Stateful) -> tuple[str, str]:
    """Write model arrays, and the state of what is named beside them; returns file name and sha256.

    The name holds the hash, so that no other checkpoint of the run is ever written over.
    """
    named = {_MODEL + name: value.contiguous() for name, value in arrays.items()}
    for kind, kept in beside.items():
        named |= {f"{kind}/{name}": value.contiguous() for name, value in kept.state.items()}
    content = save(named)
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"{stem}-{sha256[:12]}.safetensors"
    write_atomically(folder / file, content)
    return file, sha256


def load_checkpoint(path: Path, sha256: str, **beside: Stateful) -> Arrays:
    """The model arrays of a checkpoint; fills the state of what is named beside them.

    ``ManifestError`` if the file is missing, unreadable or not the one that was recorded.
    """
    try:
        found = file_sha256(path) if path.is_file() else ""
        named = load_file(path) if found == sha256 else {}
    except (SafetensorError, OSError) as error:
        raise ManifestError("unreadable checkpoint", where=str(path), got=str(error)) from error
    if found != sha256:
        raise ManifestError(
            "a checkpoint is missing or was changed",
            where=str(path),
            expected=f"sha256 {sha256[:12]}",
            got=found[:12] or "no file",
            todo="restore the file, or train the stage again with redo=true",
        )
    for kind, kept in beside.items():
        kept.state = _strip(named, f"{kind}/")
    return _strip(named, _MODEL)


def _strip(named: Arrays, prefix: str) -> Arrays:
    return {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
