"""Sketches: linear, and inner products are those of the arrays, nearly."""

import pytest
import torch

from server_app.aggregation.sketch import BUCKETS, sketch
from shared_model.model.recommender import Arrays
from shared_model.stages import TABLE


def arrays(seed: int) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    shapes = {TABLE: (300, 50), "backbone.w": (64, 64), "small": (7, 3)}
    # Rows that are much alike, as an item table's are: signs of rows alone would not do.
    return {
        name: torch.randn(*shape, generator=generator) + torch.randn(shape[1], generator=generator)
        for name, shape in shapes.items()
    }


def inner(a: Arrays, b: Arrays) -> float:
    return sum(float((a[name].double() * b[name]).sum()) for name in a)


def test_inner_products_are_kept() -> None:
    errors = []
    for seed in range(0, 60, 2):
        a, b = arrays(seed), arrays(seed + 1)
        b = {name: b[name] + 0.3 * a[name] for name in b}
        scale = (inner(a, a) * inner(b, b)) ** 0.5
        errors.append((float(sketch(a) @ sketch(b)) - inner(a, b)) / scale)
        assert float(sketch(a).square().sum()) == pytest.approx(inner(a, a), rel=0.15)
    found = torch.tensor(errors)
    assert found.abs().max() < 5 / BUCKETS**0.5
    assert abs(float(found.mean())) < 4 * float(found.std()) / len(errors) ** 0.5


def test_a_sketch_is_linear() -> None:
    a, b = arrays(0), arrays(1)
    both = sketch({name: 2 * a[name] - 3 * b[name] for name in a})
    assert torch.allclose(both, 2 * sketch(a) - 3 * sketch(b), atol=1e-3)


def test_rows_are_a_table_with_zeros_elsewhere() -> None:
    some, whole = arrays(0), arrays(0)
    rows = torch.tensor([1, 7, 8, 250, 299], dtype=torch.int32)
    whole[TABLE] = torch.zeros(300, 50).index_copy_(0, rows.long(), some[TABLE][rows.long()])
    some[TABLE] = some[TABLE][rows.long()]
    assert torch.allclose(sketch(some, rows, 300), sketch(whole), atol=1e-4)


def test_names_tell_equal_arrays_apart() -> None:
    one = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    a, b = sketch({"a": one}), sketch({"b": one})
    assert abs(float(a @ b)) < 0.1 * float(a.norm() * b.norm())
