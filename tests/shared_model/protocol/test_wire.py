"""Rounding for the wire: bounds, no bias, nothing that depends on other rows, nothing silent."""

import numpy as np
import pytest
import torch

from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol.wire import ROWS, Wire, up
from shared_model.stages import TABLE
from tests.support.strategy import SETTINGS

FORMATS = ["bfloat16", "int8"]
GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randn(37, 10, generator=GENERATOR) * 10.0 ** torch.arange(-30, 7)[:, None]
MATRIX[3], MATRIX[4] = 0.0, torch.tensor([127.0, -127.0] * 5)
MATRIX[5] = 1e-41 * torch.arange(10)
ARRAYS: Arrays = {TABLE: MATRIX, "bias": torch.randn(5), "gate": torch.tensor(0.3)}


def units(dtype: str, matrix: torch.Tensor) -> torch.Tensor:
    """The distance of neighbours at most: of each row's largest, or of each number."""
    if dtype == "int8":
        return matrix.abs().amax(1, keepdim=True) / 63.5 + 1e-37
    return matrix.abs() * 2.0**-7 + 1e-40


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_arrives_is_near_and_rounded_once(dtype: str) -> None:
    wire = Wire(dtype, 3)
    seen = wire.seen(ARRAYS)
    assert seen.keys() == ARRAYS.keys()
    assert ((seen[TABLE] - MATRIX).abs() <= units(dtype, MATRIX)).all()
    assert not torch.equal(seen[TABLE], MATRIX)
    assert torch.equal(seen["bias"], ARRAYS["bias"])
    assert torch.equal(seen["gate"], ARRAYS["gate"])
    assert torch.equal(wire.seen(seen)[TABLE], seen[TABLE])
    sent = sum(value.numel() * value.element_size() for value in wire.encode(ARRAYS).values())
    assert sent == {"bfloat16": 37 * 10 * 2, "int8": 37 * 11}[dtype] + 24


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_is_without_bias(dtype: str) -> None:
    matrix = torch.randn(8, 64, generator=GENERATOR)
    draws = torch.stack([Wire(dtype, seed).seen({"a": matrix})["a"] for seed in range(600)])
    error = (draws.double().mean(0) - matrix) / units(dtype, matrix)
    assert error.abs().max() < 4.5 * 0.5 / 600**0.5
    assert error.mean().abs() < 4.5 * 0.5 / (600 * error.numel()) ** 0.5


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_is_rounded_by_its_number_alone(dtype: str) -> None:
    rows, wire = torch.tensor([2, 9, 30]), Wire(dtype, 3)
    some = wire.seen({TABLE: MATRIX[rows], ROWS: rows.int()})
    assert torch.equal(some[TABLE], wire.seen(ARRAYS)[TABLE][rows])
    assert torch.equal(some[ROWS], rows.int())
    none = wire.seen({TABLE: MATRIX[:0], ROWS: rows[:0].int()})
    assert none[TABLE].shape == (0, 10)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(dtype: str, bad: float) -> None:
    matrix = MATRIX.clone()
    matrix[7, 2] = bad
    seen = Wire(dtype, 3).seen({"a": matrix})["a"]
    assert not seen[7].isfinite().all()
    assert seen[8:].isfinite().all()


def test_a_matrix_in_another_format_is_refused() -> None:
    sent = Wire("int8", 0).encode(ARRAYS)
    exponents = TABLE + "/exponents"
    lost = {name: value for name, value in sent.items() if name != exponents}
    for bad in (
        ARRAYS,
        Wire("bfloat16", 0).encode(ARRAYS),
        lost,
        sent | {exponents: sent[exponents][1:]},
        sent | {exponents: sent[exponents].int()},
        sent | {TABLE: sent[TABLE].int()},
    ):
        with pytest.raises(NodeError, match="matrix"):
            Wire("int8", 0).decode(bad)
    with pytest.raises(NodeError, match="another format"):
        Wire("bfloat16", 0).decode(sent)


def test_updates_of_clipped_users_are_not_rounded() -> None:
    assert up(SETTINGS, 1, 2, "a").dtype == "float32"
    private = {"wire_dtype": "int8", "dp_clip_norm": 1.0}
    assert up(type(SETTINGS)(**{**vars(SETTINGS), **private}), 1, 2, "a").dtype == "float32"
    rounded = type(SETTINGS)(**{**vars(SETTINGS), "wire_dtype": "int8"})
    seeds = {up(rounded, *of).seed for of in ((1, 2, "a"), (1, 2, "b"), (1, 3, "a"), (2, 2, "a"))}
    assert len(seeds) == 4
