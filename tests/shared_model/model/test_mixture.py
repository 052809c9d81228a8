"""The mixture: one scoring rule in both call modes, equal to its formulas written as loops."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from shared_model.model.dropout import Dropout
from shared_model.model.mixture import Candidates, Memories, mask_repeated_targets
from tests.support.asking_mixtures import (
    ROUTED,
    ask,
)
from tests.support.naive_mixture import (
    STRENGTH_SCALE,
    B,
    D,
    N,
    World,
    naive_scores,
    random_mixture,
    random_world,
    silence,
    unit,
)
from tests.support.naive_mixture import L as BANK

SHARED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@ROUTED
@SHARED
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_formulas_in_loops(routed: bool, shared: bool, seed: int) -> None:
    torch.manual_seed(seed)
    mixture, world = random_mixture(routed), random_world(shared)
    expected = naive_scores(mixture, world)
    torch.testing.assert_close(ask(mixture, world), expected, atol=1e-9, rtol=1e-9)
    plain = random_mixture(routed)
    plain.load_state_dict({n: v * (n != "gate") for n, v in mixture.state_dict().items()})
    assert (ask(plain, world) - expected).abs().max() > 0.1  # the mixture has a say in it


@ROUTED
def test_the_result_tells_vectors_content_and_weights(routed: bool) -> None:
    mixture, world = random_mixture(routed), random_world(shared=True)
    result = mixture(world.sequence, world.items, world.memories)
    cold, content = world.items.cold[0], result.content[0]
    alone = mixture.experts.unknown + (1 + STRENGTH_SCALE * mixture.experts.strength) * content
    assert (result.vectors[0, cold] == alone[cold]).all()
    assert (result.vectors[0, ~cold] == (world.items.ids[0] + content)[~cold]).all()
    assert not result.content[0, 3].any()  # neither picture nor text
    assert result.weights[0, :4].sum(-1).tolist() == pytest.approx([1, 1, 1, 0])


@ROUTED
def test_one_position_for_each_user_is_the_evaluation_mode(routed: bool) -> None:
    """[B, N] candidates -> [B, N] scores, of each user alone and of one candidate alone."""
    mixture, world = random_mixture(routed), random_world(shared=False)
    one = World(world.sequence[:, :1], world.items, at(world.memories, slice(0, 1)))
    scores = ask(mixture, one)
    assert scores.shape == (B, 1, N)
    for user in range(B):
        rows = slice(user, user + 1)
        for n in range(N):
            alone = Candidates(*(v[rows, n : n + 1] for v in vars(world.items).values()))
            held = at(Memories(*(v[rows] for v in vars(world.memories).values())), slice(0, 1))
            mine = ask(mixture, World(world.sequence[rows, :1], alone, held))
            torch.testing.assert_close(mine[0, 0, 0], scores[user, 0, n], atol=1e-12, rtol=1e-12)


def at(memories: Memories, positions: slice) -> Memories:
    return dataclasses.replace(memories, held=memories.held[:, positions])


@ROUTED
def test_in_batch_targets_are_each_others_negatives_but_for_duplicates(routed: bool) -> None:
    """Targets of the positions -> [P, P] scores; the diagonal has every position's own target."""
    mixture, world = random_mixture(routed), random_world(shared=True)
    targets = torch.tensor([4, 0, 4, 2])
    items = Candidates(*(value[:, targets] for value in vars(world.items).values()))
    sequence = torch.randn(1, 4, D).double()
    first = Memories(*(value[:1] for value in vars(world.memories).values()))
    bank = dataclasses.replace(first, held=torch.rand(1, 4, BANK) > 0.4)
    scores = ask(mixture, World(sequence, items, bank))[0]
    expected = naive_scores(mixture, World(sequence, items, bank))[0]
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=1e-9)
    masked = mask_repeated_targets(scores, targets)
    assert (masked == -torch.inf).nonzero().tolist() == [[0, 2], [2, 0]]
    kept = masked > -torch.inf
    assert (masked[kept] == scores[kept]).all()
    losses = functional.cross_entropy(masked, torch.arange(4), reduction="none")
    others = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    for row, columns in enumerate(others):
        direct = expected[row, columns].logsumexp(0) - expected[row, row]
        torch.testing.assert_close(losses[row], direct)


def test_repeated_targets_are_masked_in_every_user_alone() -> None:
    targets = torch.tensor([[7, 3, 7, 5], [1, 2, 3, 4]])
    masked = mask_repeated_targets(torch.ones(2, 4, 4), targets)
    assert (masked == -torch.inf).nonzero().tolist() == [[0, 0, 2], [0, 2, 0]]


def test_the_untrained_id_of_a_cold_item_is_never_read() -> None:
    mixture, world = random_mixture(True), random_world(shared=True)
    other = torch.where(world.items.cold[..., None], 99.0, world.items.ids)
    changed = dataclasses.replace(world, items=dataclasses.replace(world.items, ids=other))
    assert (ask(mixture, world) == ask(mixture, changed)).all()


@SHARED
def test_a_cold_candidate_cannot_be_familiar(shared: bool) -> None:
    """Nobody has seen it; one that is known feels that it was seen, and both meet all others."""
    mixture, world = random_mixture(True), random_world(shared)
    world.memories.held[:, :, :5] = True
    before = ask(mixture, world)
    for place, name in ((0, 1), (1, 2)):  # of the bank; the names of candidates 0 and 1
        forgotten = world.memories.held.clone()
        forgotten[:, :, place] = False
        held = dataclasses.replace(world.memories, held=forgotten)
        changed = (ask(mixture, dataclasses.replace(world, memories=held)) - before).abs() > 1e-9
        itself = world.items.names[0] == name
        assert not changed[..., itself & world.items.cold[0]].any()
        assert changed[..., itself & ~world.items.cold[0]].all()
        assert changed[..., [0, 4]][..., ~itself[[0, 4]]].all()  # both have a picture and a text


def test_no_candidate_meets_its_own_features_in_memory() -> None:
    """That it was seen is all that its place in memory says, whatever its features there."""
    mixture, world = random_mixture(True), random_world(shared=False)
    world.memories.held[:, :, :5] = True
    other = world.memories.visual.clone()
    other[:, 0] = unit(1, 1, other.shape[-1])[:, 0]  # of candidate 0, for all users
    memories = dataclasses.replace(world.memories, visual=other)
    changed = ask(mixture, world) - ask(mixture, dataclasses.replace(world, memories=memories))
    assert (changed[..., 0].abs() < 1e-12).all()
    assert (changed[..., 4].abs() > 1e-9).all()
    nn.init.zeros_(mixture.fusion.familiarity)
    forgotten = world.memories.held.clone()
    forgotten[:, :, 0] = False
    memories = dataclasses.replace(world.memories, held=forgotten)
    known = dataclasses.replace(world.items, cold=torch.zeros(B, N) > 0)
    one, two = (ask(mixture, World(world.sequence, known, m)) for m in (memories, world.memories))
    torch.testing.assert_close(one[..., 0], two[..., 0])


def test_dropout_thins_what_the_content_heads_see_and_nothing_else() -> None:
    mixture, world = random_mixture(True), random_world(shared=False)
    thin = Dropout(0.5, torch.arange(B * N) * 7919)
    whole, thinned = (mixture(*vars(world).values(), dropout) for dropout in (None, thin))
    assert (whole.weights == thinned.weights).all()
    differs = (whole.content != thinned.content).any(-1)
    assert (differs == world.items.visual.any(-1) | world.items.text.any(-1)).all()
    silence(mixture)
    whole, thinned = (mixture(*vars(world).values(), dropout) for dropout in (None, thin))
    assert (whole.scores == thinned.scores).all()


def test_scores_are_not_normalised_and_the_gate_scales_the_mixture_only() -> None:
    mixture, world = random_mixture(True), random_world(shared=False)
    base = torch.einsum("bpd,bnd->bpn", world.sequence, mixture(*vars(world).values()).vectors)
    by_gate = {}
    for gate in (0.0, 1.0, 3.0, -2.0):
        nn.init.constant_(mixture.gate, gate)
        by_gate[gate] = ask(mixture, world) - base
    assert by_gate[0.0].abs().max() < 1e-12
    assert by_gate[1.0].abs().max() > 0.1
    for gate in (3.0, -2.0):
        torch.testing.assert_close(by_gate[gate], gate * by_gate[1.0])


def test_an_empty_memory_leaves_the_state_alone() -> None:
    mixture, world = random_mixture(True), random_world(shared=True)
    scores, plain = ask(mixture, world), world.sequence @ mixture.embed(world.items).vectors[0].T
    assert (scores[0, 0] == plain[0, 0]).all()  # nothing is held there
    assert (scores[0, 1] - plain[0, 1]).abs().max() > 1e-2


MISSING = {
    "nothing is held": {"held"},
    "the bank has no features": {"bank"},
    "no pictures anywhere": {"visual"},
    "no texts anywhere": {"text"},
    "no content at all": {"visual", "text", "bank"},
}


@ROUTED
@SHARED
@pytest.mark.parametrize("missing", MISSING)
def test_what_is_missing_makes_no_nan(routed: bool, shared: bool, missing: str) -> None:
    mixture, world = random_mixture(routed), without(random_world(shared), MISSING[missing])
    world.sequence.requires_grad_()
    scores = ask(mixture, world)
    torch.testing.assert_close(scores, naive_scores(mixture, world), atol=1e-9, rtol=1e-9)
    scores.square().sum().backward()
    for name, parameter in mixture.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert world.sequence.grad is not None
    assert torch.isfinite(world.sequence.grad).all()


def without(world: World, what: set[str]) -> World:
    """The world without some of its content."""
    zeroed = {k: getattr(world.items, k) * (k not in what) for k in ("visual", "text")}
    items = dataclasses.replace(world.items, **zeroed)
    bank = {
        k: getattr(world.memories, k) * (k not in what and "bank" not in what)
        for k in ("visual", "text")
    }
    held = world.memories.held & ("held" not in what)
    return World(world.sequence, items, dataclasses.replace(world.memories, **bank, held=held))
