"""Tensors as Flower arrays: the bytes that Flower itself makes of them."""

import pytest
import torch
from flwr.app import Array
from torch import Tensor

from shared_model.transport.npy import from_record, to_record


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(5, 3),
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.arange(7, dtype=torch.int32),
        torch.randn(4, 6).double().T,  # by column: sent by row
        torch.randn(8, 2)[::2],
        torch.randint(0, 255, (3, 2, 2), dtype=torch.uint8),
        torch.nn.Parameter(torch.randn(2, 2)),
    ],
    ids=["matrix", "number", "empty", "int32", "transposed", "strided", "bytes", "parameter"],
)
def test_an_array_is_what_flower_makes_of_it(tensor: Tensor) -> None:
    record = to_record({"a": tensor})
    own = Array(tensor.detach().contiguous().numpy())
    assert record["a"] == own
    back = from_record(record)["a"]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor.detach())
