"""Noise: normal, repeatable with its secret, and with nothing else."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from shared_model.errors import ConfigError
from shared_model.protocol.gaussian import array_noise, derive, gaussian, keep_secret, read_secret

KEY = bytes(range(32))


def test_it_is_normal() -> None:
    drawn = gaussian(KEY, torch.Size([200, 501]), 2.5).numpy().ravel()
    assert stats.kstest(drawn / 2.5, "norm").pvalue > 1e-3
    assert drawn.std() == pytest.approx(2.5, rel=0.01)
    halves = drawn[: drawn.size // 2 * 2].reshape(2, -1)
    assert abs(np.corrcoef(halves)[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.02
    assert stats.kurtosis(drawn) == pytest.approx(0, abs=0.1)


def test_it_is_a_function_of_its_key() -> None:
    one, again = (gaussian(KEY, torch.Size([999]), 1.0) for _ in range(2))
    other = gaussian(derive(KEY, 1), torch.Size([999]), 1.0)
    assert (one == again).all()
    assert abs(np.corrcoef(one.numpy(), other.numpy())[0, 1]) < 0.1
    assert (gaussian(KEY, torch.Size([999]), 3.0) == 3 * one).all()
    assert gaussian(KEY, torch.Size([]), 1.0).shape == torch.Size([])


def test_keys_differ_by_every_name_and_its_type() -> None:
    names = [(), ("a",), ("a", "b"), ("ab",), (1,), ("1",), (1, 2), (12,)]
    keys = {derive(secret, *name) for name in names for secret in (KEY, KEY[::-1])}
    assert len(keys) == 2 * len(names)


def test_padding_stays_zero() -> None:
    noise = array_noise(KEY, "item_embedding.weight", torch.Size([4, 3]), 1.0)
    assert not noise[0].any()
    assert noise[1:].all()
    assert array_noise(KEY, "backbone.positions", torch.Size([4, 3]), 1.0).all()


def test_a_secret_is_drawn_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    assert read_secret(path) is None
    secret = keep_secret(path)
    assert len(secret) == 32
    assert keep_secret(path) == read_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert keep_secret(tmp_path / "other") != secret
    assert [found.name for found in path.parent.iterdir()] == ["secret"]


def test_a_secret_that_others_can_read_or_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    keep_secret(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"others can read.*mode 600.*got 644"):
        keep_secret(path)
    for text in ("", "00ff", "no hex"):
        path.write_text(text)
        os.chmod(path, 0o600)  # noqa: PTH101
        with pytest.raises(ConfigError, match="damaged noise secret"):
            read_secret(path)


def test_a_secret_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on a full disk, nor where a killed process left its half."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot keep a noise secret"):
        keep_secret(tmp_path / "a.secret")
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    left = tmp_path / f"a.secret.{os.getpid()}.tmp"
    left.write_text("00")
    left.chmod(0o644)
    keep_secret(tmp_path / "a.secret")
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]
