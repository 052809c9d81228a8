"""Every parameter's first value, against a table of them all."""

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from shared_model.errors import ModelError
from shared_model.model.initial import Normal, Starts, initialise
from shared_model.model.recommender import ModelShape, build
from shared_model.seeds import stable_hash
from shared_model.stages import STAGES, Stage

SHAPE = ModelShape(num_items=9, hidden=8, heads=2, blocks=2, max_length=5, visual=12, text=6)
CONSTANT = {
    "mixture.gate": 0.25,
    "mixture.fusion.familiarity": 0.0,
    "mixture.fusion.output.weight": 0.0,
    "mixture.router.weigh.weight": 0.0,
    "mixture.experts.visual.sharpness": 10.0,
    "mixture.experts.visual_head.weight": 0.0,
    "mixture.experts.text_head.weight": 0.0,
    "mixture.experts.unknown": 0.0,
    "mixture.experts.strength": 0.0,
}
TABLES = ("item_embedding.weight", "backbone.positions")


def expected(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    if name in CONSTANT or name.endswith(("bias", "norm.weight")):
        return torch.full(shape, CONSTANT.get(name, float(name.endswith("norm.weight"))))
    if name in TABLES:
        std = 0.07
    elif name.endswith("query_key_value.weight"):
        std = math.sqrt(2 / (8 + 8))
    else:
        std = math.sqrt(2 / sum(shape))
    generator = torch.Generator().manual_seed(stable_hash(seed, "init", name) >> 1)
    value = torch.randn(shape, generator=generator) * std
    if name == "item_embedding.weight":
        value[0] = 0.0
    return value


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: f"stage-{s.number}")
def test_every_parameter_starts_as_the_table_says(stage: Stage, seed: int) -> None:
    model = build(SHAPE, seed, stage=stage, gate=0.25)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected(name, value.shape, seed)), name


class Inner(nn.Module):
    starts: ClassVar[Starts] = {"own": 3.0}

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.empty(2))
        self.layer = nn.Linear(2, 2)


class Outer(nn.Module):
    starts: ClassVar[Starts] = {"left.layer.weight": Normal(2.0), "right.layer.bias": 5.0}

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Inner(), Inner()


def test_a_module_speaks_for_itself_and_for_what_is_in_it() -> None:
    model = Outer()
    initialise(model, 0)
    assert (model.left.own == 3).all()
    assert (model.right.own == 3).all()
    assert (model.left.layer.bias == 0).all()
    assert (model.right.layer.bias == 5).all()
    key = stable_hash(0, "init", "left.layer.weight") >> 1
    drawn = torch.randn(2, 2, generator=torch.Generator().manual_seed(key))
    assert torch.equal(model.left.layer.weight, drawn * 2.0)


def test_a_start_of_a_parameter_that_is_not_there_is_an_error() -> None:
    class Misspelt(Inner):
        starts: ClassVar[Starts] = {"won": 3.0}

    with pytest.raises(ModelError, match="won"):
        initialise(Misspelt(), 0)
