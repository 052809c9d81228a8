"""Local training in Stages 2 and 3 against the plain loop; what is no part of it."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from client_app.data.content import open_content
from client_app.data.dataset import Dataset
from client_app.memory.cache import Recall
from client_app.training.mixture_objective import MixtureObjective
from client_app.training.train import train_round
from server_app.aggregation.aggregate import reduce_updates
from server_app.aggregation.optimizers import ServerOptimizer
from shared_model.model.recommender import (
    Arrays,
    Recommender,
    build,
    freeze,
    load_groups,
    read_groups,
)
from shared_model.protocol.plan import MIXTURE_LOGS, LocalUpdate, RoundPlan
from shared_model.stages import STAGES
from tests.conftest import MakeDataset
from tests.support.mixed import (
    MIXING,
    PLAN,
    SHAPE,
    everyone,
    mixed_dataset,
    mixed_histories,
    trained_model,
)

STAGE = pytest.mark.parametrize("stage", [2, 3])


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    return mixed_dataset(make_dataset, mixed_histories())


def trained(
    model: Recommender,
    dataset: Dataset,
    rows: np.ndarray,
    plan: RoundPlan,
    size: int = 8,
    modalities: str = "both",
) -> LocalUpdate:
    recall = Recall(dataset, open_content(dataset, modalities))
    return train_round(model, dataset, rows, plan, size, (MIXING, recall))


def one_user_loop(
    model: Recommender, dataset: Dataset, plan: RoundPlan
) -> tuple[Arrays, float, float]:
    """Sum of weight * delta, sum of weights and of losses: a deep copy and plain SGD a user."""
    freeze(model, model.stage)
    start = read_groups(model, model.stage.trained)
    sums = {name: torch.zeros_like(value) for name, value in start.items()}
    recall = Recall(dataset, open_content(dataset, "both"))
    total, nats = 0.0, 0.0
    for row in np.flatnonzero(plan.takes_part(dataset.user_keys)):
        own = copy.deepcopy(model)
        objective = MixtureObjective(own, dataset, plan, MIXING, recall)
        batch = objective.batch(np.array([row]))
        learned = [p for p in own.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learned, lr=plan.learning_rate)
        for step in range(plan.local_steps):
            keys = torch.from_numpy(plan.dropout_keys(batch.keys, step))
            losses = objective.per_user_losses(dict(own.named_parameters()), batch.tensors, keys)
            nats += float(losses.nats.sum()) * (step == 0)
            optimizer.zero_grad()
            losses.total.sum().backward()
            optimizer.step()
        known = min(int(dataset.lengths(np.array([row]))[0]) - 3, SHAPE.max_length)
        share = known if plan.weighting == "targets" else 1.0
        for name, value in read_groups(own, own.stage.trained).items():
            sums[name] += share * (value - start[name])
        total += share
    return sums, total, nats


@STAGE
@pytest.mark.parametrize(("steps", "weighting"), [(1, "targets"), (3, "targets"), (2, "uniform")])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_batches_equal_the_one_user_loop(
    dataset: Dataset, stage: int, steps: int, weighting: str, size: int
) -> None:
    plan = dataclasses.replace(
        PLAN, stage=stage, local_steps=steps, weighting=weighting, fraction=0.7, learning_rate=0.1
    )
    model = trained_model(stage)
    expected, weight, nats = one_user_loop(model, dataset, plan)
    update = trained(model, dataset, everyone(dataset), plan, size)
    assert update.weight == weight > 0
    assert update.loss == pytest.approx(nats, rel=1e-5)
    assert 0 < update.participants < dataset.num_users
    assert update.arrays.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any()
        # a step of a sharpness of 10 is rounded to 1e-6 by the loop, for each of 150 targets
        torch.testing.assert_close(update.arrays[name], value, atol=5e-5, rtol=1e-4)


@STAGE
@pytest.mark.parametrize("steps", [1, 2])
def test_the_arrays_are_as_they_were_and_only_trained_groups_answer(
    dataset: Dataset, stage: int, steps: int
) -> None:
    model = trained_model(stage)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = dataclasses.replace(PLAN, stage=stage, local_steps=steps)
    update = trained(model, dataset, everyone(dataset), plan)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    assert update.arrays.keys() == read_groups(model, STAGES[stage].trained).keys()


@STAGE
@pytest.mark.parametrize("gate", [0.1, 1.0])
def test_two_rounds_move_every_parameter(dataset: Dataset, stage: int, gate: float) -> None:
    """Invariant 6, as it is trained: in float32, with Adam on the server.

    (A much smaller gate moves a sharpness of 10 by less than float32 can tell.)
    """
    model = build(SHAPE, 0, stage=STAGES[2], gate=gate)
    if stage == 3:  # it starts as Stage 2 ended
        two_rounds(model, dataset)
        before, model = model, build(SHAPE, 0, stage=STAGES[3], gate=gate)
        load_groups(model, read_groups(before, STAGES[3].loaded), STAGES[3].loaded)
    arrays = read_groups(model, STAGES[stage].trained)
    start = {name: value.clone() for name, value in arrays.items()}
    two_rounds(model, dataset)
    assert not [name for name, value in arrays.items() if (value == start[name]).all()]


def two_rounds(model: Recommender, dataset: Dataset) -> None:
    """Of a model's stage, in the model itself."""
    stage = model.stage
    optimizer, arrays = ServerOptimizer("adam"), read_groups(model, stage.trained)
    for round_ in (1, 2):
        plan = dataclasses.replace(PLAN, stage=stage.number, round=round_)
        update = trained(model, dataset, everyone(dataset), plan)
        mean = reduce_updates([update], arrays)
        assert mean is not None
        new = optimizer.step(arrays, mean.delta, stage.default_rate)
        with torch.no_grad():
            for name, value in arrays.items():
                value.copy_(new[name])


@STAGE
def test_what_is_held_out_changes_nothing(
    make_dataset: MakeDataset, dataset: Dataset, stage: int
) -> None:
    swapped = {u: [*h[:-2], h[-1], h[-2]] for u, h in mixed_histories().items()}
    other = mixed_dataset(make_dataset, swapped)
    plan = dataclasses.replace(PLAN, stage=stage)
    first, second = (trained(trained_model(stage), d, everyone(d), plan) for d in (dataset, other))
    for name, value in first.arrays.items():
        assert (value == second.arrays[name]).all()
    assert first.logs == second.logs


@STAGE
def test_nodes_add_up_to_the_whole(dataset: Dataset, stage: int) -> None:
    """Invariant 1: the same sums, whatever node and batch a user is in."""
    whole, *others = updates_by_topology(dataset, stage)
    for parts in others:
        for name, value in whole[0].arrays.items():
            total = torch.stack([part.arrays[name] for part in parts]).sum(0)
            torch.testing.assert_close(total, value, atol=2e-5, rtol=1e-4)


@STAGE
def test_no_log_depends_on_who_is_trained_beside_a_user(dataset: Dataset, stage: int) -> None:
    """Invariant 1 for the record, too."""
    whole, *others = updates_by_topology(dataset, stage)
    assert set(whole[0].logs) == set(MIXTURE_LOGS)
    for parts in others:
        for name, log in whole[0].logs.items():
            total = sum(part.logs.get(name, 0.0) for part in parts)
            assert total == pytest.approx(log, rel=1e-4, abs=1e-6), name


def updates_by_topology(dataset: Dataset, stage: int) -> list[list[LocalUpdate]]:
    """One node and batch for all, then smaller batches, three nodes, one a user."""
    model, plan = trained_model(stage), dataclasses.replace(PLAN, stage=stage, fraction=0.8)
    return [
        [
            trained(model, dataset, everyone(dataset)[node::nodes], plan, size)
            for node in range(nodes)
        ]
        for nodes, size in ((1, 64), (1, 1), (3, 4), (18, 16))
    ]


@STAGE
@pytest.mark.parametrize(("asked", "other"), [("visual", "text"), ("text", "visual")])
def test_one_modality_alone_trains_without_the_other(
    dataset: Dataset, stage: int, asked: str, other: str
) -> None:
    model, plan = trained_model(stage), dataclasses.replace(PLAN, stage=stage)
    update = trained(model, dataset, everyone(dataset), plan, modalities=asked)
    for name, value in update.arrays.items():
        assert torch.isfinite(value).all()
        if f"experts.{other}" in name or f"value.{other}" in name:
            assert not value.any(), name
        elif f"experts.{asked}" in name or f"value.{asked}" in name:
            assert value.any(), name
    assert update.logs[f"router_{other}"] == 0 < update.logs[f"router_{asked}"]
