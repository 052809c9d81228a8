"""Stage 1 by a round's candidates against the full softmax, and on any nodes and batches."""

import dataclasses

import numpy as np
import pytest
import torch

from client_app.data.dataset import Dataset
from client_app.training import train
from client_app.training.objective import BackboneObjective, participants
from client_app.training.round_candidates import (
    SampledObjective,
    met_items,
    round_items,
    some_rows,
)
from client_app.training.train import train_round
from shared_model.errors import NodeError
from shared_model.model.recommender import ModelShape, Recommender, build, freeze
from shared_model.protocol.plan import LocalUpdate, RoundPlan
from shared_model.stages import TABLE
from tests.conftest import MakeDataset
from tests.support.dense import dense
from tests.support.strategy import SETTINGS

ITEMS = 400
SHAPE = ModelShape(ITEMS, hidden=16, heads=2, blocks=1, max_length=10)
PLAN = RoundPlan(1, 4, 0, 0.8, 1, 0.5, "targets", 0.25, "", "", candidates=40)
EVERYONE = np.arange(20)


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    """20 users with 3 to 22 of 400 items."""
    random, cold = np.random.default_rng(3), {7, 400}
    warm = [item for item in range(1, ITEMS + 1) if item not in cold]
    histories = {u: random.permutation(warm[: 40 + 18 * u])[: 3 + u].tolist() for u in range(20)}
    return make_dataset(histories, num_items=ITEMS, cold=cold)


def model() -> Recommender:
    """With scores that are far apart."""
    built = build(SHAPE, 0)
    with torch.no_grad():
        built.item_embedding.weight.mul_(6)
    freeze(built, built.stage)
    return built


def met(dataset: Dataset, plan: RoundPlan = PLAN) -> np.ndarray:
    return met_items(dataset, participants(dataset, EVERYONE, plan), SHAPE.max_length)


def losses(own: Recommender, objective: BackboneObjective, rows: np.ndarray) -> torch.Tensor:
    """Of each user, by all logits at once; and their sum in chunks is the same."""
    batch = objective.batch(rows)
    keys = torch.from_numpy(PLAN.dropout_keys(batch.keys, 0))
    found = objective.per_user_losses(dict(own.named_parameters()), batch.tensors, keys).total
    torch.testing.assert_close(
        objective.weighted(batch, keys).total.float(), (found * batch.weights).sum()
    )
    return found


def test_with_all_items_as_candidates_it_is_the_full_softmax(dataset: Dataset) -> None:
    own, rows = model(), participants(dataset, EVERYONE, PLAN)
    everything = round_items(dataset, dataclasses.replace(PLAN, candidates=ITEMS), met(dataset))
    assert everything.items.tolist() == [0, *np.flatnonzero(dataset.warm)]
    expected = losses(own, BackboneObjective(own, dataset, PLAN), rows)
    table = own.item_embedding.weight
    whole = torch.autograd.grad(expected.sum(), [table])[0]
    kept = torch.from_numpy(everything.items)
    with some_rows(own, table.detach()[kept]):
        found = losses(own, SampledObjective(own, dataset, PLAN, everything), rows)
        some = torch.autograd.grad(found.sum(), [own.item_embedding.weight])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some, whole[kept], rtol=1e-4, atol=1e-5)
    assert own.item_embedding.weight is table


def test_a_sample_estimates_the_sum_without_bias(dataset: Dataset) -> None:
    own, rows = model(), np.array([1])  # of one target, whose loss is one logarithm
    exact, ratios = losses(own, BackboneObjective(own, dataset, PLAN), rows).double(), []
    for round_ in range(120):
        plan = dataclasses.replace(PLAN, round=round_)
        competing = round_items(dataset, plan, met_items(dataset, rows, 10))
        with some_rows(own, own.item_embedding.weight.detach()[torch.from_numpy(competing.items)]):
            found = losses(own, SampledObjective(own, dataset, PLAN, competing), rows).double()
        ratios.append(float((found - exact).detach().exp()))
    mean, error = np.mean(ratios), np.std(ratios) / len(ratios) ** 0.5
    assert 0.001 < error < 0.03
    assert abs(mean - 1) < 4.5 * error


@pytest.mark.parametrize(("steps", "clip"), [(1, 0.0), (2, 0.3)])
def test_nodes_and_batches_change_nothing(
    dataset: Dataset, steps: int, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(PLAN, local_steps=steps, clip_norm=clip, weighting="uniform")
    own, everybodys = model(), met(dataset, plan)
    before = own.item_embedding.weight.detach().clone()

    def trained(rows: np.ndarray, size: int) -> LocalUpdate:
        return dense(train_round(own, dataset, rows, plan, size, met=everybodys), ITEMS + 1)

    whole = trained(EVERYONE, 64)
    monkeypatch.setattr(train, "_in_turn", train.side_by_side)
    stacked = trained(EVERYONE, 64)
    apart = sum((trained(EVERYONE[n::7], 1) for n in range(1, 7)), trained(EVERYONE[::7], 1))
    assert whole.weight == apart.weight == stacked.weight > 0
    for name, value in whole.arrays.items():
        torch.testing.assert_close(apart.arrays[name], value, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(stacked.arrays[name], value, atol=1e-6, rtol=1e-4)
    assert torch.equal(own.item_embedding.weight.detach(), before)


def test_only_candidates_and_what_participants_trained_on_move(dataset: Dataset) -> None:
    everybodys = met(dataset)
    trained = [
        dataset.items[dataset.indptr[row] : dataset.indptr[row + 1] - 2][-11:]
        for row in participants(dataset, EVERYONE, PLAN)
    ]
    assert everybodys.tolist() == np.unique(np.concatenate(trained)).tolist()
    update = train_round(model(), dataset, EVERYONE, PLAN, 4, met=everybodys)
    assert update.rows is not None
    assert update.arrays[TABLE].any(1).all()
    drawn = set(update.rows.tolist()) - set(everybodys.tolist())
    assert len(drawn) == 40
    assert not drawn & {0, 7, 400}
    nobody = train_round(model(), dataset, EVERYONE[:0], PLAN, 4, met=everybodys)
    assert nobody.weight == 0
    assert nobody.rows is not None
    assert len(nobody.rows) == len(nobody.arrays[TABLE]) == 0


def test_items_of_a_round_that_cannot_be_are_refused(dataset: Dataset) -> None:
    everybodys = met(dataset)
    with pytest.raises(NodeError, match="not the round's"):
        train_round(model(), dataset, EVERYONE, PLAN, 4, met=everybodys[1:])
    with pytest.raises(NodeError, match="nobody can have trained on"):
        round_items(dataset, PLAN, np.array([3, 7]))


def test_a_catalogues_size_chooses_unless_it_is_set() -> None:
    drawn = [SETTINGS.drawn_candidates(1, warm) for warm in (3_000, 30_000, 30_001)]
    assert drawn == [0, 0, 2_048]
    asked = dataclasses.replace(SETTINGS, candidates=40)
    assert [asked.drawn_candidates(1, warm) for warm in (80, 81)] == [0, 40]
    assert asked.drawn_candidates(2, 81) == 0
    assert dataclasses.replace(asked, dp_noise_multiplier=1.0).drawn_candidates(1, 81) == 0
