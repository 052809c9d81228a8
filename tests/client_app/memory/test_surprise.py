"""Surprise against a direct computation window by window, and what it must not depend on."""

import math

import numpy as np
import pytest
import torch

from client_app.data.dataset import Dataset
from client_app.memory.surprise import surprises
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import ModelShape, Recommender, build
from tests.conftest import MakeDataset

ITEMS, COLD = 130, {3, 17, 130}
WARM = [item for item in range(1, ITEMS + 1) if item not in COLD]
SHORT_TERM = pytest.mark.parametrize(
    ("short_term", "max_length"),
    [(1, 8), (4, 8), (5, 8), (7, 8), (8, 8), (12, 8), (50, 8), (6, 50)],
)


def model(max_length: int) -> Recommender:
    """With weights so large that predictions differ much from item to item."""
    built = build(ModelShape(ITEMS, 32, 2, 2, max_length), 0)
    with torch.no_grad():
        built.item_embedding.weight.mul_(8)
        built.backbone.positions.mul_(8)
    return built


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    """12 users with 3 to 90 warm items."""
    random = np.random.default_rng(5)
    histories = {
        user: random.permutation(WARM)[:length].tolist()
        for user, length in enumerate([3, 4, 9, 16, 17, 24, 33, 50, 51, 64, 80, 90])
    }
    return make_dataset(histories, num_items=ITEMS, cold=COLD)


def of(dataset: Dataset, trained: Recommender, short_term: int, counts: np.ndarray) -> list:
    rows = np.arange(dataset.num_users)
    return surprises(trained, dataset, rows, counts, short_term)


def history(dataset: Dataset, row: int) -> list[int]:
    return dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]].tolist()


@torch.no_grad()
def direct(trained: Recommender, items: list[int], place: int, short_term: int) -> float:
    """-log p of one interaction: its block is the end of a window of two blocks, or fewer."""
    longest = trained.shape.max_length
    size = min(short_term, longest)
    end = (place // size + 1) * size  # of the block
    start = max(0, end - 1 - min(2 * size, longest))
    if place == 0:
        return math.log(len(WARM))
    hidden = trained(torch.tensor([items[start : end - 1]]), Dropout())[0, place - 1 - start]
    scores = {i: float(hidden @ trained.item_embedding.weight[i]) for i in WARM}
    largest = max(scores.values())
    total = sum(math.exp(s - largest) for s in scores.values())
    return math.log(total) + largest - scores[items[place]]


@SHORT_TERM
def test_each_interaction_that_left_has_its_loss_in_its_window(
    dataset: Dataset, short_term: int, max_length: int
) -> None:
    trained, counts = model(max_length), dataset.lengths(np.arange(dataset.num_users)) - 1
    found, compared, spread = of(dataset, trained, short_term, counts), 0, set()
    for row, (own, count) in enumerate(zip(found, counts, strict=True)):
        assert (own.dtype, own.shape) == (np.float32, (count,))
        for place in range(max(0, count - short_term)):
            expected = direct(trained, history(dataset, row), place, short_term)
            assert own[place] == pytest.approx(expected, abs=2e-4, rel=1e-4)
            compared += 1
            spread.add(round(expected))
    assert compared > 80
    assert len(spread) > 4


@SHORT_TERM
def test_nothing_is_computed_for_who_lost_nothing(
    dataset: Dataset, short_term: int, max_length: int
) -> None:
    lengths = dataset.lengths(np.arange(dataset.num_users))
    found = of(dataset, model(max_length), short_term, np.minimum(lengths, short_term))
    assert all(np.isinf(own).all() for own in found)


def test_the_first_interaction_is_as_surprising_as_a_uniform_guess(dataset: Dataset) -> None:
    counts = dataset.lengths(np.arange(dataset.num_users))
    found = of(dataset, model(8), 2, counts)
    assert {float(own[0]) for own in found} == {float(np.float32(math.log(ITEMS - len(COLD))))}


@SHORT_TERM
def test_what_came_later_never_changes_a_surprise(
    make_dataset: MakeDataset, dataset: Dataset, short_term: int, max_length: int
) -> None:
    """To the bit: cut after any interaction, or with another future, it is what it was."""
    trained, rows = model(max_length), np.arange(dataset.num_users)
    whole = of(dataset, trained, short_term, dataset.lengths(rows))
    for cut in (3, 10, 21, 40, 63):
        other = make_dataset(
            {row: another_future(history(dataset, row)[:cut], cut) for row in rows.tolist()},
            num_items=ITEMS,
            cold=COLD,
        )
        assert (other.user_keys == dataset.user_keys).all()
        seen = np.minimum(dataset.lengths(rows), cut)
        for again in (
            of(dataset, trained, short_term, seen),
            of(other, trained, short_term, other.lengths(rows)),
        ):
            for own, before, count in zip(again, whole, seen, strict=True):
                decided = max(0, count - short_term)
                assert (own[:decided] == before[:decided]).all()


def another_future(items: list[int], seed: int) -> list[int]:
    """The same items, and 30 others after them."""
    others = [item for item in np.random.default_rng(seed).permutation(WARM) if item not in items]
    return items + [int(item) for item in others[:30]]


def test_cold_items_are_no_alternatives(dataset: Dataset) -> None:
    trained, counts = model(8), dataset.lengths(np.arange(dataset.num_users))
    before = of(dataset, trained, 4, counts)
    with torch.no_grad():
        trained.item_embedding.weight[list(COLD)] = 1e3
    for own, old in zip(of(dataset, trained, 4, counts), before, strict=True):
        assert (own == old).all()
    with torch.no_grad():
        trained.item_embedding.weight[1] *= -2  # a warm one is
    after = of(dataset, trained, 4, counts)
    assert any((own != old).any() for own, old in zip(after, before, strict=True))


@pytest.mark.parametrize("short_term", [1, 5, 12])
def test_a_user_is_surprised_alike_whoever_is_beside_it(dataset: Dataset, short_term: int) -> None:
    """To the bit, alone, in any order, or among users whose histories are longer."""
    trained, rows = model(8), np.arange(dataset.num_users)
    counts = dataset.lengths(rows)
    together = of(dataset, trained, short_term, counts)
    for some in ([7], [11, 2], rows[::-1].tolist(), rows[3:9].tolist()):
        chosen = np.array(some)
        apart = surprises(trained, dataset, chosen, counts[chosen], short_term)
        for row, own in zip(some, apart, strict=True):
            assert (own == together[row]).all()
