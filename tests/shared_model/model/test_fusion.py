"""Fusion: its two halves against loops over what a position remembers, and their edges."""

import pytest
import torch
from torch import Tensor

from shared_model.model.fusion import _FAMILIARITY_SCALE as FAMILIARITY_SCALE
from shared_model.model.fusion import CrossModalFusion
from shared_model.model.recommender import ModelShape, build
from shared_model.stages import STAGES
from tests.support.naive_mixture import HEADS, B, D, L, N, P, S, V

DIMS = {"visual": V, "text": S}
MODALITY = pytest.mark.parametrize("modality", DIMS)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomised() -> CrossModalFusion:
    fusion = CrossModalFusion(D, V, S).double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return fusion


def halves(dim: int, rows: int = B) -> dict[str, Tensor]:
    """Logits and values of an expert, masks, states and candidates; one memory is empty."""
    mask = torch.rand(B, P, L) > 0.4
    mask[0, 0], mask[1, 1] = False, torch.arange(L) == 3
    return {
        "attention": 3 * torch.randn(B, HEADS, N, L).double(),
        "values": torch.randn(B, HEADS, L, dim).double(),
        "mask": mask,
        "excluded": torch.rand(rows, N, L) > 0.8,
        "sequence": torch.randn(B, P, D).double(),
        "vectors": torch.randn(rows, N, D).double(),
    }


def token(
    fusion: CrossModalFusion, modality: str, given: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """A token from an expert's values."""
    reach, key = fusion.seen(modality)
    values, rows = given["values"], len(given["mask"])
    added = (values @ reach.T) @ given["vectors"].expand(rows, -1, -1)[:, None].mT
    scores = (values @ key.T) @ given["sequence"][:, None].mT
    excluded = given["excluded"].expand(rows, -1, -1).mT
    logit, value = fusion.tokens(given["attention"].mT, added, scores, given["mask"], excluded)
    return logit * D**-0.5, value


@MODALITY
@pytest.mark.parametrize("rows", [1, B])
def test_a_token_equals_a_loop_over_what_is_held(modality: str, rows: int) -> None:
    """The expert's output for a position, made here, meets key and value only afterwards."""
    fusion, given = randomised(), halves(DIMS[modality], rows)
    logit, value = token(fusion, modality, given)
    assert logit.shape == value.shape == (B, P, N)
    for b in range(B):
        for p in range(P):
            for n in range(N):
                known = given["mask"][b, p] & ~given["excluded"][b % rows, n]
                slots = known.nonzero().flatten()
                found = torch.zeros(DIMS[modality]).double()
                for head in range(HEADS):
                    weights = given["attention"][b, head, n, slots].softmax(0)
                    found = found + weights @ given["values"][b, head, slots]
                query = fusion.query(given["sequence"][b, p])
                expected = query @ fusion.key[modality](found) / D**0.5
                torch.testing.assert_close(logit[b, p, n], expected, atol=1e-10, rtol=1e-9)
                aux = fusion.output(fusion.value[modality](found))
                expected = aux @ given["vectors"][b % rows, n]
                torch.testing.assert_close(value[b, p, n], expected, atol=1e-10, rtol=1e-9)
    assert not logit[0, 0].any()
    assert not value[0, 0].any()


def test_what_is_not_held_has_no_influence() -> None:
    fusion, given = randomised(), halves(V)
    given["mask"][:, :, 5] = False
    before = token(fusion, "visual", given)
    given["attention"][..., 5] += 3.0
    given["values"][:, :, 5] = 1e3
    for new, old in zip(token(fusion, "visual", given), before, strict=True):
        torch.testing.assert_close(new, old, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("spread", [30.0, 80.0, 1e4])
def test_extreme_logits_have_finite_answers_and_gradients(spread: float) -> None:
    """In float32: also where a position holds nothing near the bank's best match."""
    fusion, given = randomised().float(), halves(V)
    given = {k: v if v.dtype == torch.bool else v.float() for k, v in given.items()}
    given["attention"][..., 0] = spread
    given["mask"][..., 0] = False
    given["mask"][2, 1] = torch.arange(L) == 0
    leaves = [given[k].requires_grad_() for k in ("attention", "values", "sequence", "vectors")]
    logit, value = token(fusion, "visual", given)
    (logit.square().sum() + value.square().sum()).backward()
    for tensor in (logit, value, *(leaf.grad for leaf in leaves)):
        assert tensor is not None
        assert torch.isfinite(tensor).all()
    if spread < 60:  # the largest difference that is told apart
        exact = halves_of(given, slice(1, None))
        for new, old in zip(token(fusion, "visual", exact), (logit, value), strict=True):
            torch.testing.assert_close(new[:2], old[:2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spread", [30.0, 80.0, 120.0, 1e4])
def test_what_is_held_has_all_the_weight_however_far_from_the_best(spread: float) -> None:
    """Where all remembered values are one, any weights that sum to one find just that."""
    fusion, given = randomised().float(), halves(V)
    given = {k: v if v.dtype == torch.bool else v.float() for k, v in given.items()}
    given["mask"] = torch.rand(B, P, L) > 0.2
    given["mask"][..., 0], given["mask"][..., 1] = False, True
    given["excluded"][..., 1] = False
    given["values"] = given["values"][:, :, :1].expand(-1, -1, L, -1)
    before = token(fusion, "visual", given)
    given["attention"][..., 0] = spread
    for new, old in zip(token(fusion, "visual", given), before, strict=True):
        torch.testing.assert_close(new, old, atol=1e-4, rtol=1e-4)


def halves_of(given: dict[str, Tensor], slots: slice) -> dict[str, Tensor]:
    """The same with a part of the bank."""
    kept = {name: given[name][..., slots] for name in ("attention", "mask", "excluded")}
    return given | kept | {"values": given["values"][:, :, slots]}


@pytest.mark.parametrize("rows", [1, B])
def test_tokens_compete_by_match_and_prior(rows: int) -> None:
    fusion = randomised()
    logits, values = torch.randn(2, B, P, N, 2).double()
    prior = torch.rand(rows, N, 2).double()
    prior = prior / prior.sum(-1, keepdim=True)
    prior[:, 0], prior[:, 1] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    prior[:, 2] = 0
    remembered = torch.rand(B, P, N) > 0.5
    said = fusion(logits, values, prior, remembered)
    familiar = FAMILIARITY_SCALE * fusion.familiarity * remembered
    assert familiar.any()
    said = said - familiar
    for b in range(B):
        for p in range(P):
            for n in range(N):
                odds = prior[b % rows, n] * logits[b, p, n].exp()
                total = odds.sum()
                expected = (odds * values[b, p, n]).sum() / total if total > 0 else total
                torch.testing.assert_close(said[b, p, n], expected)
    torch.testing.assert_close(said[:, :, 0], values[:, :, 0, 1])
    torch.testing.assert_close(said[:, :, 1], values[:, :, 1, 0])
    assert said[:, :, 2].abs().max() < 1e-12


def test_a_missing_modality_sends_nothing_back() -> None:
    fusion = randomised()
    logits, values = (torch.randn(B, P, N, 2).double().requires_grad_() for _ in range(2))
    prior = torch.tensor([0.0, 1.0]).double().expand(1, N, 2)
    fusion(logits, values, prior, torch.zeros(B, P, N) > 0).square().sum().backward()
    for tensor in (logits, values):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[..., 0].any()


@MODALITY
@pytest.mark.parametrize("stage", [2, 3])
def test_it_starts_at_exactly_zero(modality: str, stage: int) -> None:
    shape = ModelShape(num_items=4, hidden=D, heads=HEADS, blocks=1, max_length=4, visual=V, text=S)
    fusion = build(shape, 0, stage=STAGES[stage]).mix().fusion.double()
    logit, value = token(fusion, modality, halves(DIMS[modality]))
    assert not value.any()
    assert logit.abs().max() > 0.01
