"""Banks of what users remember: the same memories, and the same scores, however they are stored."""

import dataclasses

import numpy as np
import pytest
import torch

from client_app.data.content import Content, open_content, side_by_side
from client_app.data.dataset import Dataset
from client_app.memory import cache
from client_app.memory.cache import Bank, Recall, own_banks, shared_bank
from shared_model.memory.memory import EMPTY, Memory
from shared_model.model.mixture import Candidates
from shared_model.model.recommender import ModelShape, build
from shared_model.protocol.plan import MixturePlan
from shared_model.stages import STAGES
from tests.conftest import MakeDataset
from tests.support.naive_mixture import HEADS, D, S, V, random_mixture, unit

ITEMS, SLOTS = 40, 9
PLAN = MixturePlan("", 5, 4, 0.3, 2.0, 8, 8, 0.2, 0.5, 0.1, 0.1, 0.1, 0.01)
SURPRISED = dataclasses.replace(PLAN, novelty=3.0, surprise=3.7)  # written by surprise alone


def remembered(users: int, positions: int, seed: int = 0) -> list[Memory]:
    """Random slots with gaps, items twice in one memory, one user that remembers nothing."""
    random = np.random.default_rng(seed)
    found = []
    for user in range(users):
        slots = random.integers(1, ITEMS + 1, (positions, SLOTS))
        slots[random.random(slots.shape) < (0.4 if user else 1.0)] = EMPTY
        slots[:, -1] = slots[:, 0]
        found.append(Memory(slots, 0, 0, 0, 0))
    return found


def content() -> Content:
    """Unit features, some of them missing."""
    torch.manual_seed(0)
    visual, text = unit(ITEMS + 1, V).float(), unit(ITEMS + 1, S).float()
    visual[[0, 5, 6]] = 0
    text[[0, 6, 7]] = 0
    return Content(visual, text, side_by_side(visual.numpy(), text.numpy()))


def held_items(bank: Bank, user: int, position: int) -> set[int]:
    return set(bank.items[user, bank.held[user, position]].tolist())


@pytest.mark.parametrize("positions", [1, 4])
def test_banks_hold_what_the_slots_hold(positions: int) -> None:
    memories = remembered(5, positions)
    own = own_banks(memories)
    for user, memory in enumerate(memories):
        for position in range(positions):
            expected = set(memory.slots[position].tolist()) - {EMPTY}
            assert held_items(own, user, position) == expected
            if positions == 1:
                assert held_items(shared_bank(memories), 0, user) == expected
        items = own.items[user][own.items[user] != EMPTY].tolist()
        assert sorted(set(items)) == sorted(items)  # each item once
        assert not own.held[user, :, own.items[user] == EMPTY].any()


def test_users_with_fewer_positions_remember_nothing_at_the_others() -> None:
    memories = [*remembered(2, 4), *remembered(2, 2, seed=1)]
    own = own_banks(memories)
    assert own.held.shape[:2] == (4, 4)
    assert not own.held[2:, 2:].any()
    assert own.held[3, :2].any()


def test_nobody_remembers_anything() -> None:
    nobody = remembered(1, 2)
    for bank in (own_banks(nobody), shared_bank(nobody)):
        assert bank.items.shape[1] == 1
        assert not bank.held.any()


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("shared_candidates", [False, True])
def test_users_as_positions_of_one_score_as_users_of_their_own(
    routed: bool, shared_candidates: bool
) -> None:
    """Evaluation's trick: one bank and one set of candidates for a batch of users."""
    users, features = 6, content()
    memories, mixture = remembered(users, 1), random_mixture(routed).float()
    sequence, ids = torch.randn(users, D), torch.randn(ITEMS + 1, D)
    candidates = torch.arange(ITEMS + 1)[None]
    cold = torch.arange(ITEMS + 1)[None] > 30
    everything = Candidates(
        ids[candidates], features.visual[candidates], features.text[candidates], cold, candidates
    )
    together = mixture(sequence[None], everything, shared_bank(memories).memories(features))
    rows = 1 if shared_candidates else users
    own = Candidates(*(v.expand(rows, *v.shape[1:]) for v in vars(everything).values()))
    apart = mixture(sequence[:, None], own, own_banks(memories).memories(features))
    assert together.scores.shape == (1, users, ITEMS + 1)
    assert apart.scores.shape == (users, 1, ITEMS + 1)
    torch.testing.assert_close(together.scores[0], apart.scores[:, 0], atol=1e-5, rtol=1e-5)
    for user in range(users):
        alone = mixture(
            sequence[None, [user]], everything, shared_bank([memories[user]]).memories(features)
        )
        torch.testing.assert_close(
            together.scores[0, user], alone.scores[0, 0], atol=1e-5, rtol=1e-5
        )
    plain = torch.where(cold[0, :, None], together.vectors[0], ids)
    assert (together.scores[0, 1:] - sequence[1:] @ plain.T).abs().max() > 0.1


@pytest.fixture
def recall(make_dataset: MakeDataset) -> Recall:
    random = np.random.default_rng(1)
    histories = {u: (random.permutation(ITEMS)[: 12 + 4 * u] + 1).tolist() for u in range(6)}
    raw = {"visual": unit(ITEMS, V).numpy(), "text": unit(ITEMS, S).numpy()}
    features = {name: rows.astype(np.float16) for name, rows in raw.items()}
    dataset = make_dataset(histories, num_items=ITEMS, features=features)
    return Recall(dataset, open_content(dataset, "both"))


def slots(
    recall: Recall, seed: int, rows: list[int], counts: list[int], plan: MixturePlan = SURPRISED
) -> list[np.ndarray]:
    shape = ModelShape(ITEMS, D, HEADS, 1, 10)
    places = [np.array([count // 2, count]) for count in counts]
    settings = recall.settings(plan)
    model = build(shape, seed, stage=STAGES[1])
    with torch.no_grad():
        model.item_embedding.weight.mul_(20)
    return [memory.slots for memory in recall.memories(model, np.array(rows), places, settings)]


def test_what_was_kept_of_a_backbone_changes_no_memory(recall: Recall) -> None:
    """Asked in any order, for less or for more, and with another backbone in between."""
    rows, counts = [0, 2, 3, 5], [10, 17, 22, 30]
    fresh = {
        seed: slots(Recall(recall.dataset, recall.content), seed, rows, counts) for seed in (0, 1)
    }
    assert any((a != b).any() for a, b in zip(fresh[0], fresh[1], strict=True))
    for seed in (0, 1, 0):
        under = recall.with_backbone(f"backbone {seed}")
        slots(under, seed, [5, 3], [8, 22])
        slots(under, seed, [5, 1], [30, 12])
        for _ in range(2):
            for own, expected in zip(slots(under, seed, rows, counts), fresh[seed], strict=True):
                assert (own == expected).all()


def test_a_call_tells_backbone_and_settings_whatever_was_called_in_between(
    recall: Recall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of another backbone or of other settings is taken, and what is the same is kept."""
    rows, counts, longer = [0, 5], [10, 30], dataclasses.replace(SURPRISED, long_term=9)
    cases = [(seed, plan) for seed in (0, 1) for plan in (SURPRISED, longer)]

    def fresh(seed: int, plan: MixturePlan) -> list[np.ndarray]:
        return slots(Recall(recall.dataset, recall.content), seed, rows, counts, plan)

    expected = [fresh(*case) for case in cases]
    views = [recall.with_backbone(str(seed)) for seed in (0, 1)]
    for place in (0, 1, 2, 3, 1, 3, 0, 2):
        seed, plan = cases[place]
        found = slots(views[seed], seed, rows, counts, plan)
        assert all((a == b).all() for a, b in zip(found, expected[place], strict=True))
    monkeypatch.setattr(cache, "live", None)  # not called again
    found = slots(recall.with_backbone("1"), 1, rows, counts)
    assert all((a == b).all() for a, b in zip(found, expected[2], strict=True))


def test_what_came_later_is_not_remembered(recall: Recall) -> None:
    rows, counts = [1, 4, 5], [14, 20, 31]
    for row, count, own in zip(rows, counts, slots(recall, 0, rows, counts, PLAN), strict=True):
        start = recall.dataset.indptr[row]
        history = recall.dataset.items[start : start + count].tolist()
        for position, place in enumerate((count // 2, count)):
            items = own[position][own[position] != EMPTY].tolist()
            assert set(items) <= set(history[:place])
            assert items[: PLAN.short_term] == history[:place][::-1][: PLAN.short_term]
            assert len(items) > PLAN.short_term


def test_a_negative_surprise_threshold_is_that_of_a_uniform_guess(
    small_dataset: Dataset, make_dataset: MakeDataset
) -> None:
    nothing = torch.zeros(31, 4)
    features = Content(nothing, nothing, np.zeros((31, 8), np.float32))
    given = Recall(small_dataset, features).settings(PLAN)
    assert (given.short_term, given.long_term, given.novelty, given.surprise) == (5, 4, 0.3, 2.0)
    uncertain = dataclasses.replace(PLAN, surprise=-1.0)
    assert Recall(small_dataset, features).settings(uncertain).surprise == pytest.approx(np.log(30))
    dataset = make_dataset({1: [1, 2, 3, 4]}, num_items=30, cold={7, 8})
    assert Recall(dataset, features).settings(uncertain).surprise == pytest.approx(np.log(28))
