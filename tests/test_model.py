"""Parameter groups: one explicit table, loaded whole or not at all (invariant 4)."""

import pytest
import torch

from shared_model.errors import ConfigError, ModelError
from shared_model.model import ModelShape, build, freeze, load_groups, read_groups
from shared_model.stages import STAGES, group_of, names_of, stage_of

SHAPE = ModelShape(num_items=9, hidden=8, heads=2, blocks=1, max_length=5)


def test_every_parameter_belongs_to_one_group_of_the_table() -> None:
    names = build(SHAPE, 0).state_dict().keys()
    known = {group for stage in STAGES.values() for group in stage.groups}
    assert {group_of(name) for name in names} == known
    assert sorted(names) == names_of(names, known)


def test_initialisation_is_a_function_of_name_and_seed() -> None:
    state = torch.random.get_rng_state()
    first, again, other = build(SHAPE, 3), build(SHAPE, 3), build(SHAPE, 4)
    assert (torch.random.get_rng_state() == state).all()
    for name, value in first.state_dict().items():
        assert torch.isfinite(value).all()
        assert (value == again.state_dict()[name]).all()
    assert (first.backbone.positions != other.backbone.positions).any()
    assert not first.item_embedding.weight[0].any()


def test_loading_restores_every_array() -> None:
    source, target = build(SHAPE, 1), build(SHAPE, 2)
    groups = stage_of(1).trained
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


def test_freezing_follows_the_table() -> None:
    model = build(SHAPE, 0)
    freeze(model, stage_of(1))
    assert all(p.requires_grad for p in model.parameters())


def test_an_unknown_stage_or_group_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no such stage"):
        stage_of(9)
    with pytest.raises(ModelError, match="router"):
        names_of(build(SHAPE, 0).state_dict(), ["router"])
