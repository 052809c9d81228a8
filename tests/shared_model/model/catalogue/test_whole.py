"""Scores of the whole catalogue: those of the mixture's own formula, user by user."""

import pytest
import torch

from shared_model.model.catalogue import whole
from shared_model.model.catalogue.whole import WholeCatalogue
from shared_model.model.mixture import Candidates
from tests.support.catalogues import ITEMS, USERS, by_the_formula, everything, held
from tests.support.naive_mixture import D, random_mixture


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("kept", [True, False])
@torch.no_grad()
def test_scores_are_the_formula_s(
    routed: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables of the whole catalogue, and made for a batch and a few candidates at once."""
    if not kept:
        monkeypatch.setattr(whole, "_KEPT", {"cpu": 0})
        monkeypatch.setattr(whole, "_AT_ONCE", {"cpu": 500})
        monkeypatch.setattr(whole, "_PART", 8)
    mixture, items, memory = random_mixture(routed), everything(), held()
    sequence = torch.randn(USERS, D).double()
    found = WholeCatalogue(mixture, items).best(sequence, memory, ITEMS)
    expected = by_the_formula(mixture, items, sequence, memory)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert (expected - sequence @ items.ids[0].T).abs().max() > 0.1  # the mixture says something


@pytest.mark.parametrize("routed", [False, True])
@torch.no_grad()
def test_a_target_as_if_cold_is_a_cold_candidate(routed: bool) -> None:
    mixture, items, memory = random_mixture(routed), everything(), held()
    sequence, targets = torch.randn(USERS, D).double(), torch.tensor([3, 5, 9, 4, 20, 8])
    _, found = WholeCatalogue(mixture, items).around(sequence, memory, targets)
    all_cold = Candidates(*{**vars(items), "cold": torch.ones_like(items.cold)}.values())
    expected = by_the_formula(mixture, all_cold, sequence, memory)
    torch.testing.assert_close(
        found, expected.gather(1, targets[:, None])[:, 0], atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("name", ["visual.sharpness", "text.query.weight"])
@torch.no_grad()
def test_users_are_the_formula_s_where_logits_lie_hundreds_of_nats_apart(name: str) -> None:
    """What is nothing beside another user's memory is a user's own all the same."""
    mixture, items, memory = random_mixture(True), everything(), held()
    mixture.experts.get_parameter(name).mul_(1000)
    sequence, targets = torch.randn(USERS, D).double(), torch.tensor([3, 5, 9, 4, 20, 8])
    catalogue = WholeCatalogue(mixture, items)
    assert not catalogue.shared
    found, as_cold = catalogue.around(sequence, memory, targets)
    expected = by_the_formula(mixture, items, sequence, memory)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    all_cold = Candidates(*{**vars(items), "cold": torch.ones_like(items.cold)}.values())
    alone = by_the_formula(mixture, all_cold, sequence, memory)
    torch.testing.assert_close(
        as_cold, alone.gather(1, targets[:, None])[:, 0], atol=1e-9, rtol=1e-9
    )
    catalogue.shared = True
    assert not torch.allclose(catalogue.best(sequence, memory, ITEMS), found)


@torch.no_grad()
def test_nobody_remembers_anything() -> None:
    mixture, items = random_mixture(True), everything()
    sequence, nothing = torch.randn(2, D).double(), torch.zeros(2, ITEMS, dtype=torch.bool)
    all_items = WholeCatalogue(mixture, items)

    def vectors(cold: torch.Tensor) -> torch.Tensor:
        return mixture.experts.vectors(items.ids[0], all_items.content, cold)

    plain = vectors(items.cold[0])
    torch.testing.assert_close(all_items.best(sequence, nothing, 1), sequence @ plain.T)
    _, own = all_items.around(sequence, nothing, torch.tensor([1, 2]))
    alone = vectors(torch.ones_like(items.cold[0]))
    torch.testing.assert_close(own, (sequence * alone[[1, 2]]).sum(1))
