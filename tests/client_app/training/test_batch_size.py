"""Batches: every user once, the cheapest split, and halves where memory runs out."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from client_app.data.dataset import Dataset
from client_app.training import batch_size as batch_size_module
from client_app.training.batch_size import BatchSize
from client_app.training.objective import BackboneObjective
from client_app.training.train import train_round
from shared_model.errors import NodeError
from shared_model.model.recommender import ModelShape, build
from shared_model.protocol.plan import LocalUpdate, RoundPlan
from shared_model.stages import STAGES

PLAN = RoundPlan(1, 1, 0, 1.0, 1, 1.0, "targets", 0.0, "", "")


def test_a_processor_has_batches_of_one_size() -> None:
    rows = np.arange(40)
    parts = BatchSize(0, "cpu").split(rows, rows)
    assert [len(part) for part in parts] == [16, 16, 8]
    assert [len(part) for part in BatchSize(30, "cuda").split(rows, rows)] == [30, 10]
    assert np.array_equal(np.concatenate(parts), rows)
    assert BatchSize(0, "cuda").split(rows[:0], rows[:0]) == []


def cost(lengths: np.ndarray, cuts: tuple[int, ...]) -> float:
    parts = np.split(lengths, cuts)
    return sum(batch_size_module._START + len(part) * int(part.max()) for part in parts)


@pytest.mark.parametrize("most", [4, 100])
def test_a_gpu_s_batches_are_the_cheapest(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every way to cut nine users."""
    monkeypatch.setattr(batch_size_module, "_START", 50)
    lengths = np.array([1, 2, 2, 9, 10, 30, 31, 90, 200])
    size = BatchSize(0, "cuda")
    size.users = most
    found = size.split(np.arange(9), lengths)
    ways = [
        cuts
        for number in range(9)
        for cuts in itertools.combinations(range(1, 9), number)
        if max(len(part) for part in np.split(lengths, cuts)) <= most
    ]
    least = min(cost(lengths, cuts) for cuts in ways)
    assert cost(lengths, tuple(np.cumsum([len(part) for part in found])[:-1])) == least
    assert max(len(part) for part in found) <= most
    assert np.array_equal(np.concatenate(found), np.arange(9))


@pytest.mark.parametrize("users", [1, 63, 64, 65, 1000, 70_000])
def test_every_user_is_in_one_batch(users: int) -> None:
    lengths = np.sort(np.random.default_rng(0).integers(2, 2000, users))
    parts = BatchSize(0, "cuda").split(np.arange(users), lengths)
    assert np.array_equal(np.concatenate(parts), np.arange(users))
    assert max(len(part) for part in parts) <= batch_size_module.ON_GPU


def test_a_batch_that_does_not_fit_is_trained_in_halves(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same update, although memory ran out after part of it had been added."""
    most, step, tried = 5, BackboneObjective.step, []
    batch_size_module.batch_size.cache_clear()

    def train(users_per_batch: int) -> LocalUpdate:
        model = build(ModelShape(small_dataset.num_items, 8, 2, 1, 10), 0, stage=STAGES[1])
        rows = np.arange(small_dataset.num_users)
        return train_round(model, small_dataset, rows, PLAN, users_per_batch)

    def short_of_memory(self: BackboneObjective, batch: Any, keys: Any, descents: Any) -> Any:
        tried.append(len(batch.keys))
        if len(batch.keys) > most:
            for descent in descents:
                next(iter(descent.arrays.values())).add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, keys, descents)

    expected = train(4)
    monkeypatch.setattr(BackboneObjective, "step", short_of_memory)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.warns(UserWarning, match="at once do not fit"):
        found = train(small_dataset.num_users)
    assert found.participants == expected.participants
    assert found.targets == expected.targets
    for name, value in expected.arrays.items():
        torch.testing.assert_close(found.arrays[name], value, atol=1e-5, rtol=1e-4)
    tried.clear()
    train(small_dataset.num_users)
    assert max(tried) <= most  # remembered
    most = 0
    with pytest.raises(NodeError, match="does not hold the training of one user"):
        train(small_dataset.num_users)
    batch_size_module.batch_size.cache_clear()


def test_a_batch_that_does_not_fit_beside_another_comes_in_its_turn(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made while the one before it is there; without that one it fits, and nothing is cut."""
    make, step, made = BackboneObjective.batch, BackboneObjective.step, []
    trained: list[int] = []

    def short_of_memory(self: BackboneObjective, rows: Any) -> Any:
        made.append(len(rows))
        if len(made) - 1 > len(trained):  # another one has not been trained yet
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(self, rows)

    def trains(self: BackboneObjective, batch: Any, keys: Any, descents: Any) -> Any:
        trained.append(len(batch.keys))
        made[:] = made[: len(trained)]
        return step(self, batch, keys, descents)

    model = build(ModelShape(small_dataset.num_items, 8, 2, 1, 10), 0, stage=STAGES[1])
    rows = np.arange(small_dataset.num_users)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = train_round(model, small_dataset, rows, PLAN, 1)
    monkeypatch.setattr(BackboneObjective, "batch", short_of_memory)
    monkeypatch.setattr(BackboneObjective, "step", trains)
    found = train_round(model, small_dataset, rows, PLAN, 1)
    assert trained == [1] * expected.participants
    for name, value in expected.arrays.items():
        assert torch.equal(found.arrays[name], value)
