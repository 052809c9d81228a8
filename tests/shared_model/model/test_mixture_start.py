"""How the mixture begins: as SASRec to the last bit, and with every parameter about to move."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.model.mixture import Candidates, Memories
from shared_model.model.recommender import ModelShape, Recommender, build
from shared_model.stages import STAGES, group_of
from tests.support.asking_mixtures import ROUTED, ask
from tests.support.naive_mixture import (
    HEADS,
    D,
    N,
    S,
    V,
    World,
    random_mixture,
    random_world,
    silence,
    unit,
)

SHAPE = ModelShape(num_items=30, hidden=D, heads=HEADS, blocks=1, max_length=9, visual=V, text=S)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stage", [2, 3])
def test_it_starts_as_sasrec_to_the_last_bit(stage: int) -> None:
    """Invariant 2: a stage begins exactly where the last one ended, for users side by side too."""
    model = build(SHAPE, 0, stage=STAGES[stage])
    hidden, everything = torch.randn(5, D), catalogue(model)
    memories = bank_of(9, positions=5)
    result = model.mix()(hidden[None], everything, memories)
    warm = ~everything.cold[0]
    assert (result.scores[0][:, warm] == model.score(hidden)[:, warm]).all()
    assert (result.scores[0][:, warm] == (hidden @ model.item_embedding.weight.T)[:, warm]).all()
    assert not result.scores[0][:, ~warm].any()  # nothing is known of cold items yet
    assert result.weights[0, 5].tolist() == [0.5, 0.5]


def catalogue(model: Recommender) -> Candidates:
    """All items, shared by the users; some are cold."""
    number = model.shape.num_items + 1
    cold = torch.arange(number)[None] >= 25
    features = floats(*unit_rows(number))
    return Candidates(
        model.item_embedding.weight[None], *features, cold, torch.arange(number)[None]
    )


def bank_of(number: int, positions: int) -> Memories:
    """One user's bank of some items, the last ones of the catalogue."""
    held, names = torch.rand(1, positions, number) > 0.3, torch.arange(31 - number, 31)[None]
    return Memories(names, *floats(*unit_rows(number)), held)


def unit_rows(number: int) -> tuple[Tensor, Tensor]:
    visual, text = unit(1, number, V), unit(1, number, S)
    visual[:, 1] = text[:, 2] = 0
    return visual, text


def halved(parts: Any) -> Any:
    """Candidates or memories in float32."""
    return type(parts)(*(v.float() if v.is_floating_point() else v for v in vars(parts).values()))


def doubled(parts: Any) -> Any:
    """The same in float64, without gradients."""
    values = (value.detach() for value in vars(parts).values())
    return type(parts)(*(v.double() if v.is_floating_point() else v for v in values))


def floats(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in tensors)


@ROUTED
def test_without_an_output_the_mixture_is_silent_whatever_else_it_learned(routed: bool) -> None:
    mixture = random_mixture(routed).float()
    nn.init.zeros_(mixture.fusion.output.weight)
    nn.init.zeros_(mixture.fusion.familiarity)
    silence(mixture)
    world = random_world(shared=True)
    items = dataclasses.replace(halved(world.items), cold=torch.zeros(1, N) > 0)
    sequence = world.sequence.float()
    scores = ask(mixture, World(sequence, items, halved(world.memories)))
    assert (scores == sequence @ items.ids[0].T).all()


@pytest.mark.parametrize("gate", [0.0001, 0.01, 1.0])
@pytest.mark.parametrize("stage", [2, 3])
def test_two_steps_move_every_parameter_of_the_mixture(stage: int, gate: float) -> None:
    """Invariant 6, however small the gate begins: the output moves first, then what is before."""
    model = build(SHAPE, 0, stage=STAGES[stage], gate=gate).double()
    if stage == 3:  # which starts with the heads of Stage 2, and a router weighs these
        for head in (model.mix().experts.visual_head, model.mix().experts.text_head):
            nn.init.normal_(head.weight, std=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.mix().parameters(), lr=0.5)
    memories = doubled(bank_of(9, positions=4))
    hidden, targets = torch.randn(1, 4, D).double(), torch.tensor([3, 8, 26, 28])
    items = doubled(catalogue(model))
    losses = []
    for _ in range(2):
        loss = functional.cross_entropy(
            ask(model.mix(), World(hidden, items, memories))[0], targets
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    after = model.state_dict()
    still = [name for name in after if (before[name] == after[name]).all()]
    assert {group_of(name) for name in still} == {"item_embedding", "backbone"}
    assert losses[1] < losses[0]
