"""Updates of some rows against those with all rows; lazy Adam against torch's, row by row."""

import dataclasses

import pytest
import torch

from server_app.aggregation.aggregate import check_update, reduce_updates
from server_app.aggregation.optimizers import ServerOptimizer
from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import TABLE
from tests.support.dense import dense
from tests.support.strategy import NODE, SETTINGS

ITEMS = 9
ARRAYS: Arrays = {TABLE: torch.zeros(ITEMS + 1, 2), "a": torch.zeros(3)}
CHECKED = dataclasses.replace(SETTINGS, fraction_train=1.0)


def update(rows: list[int], seed: int, weight: float = 2.0) -> LocalUpdate:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(rows), 2, generator=generator)
    arrays = {TABLE: table, "a": torch.randn(3, generator=generator)}
    told = torch.tensor(rows, dtype=torch.int32)
    return LocalUpdate(arrays, weight, 1.0, int(weight), 1, rows=told)


@pytest.mark.parametrize("aggregation", ["mean", "clipped", "median", "trimmed"])
def test_rows_aggregate_as_whole_tables_do(aggregation: str) -> None:
    idle = dataclasses.replace(update([], 0, 0.0), participants=0)
    updates = [update([1, 4, 7], 1), update([4], 2, 1.0), idle, update([2, 4, 9], 3)]
    found = reduce_updates(updates, ARRAYS, aggregation, 0.34)
    whole = [dense(one, ITEMS + 1) for one in updates]
    expected = reduce_updates(whole, ARRAYS, aggregation, 0.34)
    assert found is not None
    assert expected is not None
    assert found.rows is not None
    assert found.rows.tolist() == [1, 2, 4, 7, 9]
    assert expected.rows is None
    assert torch.equal(found.delta[TABLE], expected.delta[TABLE][found.rows])
    assert torch.equal(found.delta["a"], expected.delta["a"])
    assert found.delta[TABLE].any()


BAD = [
    torch.tensor([1, 1, 7], dtype=torch.int32),
    torch.tensor([4, 1, 7], dtype=torch.int32),
    torch.tensor([0, 4, 7], dtype=torch.int32),
    torch.tensor([1, 4, 10], dtype=torch.int32),
    torch.tensor([-1, 4, 7], dtype=torch.int32),
    torch.tensor([1, 4, 7]),
    torch.tensor([1.0, 4.0, 7.0]),
    torch.tensor([[1, 4, 7]], dtype=torch.int32),
    torch.tensor([1, 4], dtype=torch.int32),
    torch.arange(1, 1000, dtype=torch.int32),
    torch.tensor(3, dtype=torch.int32),
    None,
]


@pytest.mark.parametrize("rows", BAD)
def test_rows_that_cannot_be_are_refused(rows: torch.Tensor | None) -> None:
    good = update([1, 4, 7], 1)
    check_update(good, ARRAYS, NODE, CHECKED, in_rows=True)
    bad = dataclasses.replace(good, rows=rows)
    with pytest.raises(Exception, match=r"rows|fit the model|form") as refusal:
        check_update(bad, ARRAYS, NODE, CHECKED, in_rows=True)
    assert type(refusal.value).__module__ == NodeError.__module__
    with pytest.raises(NodeError, match="form"):
        check_update(good, ARRAYS, NODE, CHECKED)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_each_row_moves_by_its_own_steps(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 2, generator=generator)
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    make = {
        "sgd": lambda p: torch.optim.SGD([p], lr=0.1),
        "momentum": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99), eps=1e-5),
    }[kind]
    references = [make(parameter) for parameter in alone]
    ours, arrays = ServerOptimizer(kind), {TABLE: start}
    for rows in ([0, 1], [1, 3], [1], [3], [0, 1, 3], [0]):
        delta = torch.randn(len(rows), 2, generator=generator)
        before = arrays[TABLE].clone()
        moved = ours.step(arrays, {TABLE: delta}, 0.1, torch.tensor(rows))
        assert torch.equal(arrays[TABLE], before)
        arrays = moved
        for row, change in zip(rows, delta, strict=True):
            alone[row].grad = -change
            references[row].step()
    expected = torch.stack([parameter.detach() for parameter in alone])
    torch.testing.assert_close(arrays[TABLE], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(arrays[TABLE][[2, 4]], start[[2, 4]])
