"""One user after another: the same as all at once by autograd, also where memories are odd."""

import pytest
import torch
from torch import Tensor

from shared_model.model.looking import Looks
from shared_model.model.matmul import plain_products
from tests.support.asking_mixtures import ROUTED, ask
from tests.support.naive_mixture import (
    HEADS,
    World,
    naive_scores,
    random_mixture,
    random_world,
)

SHARED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


def answers(world: World, routed: bool, scale: float) -> dict[str, Tensor]:
    """Scores, and the gradients of all parameters and of the states."""
    torch.manual_seed(1)
    mixture = random_mixture(routed, scale)
    sequence = world.sequence.clone().requires_grad_()
    scores = ask(mixture, World(sequence, world.items, world.memories))
    pull = torch.linspace(-1, 1, scores.numel()).double().view_as(scores)
    names = dict(mixture.named_parameters())
    wanted = [*names.values(), sequence]
    gradients = torch.autograd.grad((scores * pull).sum(), wanted, allow_unused=True)
    named = zip([*names, "sequence"], gradients, strict=True)
    return {"scores": scores} | {n: g for n, g in named if g is not None}


@ROUTED
@SHARED
@pytest.mark.parametrize(("scale", "tolerance"), [(0.4, 1e-9), (2.0, 1e-2)])
def test_one_by_one_is_as_all_at_once(
    routed: bool, shared: bool, scale: float, tolerance: float
) -> None:
    """At the larger scale some odds are kept from vanishing, which has no gradient: whoever forgets
    that is off by a hundred times; what remains is rounding, since large numbers cancel there."""
    for seed in range(4):
        torch.manual_seed(seed)
        world = random_world(shared)
        found = answers(world, routed, scale)
        with plain_products():
            expected = answers(world, routed, scale)
        assert found.keys() == expected.keys()
        least = 1e-12 * expected["scores"].abs().max()
        for name, value in expected.items():
            error = (found[name] - value).abs().max()
            assert error < tolerance * (value.abs().max() + least), (name, seed)


def test_both_equal_the_formulas_in_loops() -> None:
    torch.manual_seed(0)
    mixture, world = random_mixture(True), random_world(False)
    expected = naive_scores(mixture, world)
    torch.testing.assert_close(ask(mixture, world), expected, atol=1e-9, rtol=1e-9)
    with plain_products():
        torch.testing.assert_close(ask(mixture, world), expected, atol=1e-9, rtol=1e-9)


def test_a_processor_takes_users_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the comparison above would compare one thing with itself."""
    seen = []
    own = Looks.apply
    monkeypatch.setattr(Looks, "apply", lambda *given: seen.append(len(given[1])) or own(*given))
    torch.manual_seed(0)
    mixture, world = random_mixture(True), random_world(False)
    ask(mixture, world)
    with plain_products():
        ask(mixture, world)
    assert seen == [HEADS]
