"""Each user's update is clipped as a whole: against a plain loop, in all stages."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from client_app.data.content import open_content
from client_app.data.dataset import Dataset
from client_app.memory.cache import Recall
from client_app.training.clipping import clipped_weights, covered, update_norms, with_noise
from client_app.training.mixture_objective import MixtureObjective
from client_app.training.objective import BackboneObjective
from client_app.training.train import _in_turn, side_by_side, train_round
from shared_model.model.recommender import Arrays, Recommender, build, freeze, read_groups
from shared_model.protocol.plan import LocalUpdate, MixturePlan, RoundPlan
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

UNIFORM = dataclasses.replace(PLAN, weighting="uniform", learning_rate=0.1, fraction=0.7)


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    return mixed_dataset(make_dataset, mixed_histories())


def model_of(stage: int) -> Recommender:
    return build(SHAPE, 0, stage=STAGES[1]) if stage == 1 else trained_model(stage)


def mixing_of(dataset: Dataset, stage: int) -> tuple[MixturePlan, Recall] | None:
    return None if stage == 1 else (MIXING, Recall(dataset, open_content(dataset, "both")))


def user_by_user(model: Recommender, dataset: Dataset, plan: RoundPlan) -> list[Arrays]:
    """Each participant's update: a deep copy and plain SGD."""
    freeze(model, model.stage)
    start, updates = read_groups(model, model.stage.trained), []
    mixing = mixing_of(dataset, plan.stage)
    for row in np.flatnonzero(plan.takes_part(dataset.user_keys)):
        own = copy.deepcopy(model)
        objective = (
            BackboneObjective(own, dataset, plan)
            if mixing is None
            else MixtureObjective(own, dataset, plan, *mixing)
        )
        batch = objective.batch(np.array([row]))
        learned = [p for p in own.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learned, lr=plan.learning_rate)
        for step in range(plan.local_steps):
            keys = torch.from_numpy(plan.dropout_keys(batch.keys, step))
            losses = objective.per_user_losses(dict(own.named_parameters()), batch.tensors, keys)
            optimizer.zero_grad()
            losses.total.sum().backward()
            optimizer.step()
        after = read_groups(own, own.stage.trained)
        updates.append({name: (after[name] - start[name]).double() for name in start})
    return updates


def norm(update: Arrays) -> float:
    return float(torch.cat([value.flatten() for value in update.values()]).norm())


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_sum_of_clipped_updates_is_that_of_the_plain_loop(
    dataset: Dataset, stage: int, steps: int, size: int
) -> None:
    plan = dataclasses.replace(UNIFORM, stage=stage, local_steps=steps)
    model = model_of(stage)
    updates = user_by_user(model, dataset, plan)
    norms = sorted(norm(update) for update in updates)
    clip = norms[len(norms) // 2]  # half of the users are clipped
    factors = [min(1.0, clip / norm(update)) for update in updates]
    assert 0.05 < min(factors) < max(factors) == 1.0
    mixing = mixing_of(dataset, stage)
    clipped = dataclasses.replace(plan, clip_norm=clip)
    found = train_round(model, dataset, everyone(dataset), clipped, size, mixing)
    for name, value in found.arrays.items():
        expected = sum(f * update[name] for f, update in zip(factors, updates, strict=True))
        torch.testing.assert_close(value.double(), expected, atol=5e-6, rtol=1e-4)
    assert found.weight == found.participants == len(updates)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_user_at_a_time_equals_stacked_copies(dataset: Dataset, stage: int) -> None:
    """A CPU does the first, a GPU the second."""
    model, mixing = model_of(stage), mixing_of(dataset, stage)
    freeze(model, model.stage)
    plan = dataclasses.replace(UNIFORM, stage=stage, clip_norm=0.5)
    objective = (
        BackboneObjective(model, dataset, plan)
        if mixing is None
        else MixtureObjective(model, dataset, plan, *mixing)
    )
    batch = objective.batch(everyone(dataset)[:7])
    names = list(read_groups(model, model.stage.trained))
    sums, told = [], []
    for way in (_in_turn, side_by_side):
        sums.append({name: torch.zeros_like(model.get_parameter(name)) for name in names})
        told.append(way(model, objective, batch, plan, sums[-1]))
    for name in names:
        assert sums[0][name].any()
        torch.testing.assert_close(sums[0][name], sums[1][name], atol=1e-6, rtol=1e-4)
    one, stacked = told
    assert float(one.nats.sum()) == pytest.approx(float(stacked.nats.sum()), rel=1e-5)
    assert one.logs.keys() == stacked.logs.keys()
    for name, value in one.logs.items():
        assert float(value.sum()) == pytest.approx(
            float(stacked.logs[name].sum()), rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_huge_clip_norm_changes_nothing(dataset: Dataset, stage: int) -> None:
    plan = dataclasses.replace(UNIFORM, stage=stage)
    model, mixing = model_of(stage), mixing_of(dataset, stage)
    plain, clipped = (
        train_round(
            model,
            dataset,
            everyone(dataset),
            dataclasses.replace(plan, clip_norm=clip),
            8,
            mixing,
        )
        for clip in (0.0, 1e9)
    )
    for name, value in plain.arrays.items():
        assert value.any()
        torch.testing.assert_close(clipped.arrays[name], value, atol=1e-5, rtol=1e-4)
    assert (clipped.weight, clipped.targets) == (plain.weight, plain.targets)
    assert clipped.loss == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_user_moves_a_sum_by_more_than_the_clip_norm(dataset: Dataset, stage: int) -> None:
    """What differential privacy asks for: two nodes that differ by one user."""
    plan = dataclasses.replace(UNIFORM, stage=stage, fraction=1.0, clip_norm=0.01)
    model, mixing = model_of(stage), mixing_of(dataset, stage)
    rows = everyone(dataset)
    whole = train_round(model, dataset, rows, plan, 6, mixing)
    moved = []
    for row in rows:
        less = train_round(model, dataset, rows[rows != row], plan, 6, mixing)
        moved.append(norm({n: v - less.arrays[n] for n, v in whole.arrays.items()}))
    assert max(moved) <= 0.01 * (1 + 1e-4)
    assert max(moved) >= 0.0099


def test_an_update_that_is_not_finite_adds_nothing() -> None:
    moved = {"a": torch.tensor([[3.0, 4.0], [float("nan"), 1.0], [0.0, 0.5]]), "b": torch.zeros(3)}
    moved["b"][2] = float("inf")
    weights = clipped_weights(moved, torch.ones(3), 1.0)
    assert weights.tolist() == pytest.approx([0.2, 0.0, 0.0])
    assert torch.tensordot(weights, moved["a"], dims=1).tolist() == pytest.approx([0.6, 0.8])
    assert float(weights @ moved["b"]) == 0.0


def test_norms_are_over_all_arrays_together() -> None:
    moved = {"a": torch.tensor([[[3.0], [4.0]], [[0.0], [0.0]]]), "b": torch.tensor([12.0, 2.0])}
    assert update_norms(moved).tolist() == [13.0, 2.0]
    huge = {"a": torch.full((1, 4), 1e30)}
    assert float(update_norms(huge)) == pytest.approx(2e30)


def test_shares_of_nodes_add_up_to_the_variance() -> None:
    plan = dataclasses.replace(PLAN, draw="d", noise_std=3.0, total_users=100)
    update = LocalUpdate({"a": torch.ones(20000)}, 0.0, 5.0, 9, 0, {"alignment": 1.0})
    shares = [with_noise(update, plan, bytes([n]) * 32, users) for n, users in ((1, 64), (2, 36))]
    noise = [share.arrays["a"].double() - 1 for share in shares]
    for found, expected in zip([*noise, sum(noise)], (2.4, 1.8, 3.0), strict=True):
        assert float(found.std()) == pytest.approx(expected, rel=0.02)
        assert abs(float(found.mean())) < 5 * expected / 20000**0.5
    again = with_noise(update, plan, bytes([1]) * 32, 64)
    assert (again.arrays["a"] == shares[0].arrays["a"]).all()
    other = with_noise(update, dataclasses.replace(plan, draw="e"), bytes([1]) * 32, 64)
    correlation = np.corrcoef(noise[0].numpy(), (other.arrays["a"].double() - 1).numpy())[0, 1]
    assert abs(correlation) < 0.05


def test_what_is_not_noised_is_not_told() -> None:
    update = LocalUpdate({"a": torch.ones(2)}, 3.0, 5.0, 9, 3, {"alignment": 1.0})
    told = covered(update)
    assert (told.weight, told.participants) == (3.0, 3)
    assert (told.loss, told.targets, told.logs) == (0.0, 0, {})
