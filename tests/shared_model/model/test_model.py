"""Parameter groups: one explicit table, loaded whole or not at all (invariant 4)."""

import pytest
import torch

from shared_model.errors import ConfigError, ModelError
from shared_model.model.recommender import ModelShape, build, freeze, load_groups, read_groups
from shared_model.stages import GROUPS, STAGES, Stage, group_of, names_of, stage_of

SHAPE = ModelShape(num_items=9, hidden=8, heads=2, blocks=1, max_length=5, visual=12, text=6)
EVERY_STAGE = pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: f"stage-{s.number}")


@EVERY_STAGE
def test_every_parameter_belongs_to_one_group_of_the_table(stage: Stage) -> None:
    names = build(SHAPE, 0, stage=stage).state_dict().keys()
    assert {group_of(name) for name in names} == set(stage.groups)
    assert len(set(stage.groups)) == len(stage.groups)
    assert sorted(names) == names_of(names, stage.groups)
    if stage.number == len(STAGES):
        assert {group_of(name) for name in names} == set(GROUPS)


def test_a_stage_loads_what_the_one_before_had_and_starts_the_rest_fresh() -> None:
    mixture = ("experts", "fusion", "gate")
    assert stage_of(1).loaded == ()
    assert set(stage_of(2).loaded) == {"item_embedding", "backbone"}
    assert set(stage_of(3).loaded) == {"item_embedding", "backbone", *mixture}
    assert [stage.mixes for stage in STAGES.values()] == [False, True, True]


def test_initialisation_is_a_function_of_name_and_seed() -> None:
    state = torch.random.get_rng_state()
    last = STAGES[3]
    first, again, other = (build(SHAPE, seed, stage=last) for seed in (3, 3, 4))
    assert (torch.random.get_rng_state() == state).all()
    for name, value in first.state_dict().items():
        assert torch.isfinite(value).all()
        assert (value == again.state_dict()[name]).all()
    for stage in STAGES.values():  # the same in every stage that has it
        for name, value in build(SHAPE, 3, stage=stage).state_dict().items():
            assert (value == first.state_dict()[name]).all()
    assert (first.backbone.positions != other.backbone.positions).any()
    assert not first.item_embedding.weight[0].any()


@EVERY_STAGE
def test_loading_restores_every_array(stage: Stage) -> None:
    source, target = build(SHAPE, 1, stage=stage), build(SHAPE, 2, stage=stage)
    for groups in (stage.trained, stage.frozen):
        load_groups(target, {n: v.clone() for n, v in read_groups(source, groups).items()}, groups)
    for name, value in target.state_dict().items():
        assert (value == source.state_dict()[name]).all()


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen", "dtype", "broadcast"])
def test_half_a_checkpoint_is_refused_and_nothing_is_copied(fault: str) -> None:
    model = build(SHAPE, 1)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    arrays = {n: v + 1 for n, v in before.items()}
    name = "backbone.final_norm.bias"
    if fault == "missing":
        del arrays[name]
    elif fault == "unexpected":
        name = "backbone.extra"
        arrays[name] = torch.zeros(2)
    elif fault == "dtype":
        arrays[name] = arrays[name].double()
    else:
        arrays[name] = torch.zeros(1 if fault == "broadcast" else 9)
    with pytest.raises(ModelError) as raised:
        load_groups(model, arrays, stage_of(1).trained)
    assert name in str(raised.value)
    assert all((before[n] == v).all() for n, v in model.state_dict().items())


@EVERY_STAGE
def test_freezing_follows_the_table(stage: Stage) -> None:
    model = build(SHAPE, 0, stage=stage)
    freeze(model, stage)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (group_of(name) in stage.trained)
        assert parameter.requires_grad != (group_of(name) in stage.frozen)


def test_a_model_without_a_mixture_says_so() -> None:
    with pytest.raises(ModelError, match="no mixture"):
        build(SHAPE, 0).mix()
    model = build(SHAPE, 0, stage=stage_of(2), gate=0.25)
    assert float(model.mix().gate.detach()) == 0.25


def test_an_unknown_stage_or_group_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no such stage"):
        stage_of(9)
    with pytest.raises(ModelError, match="router"):
        names_of(build(SHAPE, 0).state_dict(), ["router"])
    with pytest.raises(ModelError, match="a parameter without a group"):
        group_of("mixture.gates.weight")
