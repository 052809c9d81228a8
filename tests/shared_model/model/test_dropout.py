"""Dropout masks are functions of user, pass, site, position and channel."""

import pytest
import torch

from shared_model.model.dropout import Dropout

KEYS = torch.tensor([11, -(2**62), 2**61 + 3])


def mask(keys: torch.Tensor, length: int, width: int = 64, rate: float = 0.25) -> torch.Tensor:
    return Dropout(rate, keys)(torch.ones(len(keys), length, width))


def test_rate_and_scale() -> None:
    kept = mask(torch.arange(200), 50)
    assert abs((kept == 0).float().mean() - 0.25) < 0.003
    assert abs(kept.mean() - 1) < 0.005
    assert kept.unique().tolist() == pytest.approx([0.0, 256 / 192])


def test_no_row_position_or_channel_is_favoured() -> None:
    dropped = (mask(torch.arange(400), 40) == 0).float()
    for dims in ((0, 1), (0, 2), (1, 2)):
        assert (dropped.mean(dims) - 0.25).abs().max() < 0.05


def test_a_user_keeps_its_mask_in_any_batch_and_padding() -> None:
    together, alone = mask(KEYS, 30), mask(KEYS[1:2], 12)
    assert (together[1:2, -12:] == alone).all()
    assert (together[0] != together[1]).any()


def test_sites_and_keys_differ() -> None:
    dropout, ones = Dropout(0.5, KEYS), torch.ones(3, 20, 64)
    first, second = dropout(ones), dropout(ones)
    agreement = (first == second).float().mean()
    assert 0.45 < agreement < 0.55


@pytest.mark.parametrize("width", [1, 5, 6, 383])
def test_any_width_has_the_masks_of_a_wider_one_with_as_many_lanes(width: int) -> None:
    lanes = -(-width // 4)
    assert (mask(KEYS, 7, width) == mask(KEYS, 7, 4 * lanes)[..., :width]).all()


def test_nothing_is_dropped_without_keys_or_rate() -> None:
    ones = torch.ones(3, 5, 8)
    assert (Dropout()(ones) == ones).all()
    assert (Dropout(0.0, KEYS)(ones) == ones).all()
