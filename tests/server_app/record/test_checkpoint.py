"""Checkpoints: whole or absent, verified on use, optimizer state and all."""

import errno
import os
from pathlib import Path

import pytest
import torch

from server_app.aggregation.optimizers import ServerOptimizer
from server_app.record.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from shared_model.errors import ManifestError

ARRAYS = {"a.b": torch.tensor([1.0, -2.0]), "c": torch.eye(3)}


def test_round_trip_with_optimizer_state(tmp_path: Path) -> None:
    optimizer = ServerOptimizer("adam")
    moved = optimizer.step(ARRAYS, {n: torch.ones_like(v) for n, v in ARRAYS.items()}, 0.1)
    file, sha256 = save_checkpoint(tmp_path, "c", moved, optimizer=optimizer)
    restored = ServerOptimizer("adam")
    arrays = load_checkpoint(tmp_path / file, sha256, optimizer=restored)
    assert arrays.keys() == ARRAYS.keys()
    assert all((arrays[n] == v).all() for n, v in moved.items())
    assert restored.state.keys() == optimizer.state.keys()
    assert all((restored.state[n] == v).all() for n, v in optimizer.state.items())
    assert save_checkpoint(tmp_path, "c", moved, optimizer=optimizer) == (
        file,
        sha256,
    )  # the same bytes twice


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    file, sha256 = save_checkpoint(tmp_path, "c", ARRAYS)
    path = tmp_path / file
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        broken = bytearray(content)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(ManifestError, match=str(path)):
            load_checkpoint(path, sha256)
    path.write_bytes(content[:-1])
    with pytest.raises(ManifestError, match="changed"):
        load_checkpoint(path, sha256)
    path.unlink()
    with pytest.raises(ManifestError, match="no file"):
        load_checkpoint(path, sha256)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    torch.save(ARRAYS, path)
    from shared_model.fingerprint import file_sha256

    with pytest.raises(ManifestError, match="unreadable"):
        load_checkpoint(path, file_sha256(path))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ManifestError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_tensors_with_strides_are_written_as_they_are(tmp_path: Path) -> None:
    """safetensors refuses a transposed view; the optimizer's state takes its layout from one."""
    optimizer = ServerOptimizer("adam")
    arrays = {"a": torch.arange(12.0).reshape(3, 4).T}
    moved = optimizer.step(arrays, {"a": torch.ones(3, 4).T}, 0.0)
    file, sha256 = save_checkpoint(tmp_path, "c", moved, optimizer=optimizer)
    restored = ServerOptimizer("adam")
    found = load_checkpoint(tmp_path / file, sha256, optimizer=restored)
    assert found["a"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert all(torch.equal(restored.state[n], value) for n, value in optimizer.state.items())
