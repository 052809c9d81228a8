"""The router: what it gives to what is missing, its balance, and what it never looks at."""

import copy
import math

import pytest
import torch
from torch import Tensor

from shared_model.model.mixture import Mixture
from shared_model.model.recommender import ModelShape, build
from shared_model.model.router import (
    ItemCentricRouter,
    entropy,
    load_balance,
    masked_softmax,
    present,
    uniform_weights,
)
from shared_model.stages import STAGES
from tests.support.naive_mixture import (
    HEADS,
    D,
    N,
    S,
    V,
    naive_weights,
    random_mixture,
    random_world,
    unit,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def features() -> tuple[Tensor, Tensor]:
    """Items with both, without a picture, without a text, with neither, with both."""
    visual, text = unit(5, V), unit(5, S)
    visual[1] = text[2] = visual[3] = text[3] = 0
    return visual, text


EXPECTED = torch.tensor([[0.5, 0.5], [0, 1], [1, 0], [0, 0], [0.5, 0.5]]).double()


def trained(mixture: Mixture) -> ItemCentricRouter:
    assert mixture.router is not None
    return mixture.router


def test_it_starts_uniform_and_gives_nothing_to_what_is_missing() -> None:
    shape = ModelShape(num_items=4, hidden=D, heads=HEADS, blocks=1, max_length=4, visual=V, text=S)
    fresh = build(shape, 0, stage=STAGES[3]).mix().router
    assert fresh is not None
    visual, text = features()
    assert torch.equal(fresh(visual.float(), text.float()), EXPECTED.float())
    assert torch.equal(uniform_weights(visual, text), EXPECTED)
    assert present(visual, text).tolist() == (EXPECTED > 0).tolist()
    weights = trained(random_mixture(True))(visual, text)
    assert torch.equal(weights[1:4], EXPECTED[1:4])
    assert abs(weights[0, 0] - 0.5) > 0.01
    torch.testing.assert_close(weights[[0, 1, 2, 4]].sum(-1), torch.ones(4).double())


def test_weights_equal_the_formula_in_a_loop() -> None:
    mixture, (visual, text) = random_mixture(True), features()
    weights = trained(mixture)(visual, text)
    for n in range(5):
        expected = torch.stack(naive_weights(mixture, visual[n], text[n]))
        torch.testing.assert_close(weights[n], expected)


def test_masked_softmax_is_a_softmax_of_the_usable_with_finite_gradients() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    usable = torch.tensor([[False] * 4, [True, False, True, True], [True] * 4])
    weights = masked_softmax(logits, usable)
    assert not weights[0].any()
    assert weights[1, 1] == 0
    torch.testing.assert_close(weights[1, [0, 2, 3]], logits[1, [0, 2, 3]].softmax(-1))
    torch.testing.assert_close(weights[2], logits[2].softmax(-1))
    weights.square().sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()
    assert (logits.grad[1] != 0).tolist() == [True, False, True, True]


def test_load_balance_is_zero_when_even_and_one_when_one_has_all() -> None:
    almost = torch.tensor([[1 - 1e-7, 1e-7], [1 - 1e-7, 1e-7]])
    assert load_balance(torch.full((3, N, 2), 0.5)).tolist() == [0.0] * 3
    assert load_balance(almost) == pytest.approx(1.0, abs=1e-5)
    assert load_balance(torch.tensor([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(0.0, abs=1e-12)
    weights = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    assert load_balance(weights) == pytest.approx(2 * (0.2**2 + 0.2**2))  # shares 0.7 and 0.3
    batch = torch.stack([weights, almost])
    assert load_balance(batch).tolist() == pytest.approx([0.16, 1.0], abs=1e-5)  # user by user


def test_what_had_no_choice_is_no_imbalance() -> None:
    missing = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.2]])
    assert load_balance(missing) == pytest.approx(load_balance(missing[2:]).item())
    for alone in (missing[:2], torch.zeros(3, 2)):
        assert load_balance(alone) == 0


def test_entropy_is_in_nats_over_all_candidates() -> None:
    assert entropy(torch.full((N, 2), 0.5)) == pytest.approx(math.log(2))
    mixed = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.0, 0.0], [0.9, 0.1]]])
    second = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert entropy(mixed).tolist() == pytest.approx([math.log(2) / 2, second / 2])


def test_load_balance_pulls_the_router_to_the_middle() -> None:
    router, visual, text = ItemCentricRouter(V, S, 16), torch.randn(40, V), torch.randn(40, S)
    with torch.no_grad():
        router.weigh.weight.copy_(torch.tensor([[0.5], [-0.5]]).expand(2, 16))
    optimizer, losses = torch.optim.SGD(router.parameters(), lr=0.05), []
    for _ in range(60):
        loss = load_balance(router(visual, text))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.01
    assert losses[-1] < losses[0] / 10


def test_it_never_looks_at_the_sequence_the_ids_or_the_memory() -> None:
    """The weights are a function of the candidates' content alone."""
    mixture, world = random_mixture(True), random_world(shared=True)
    inputs = [world.sequence.requires_grad_(), world.items.ids.requires_grad_()]
    inputs += [world.memories.visual.requires_grad_(), world.memories.text.requires_grad_()]
    weights = mixture(*vars(world).values()).weights
    assert weights.requires_grad
    grads = torch.autograd.grad(weights.square().sum(), inputs, allow_unused=True)
    assert grads == (None, None, None, None)
    assert torch.equal(weights, trained(mixture)(world.items.visual, world.items.text))


def test_sasrecs_share_does_not_depend_on_it() -> None:
    """It weighs modalities against each other: whatever it says, `sequence @ ids` stays whole."""
    mixture, world = random_mixture(True), random_world(shared=True)
    share, warm = world.sequence @ world.items.ids[0].T, ~world.items.cold[0]
    weights = []
    for scale in (0.0, 1.0, 50.0):
        scaled = copy.deepcopy(mixture)
        with torch.no_grad():
            trained(scaled).weigh.weight.mul_(scale)
            mixed = scaled(*vars(world).values())
            scaled.gate.fill_(0.0)
            alone = scaled(*vars(world).values())
        by_id = alone.scores - world.sequence @ alone.content[0].T
        torch.testing.assert_close(by_id[..., warm], share[..., warm])
        assert (mixed.scores - share)[..., warm].abs().max() > 0.01
        weights.append(mixed.weights)
    assert (weights[0] - weights[2]).abs().max() > 0.1
