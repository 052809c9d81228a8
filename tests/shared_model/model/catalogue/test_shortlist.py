"""A shortlist's scores: what decides a rank is the formula's, and the rest is on its right side."""

import pytest
import torch
from torch import Tensor

from shared_model.model.catalogue import bounds, shortlist
from shared_model.model.catalogue.shortlist import Shortlist
from shared_model.model.mixture import Candidates, Mixture
from tests.support.catalogues import ITEMS, USERS, by_the_formula, everything, held
from tests.support.naive_mixture import D, random_mixture

TARGETS = torch.tensor([3, 5, 9, 8, 20, 4])  # cold, without features, remembered, without a picture


@pytest.fixture(params=[0.0, 99.0], ids=["together", "one by one"], autouse=True)
def few_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to take the users, with box and ball, and many parts."""
    monkeypatch.setattr(shortlist, "_OVERHEAD", request.param)
    monkeypatch.setattr(shortlist, "_PART", 8)
    monkeypatch.setattr(shortlist, "_PROJECTED", 8)
    monkeypatch.setattr(shortlist, "_FEW", 0)
    monkeypatch.setattr(bounds, "_SIDES", 2)


def listed(mixture: Mixture, items: Candidates) -> Shortlist:
    ids, visual, text, cold = (part[0] for part in list(vars(items).values())[:4])
    return Shortlist(mixture, ids, visual, text, cold)


def as_cold(mixture: Mixture, items: Candidates, sequence: Tensor, memory: Tensor) -> Tensor:
    everywhere = Candidates(*{**vars(items), "cold": torch.ones_like(items.cold)}.values())
    return by_the_formula(mixture, everywhere, sequence, memory)


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.4])
@torch.no_grad()
def test_every_score_is_on_its_side_of_the_target_s(routed: bool, scale: float) -> None:
    """Of the target's own score, and of the one that it would have if it were cold."""
    mixture, items, memory = random_mixture(routed, scale, gate=-0.7), everything(), held()
    sequence, rows = torch.randn(USERS, D).double(), torch.arange(USERS)
    scores, by_content = listed(mixture, items).around(sequence, memory, TARGETS)
    expected = by_the_formula(mixture, items, sequence, memory)
    cold = as_cold(mixture, items, sequence, memory)[rows, TARGETS]
    torch.testing.assert_close(by_content, cold, atol=1e-9, rtol=1e-9)
    own = scores[rows, TARGETS]
    torch.testing.assert_close(own, expected[rows, TARGETS], atol=1e-9, rtol=1e-9)
    others = torch.ones_like(memory).scatter(1, TARGETS[:, None], False)
    for threshold in (own, cold):
        ahead = scores >= threshold[:, None]
        assert torch.equal(ahead[others], (expected >= threshold[:, None])[others])
    worked_out = (scores - expected).abs() < 1e-9
    assert (~worked_out).sum() > USERS  # else nothing was saved
    assert (worked_out & others).any()
    assert (expected - sequence @ items.ids[0].T).abs().max() > 0.01


@pytest.mark.parametrize("user", range(USERS))
@torch.no_grad()
def test_a_user_alone_may_remember_nothing_or_what_lacks_a_modality(user: int) -> None:
    mixture, items, one = random_mixture(True), everything(), slice(user, user + 1)
    memory, sequence = held()[one], torch.randn(1, D).double()
    scores, _ = listed(mixture, items).around(sequence, memory, TARGETS[one])
    expected = by_the_formula(mixture, items, sequence, memory)
    torch.testing.assert_close(scores[0, TARGETS[one]], expected[0, TARGETS[one]])


@pytest.mark.parametrize("scale", [2.0, 0.4, 0.2])
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("little", [0.0, torch.inf], ids=["each its share", "one share"])
@torch.no_grad()
def test_no_score_leaves_its_bounds(
    little: float, few: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where attention is all on one item, and users have few, scores come close to them; or where
    texts mean nearly the same to a candidate, and the values differ by much more."""
    monkeypatch.setattr(bounds, "_LITTLE", little)
    mixture, items, memory = random_mixture(True, scale), everything(), held()
    mixture.fusion.output.weight.div_(scale)
    if few:
        memory = torch.rand(60, ITEMS).argsort(1) < torch.arange(1, 4).repeat(20)[:, None]
        memory[:, 0] = False
    sequence = torch.randn(len(memory), D).double()
    whole = listed(mixture, items)
    found = whole.bounds_of(sequence, memory)
    expected = by_the_formula(mixture, items, sequence, memory)
    assert found.one == (little > 0)
    for part in (slice(0, 11), slice(11, ITEMS)):
        middle, off = found.of(part)
        inside = (expected[:, part] - middle).abs() <= off
        assert inside[~memory[:, part]].all()  # what is held is worked out
    nothing = memory.sum(1) == 0  # their scores are known
    _, off = found.of(slice(0, ITEMS))
    assert (off[nothing] <= 5e-4 * whole.vectors.norm(dim=1)).all()


@pytest.mark.parametrize("told", [0.01, 1.0])
@torch.no_grad()
def test_pictures_have_one_share_where_the_router_says_nearly_the_same_of_all(told: float) -> None:
    """Then the scores come close to the ends that the router's least and largest leads allow."""
    mixture, items, memory = random_mixture(True), everything(), held()
    features = torch.rand_like(items.visual) + 0.1, torch.rand_like(items.text) + 0.1
    items = Candidates(items.ids, *features, items.cold, items.names)
    assert mixture.router is not None
    mixture.router.weigh.weight.mul_(told)
    sequence = torch.randn(USERS, D).double()
    found = listed(mixture, items).bounds_of(sequence, memory)
    expected = by_the_formula(mixture, items, sequence, memory)
    middle, off = found.of(slice(0, ITEMS))
    assert found.one == (told < 1)
    assert ((expected - middle).abs() <= off)[~memory].all()


@torch.no_grad()
def test_what_is_no_number_ranks_as_the_formula_has_it() -> None:
    mixture, items, memory = random_mixture(True), everything(), held()
    sequence, rows = torch.randn(USERS, D).double(), torch.arange(USERS)
    sequence[0], sequence[1], sequence[2, 0] = torch.nan, torch.inf, -torch.inf
    sequence[4], memory[4] = 1e300, memory[2]
    scores, by_content = listed(mixture, items).around(sequence, memory, TARGETS)
    expected = by_the_formula(mixture, items, sequence, memory)
    cold = as_cold(mixture, items, sequence, memory)[rows, TARGETS]
    for found, right in ((scores[rows, TARGETS], expected[rows, TARGETS]), (by_content, cold)):
        ahead, formula = ~(scores < found[:, None]), ~(expected < right[:, None])
        assert torch.equal(ahead[:, 1:], formula[:, 1:])


@pytest.mark.parametrize("name", ["fusion.output.weight", "experts.text.query.bias", "gate"])
@pytest.mark.parametrize("wreck", [torch.nan, torch.inf, 1e200])
@torch.no_grad()
def test_bounds_of_a_wrecked_model_change_no_rank(name: str, wreck: float) -> None:
    """Where numbers are none, ways to the same formula differ: so against all of it worked out."""
    mixture, items, memory = random_mixture(True), everything(), held()
    mixture.get_parameter(name).fill_(wreck)
    sequence, rows = torch.randn(USERS, D).double(), torch.arange(USERS)
    whole = listed(mixture, items)
    scores, _ = whole.around(sequence, memory, TARGETS)
    users = zip(sequence, memory, strict=True)
    expected = torch.stack([whole.say(state, own)[0] for state, own in users])
    ahead = ~(scores < scores[rows, TARGETS][:, None])
    formula = ~(expected < expected[rows, TARGETS][:, None])
    assert torch.equal(ahead[:, 1:], formula[:, 1:])


@pytest.mark.parametrize("scale", [0.4, 0.2])
@torch.no_grad()
def test_a_closer_look_is_narrower_and_holds_the_score(scale: float) -> None:
    """Of candidates that are not held; users of up to three items leave its means little room."""
    mixture, items = random_mixture(True, scale), everything()
    memory = torch.rand(60, ITEMS).argsort(1) < torch.arange(60)[:, None] % 4
    memory[:, 0] = False
    sequence = torch.randn(len(memory), D).double()
    found = listed(mixture, items).bounds_of(sequence, memory)
    expected = by_the_formula(mixture, items, sequence, memory)
    widths, (_, box) = [], found.of(slice(0, ITEMS))
    for user, own in enumerate(memory):
        names = (~own).nonzero()[:, 0]
        middle, off = found.closer(user, names)
        assert ((expected[user, names] - middle).abs() <= off).all()
        widths.append((off.mean(), box[user, names].mean()))
    closer, whole = torch.tensor(widths).mean(0)
    assert closer < 0.5 * whole


@torch.no_grad()
def test_the_best_are_worked_out() -> None:
    mixture, items, memory = random_mixture(True, 0.1), everything(), held()
    sequence = torch.randn(USERS, D).double()
    scores = listed(mixture, items).best(sequence, memory, 4)[:, 1:]
    expected = by_the_formula(mixture, items, sequence, memory)[:, 1:]
    best, right = scores.topk(4), expected.topk(4)
    torch.testing.assert_close(best.values, right.values, atol=1e-9, rtol=1e-9)
    assert torch.equal(best.indices, right.indices)
    assert ((scores - expected).abs() > 1e-9).any()


@torch.no_grad()
def test_more_than_there_are_can_be_asked_for() -> None:
    mixture, items, memory = random_mixture(True), everything(), held()
    sequence = torch.randn(USERS, D).double()
    scores = listed(mixture, items).best(sequence, memory, ITEMS + 5)
    expected = by_the_formula(mixture, items, sequence, memory)
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_a_model_of_nan_ranks_nobody_first() -> None:
    mixture, items, memory = random_mixture(True), everything(), held()
    mixture.fusion.output.weight.fill_(torch.nan)
    sequence = torch.randn(USERS, D).double()
    scores, _ = listed(mixture, items).around(sequence, memory, TARGETS)
    assert scores[2].isnan().all()  # who remembers everything
