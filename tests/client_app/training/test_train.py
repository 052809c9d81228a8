"""Local training in batches against the plain loop: one user, one deep copy, plain SGD."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from client_app.data.dataset import Dataset
from client_app.training import losses, objective, train
from client_app.training.train import train_round
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import Arrays, ModelShape, Recommender, build, read_groups
from shared_model.protocol.plan import RoundPlan
from shared_model.stages import stage_of
from tests.conftest import MakeDataset

SHAPE = ModelShape(num_items=30, hidden=16, heads=2, blocks=2, max_length=10)
PLAN = RoundPlan(1, 4, 0, 1.0, 1, 0.5, "targets", 0.25, "", "")


def one_user_loop(
    model: Recommender, dataset: Dataset, rows: np.ndarray, plan: RoundPlan
) -> tuple[Arrays, float, float]:
    """Sum of weight * delta, sum of weights and sum of losses, user by user."""
    start = read_groups(model, stage_of(1).trained)
    sums = {name: torch.zeros_like(value) for name, value in start.items()}
    weight, loss_sum = 0.0, 0.0
    warm = [i for i in range(1, dataset.num_items + 1) if not dataset.cold[i]]
    for row in rows[plan.takes_part(dataset.user_keys[rows])]:
        train = dataset.items[dataset.indptr[row] : dataset.indptr[row + 1] - 2][-11:].tolist()
        if len(train) < 2:
            continue
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=plan.learning_rate)
        targets = torch.tensor([warm.index(item) for item in train[1:]])
        for step in range(plan.local_steps):
            key = torch.from_numpy(plan.dropout_keys(dataset.user_keys[[row]], step))
            hidden = own(torch.tensor([train[:-1]]), Dropout(plan.dropout, key))[0]
            loss = functional.cross_entropy(hidden @ own.item_embedding.weight[warm].T, targets)
            loss_sum += float(loss.detach()) * len(targets) * (step == 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        share = len(targets) if plan.weighting == "targets" else 1.0
        for name, value in read_groups(own, stage_of(1).trained).items():
            sums[name] += share * (value - start[name])
        weight += share
    return sums, weight, loss_sum


@pytest.mark.parametrize("weighting", ["targets", "uniform"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("size", [1, 6, 64])
def test_batches_equal_the_one_user_loop(
    make_dataset: MakeDataset,
    small_histories: dict[int | str, list[int]],
    steps: int,
    weighting: str,
    size: int,
) -> None:
    dataset = make_dataset(small_histories, num_items=30, cold={2, 28})
    plan = dataclasses.replace(PLAN, local_steps=steps, weighting=weighting, fraction=0.7)
    model, rows = build(SHAPE, 0), np.arange(dataset.num_users)
    expected, weight, loss = one_user_loop(model, dataset, rows, plan)
    update = train_round(model, dataset, rows, plan, size)
    assert update.weight == weight > 0
    assert update.loss == pytest.approx(loss, rel=1e-5)
    assert 0 < update.participants < len(rows)
    for name, value in expected.items():
        torch.testing.assert_close(update.arrays[name], value, atol=2e-5, rtol=1e-4)


def assert_equals_the_loop(dataset: Dataset, plan: RoundPlan, size: int) -> None:
    model, rows = build(SHAPE, 0), np.arange(dataset.num_users)
    expected, weight, loss = one_user_loop(model, dataset, rows, plan)
    update = train_round(model, dataset, rows, plan, size)
    assert update.weight == weight
    assert update.loss == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(update.arrays[name], value, atol=2e-5, rtol=1e-4)


def test_stacked_copies_equal_the_one_user_loop(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does with several local steps, on this processor."""
    monkeypatch.setattr(train, "_in_turn", train.side_by_side)
    plan = dataclasses.replace(PLAN, local_steps=3, fraction=0.7)
    assert_equals_the_loop(small_dataset, plan, 6)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_histories_in_one_row_equal_the_one_user_loop(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """What a GPU does with one local step, on this processor."""
    monkeypatch.setattr(objective, "packs", lambda device: True)
    monkeypatch.setattr(losses, "_odds", losses._probabilities)
    plan = dataclasses.replace(PLAN, dropout=dropout, fraction=0.7)
    assert_equals_the_loop(small_dataset, plan, 64)


@pytest.mark.parametrize("steps", [1, 2])
def test_threads_add_up_to_one(small_dataset: Dataset, steps: int) -> None:
    """Invariant 1 within a node; and the same bytes twice, whichever thread is first."""
    plan = dataclasses.replace(PLAN, local_steps=steps)
    model, rows = build(SHAPE, 0), np.arange(small_dataset.num_users)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = train_round(model, small_dataset, rows, plan, 3)
        torch.set_num_threads(3)
        first, again = (train_round(model, small_dataset, rows, plan, 3) for _ in range(2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert first.weight == alone.weight
    assert first.participants == alone.participants
    for name, value in alone.arrays.items():
        torch.testing.assert_close(first.arrays[name], value, atol=1e-5, rtol=1e-4)
        assert (first.arrays[name] == again.arrays[name]).all()


def test_the_global_arrays_are_as_they_were(small_dataset: Dataset) -> None:
    model = build(SHAPE, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for steps in (1, 2):
        plan = dataclasses.replace(PLAN, local_steps=steps)
        train_round(model, small_dataset, np.arange(small_dataset.num_users), plan, 8)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_every_parameter_tensor_moves(small_dataset: Dataset) -> None:
    """Invariant 6, Stage 1: one local step, and one more."""
    rows = np.arange(small_dataset.num_users)
    model = build(SHAPE, 0)
    for _ in range(2):
        update = train_round(model, small_dataset, rows, PLAN, 8)
        still = [name for name, value in update.arrays.items() if not value.any()]
        assert not still
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value += update.arrays[name] / update.weight


def test_cold_items_and_padding_never_move(
    make_dataset: MakeDataset, small_histories: dict[int | str, list[int]]
) -> None:
    dataset = make_dataset(small_histories, num_items=30, cold={2, 28})
    update = train_round(build(SHAPE, 0), dataset, np.arange(dataset.num_users), PLAN, 8)
    moved = update.arrays["item_embedding.weight"].any(1)
    assert (~moved).nonzero().flatten().tolist() == [0, 2, 28]


def test_validation_and_test_items_are_not_in_training(
    make_dataset: MakeDataset, small_histories: dict[int | str, list[int]]
) -> None:
    """Changing what is held out changes nothing that training does."""
    other = {u: [*h[:-2], h[-1], h[-2]] for u, h in small_histories.items()}
    plan = dataclasses.replace(PLAN, dropout=0.0)
    updates = []
    for histories in (small_histories, other):
        dataset = make_dataset(histories, num_items=30)
        rows = np.arange(dataset.num_users)
        updates.append(train_round(build(SHAPE, 0), dataset, rows, plan, 8))
    for name, value in updates[0].arrays.items():
        assert (value == updates[1].arrays[name]).all()


def test_the_loss_goes_down(small_dataset: Dataset) -> None:
    model, losses = build(SHAPE, 0), []
    for round_ in range(30):
        plan = dataclasses.replace(PLAN, round=round_, learning_rate=1.0, dropout=0.0)
        update = train_round(model, small_dataset, np.arange(small_dataset.num_users), plan, 8)
        losses.append(update.loss / update.targets)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value += update.arrays[name] / update.weight
    assert losses[-1] < losses[0] - 0.5
