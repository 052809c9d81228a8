"""The mixture: both call modes, one scoring rule, a residual that starts at zero."""

import pytest
import torch
from torch import Tensor

from shared_model.mixture import Candidates, MemoryContent, Mixture, mask_repeated_targets

B, N, K, D, V, S = 4, 6, 5, 8, 12, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mixture(trained: bool, gate: float = 1.0) -> Mixture:
    model = Mixture(D, V, S, heads=2, initial_gate=gate)
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.5 * torch.randn(parameter.shape)
    return model


def items(rows: int) -> Candidates:
    visual, text = torch.randn(rows, N, V), torch.randn(rows, N, S)
    visual[:, 1] = text[:, 2] = 0
    cold = torch.zeros(rows, N, dtype=torch.bool)
    cold[:, 4:] = True
    return Candidates(torch.randn(rows, N, D), visual, text, cold)


def memory() -> MemoryContent:
    visual, text = torch.randn(B, K, V), torch.randn(B, K, S)
    visual[:, 3:] = text[:, 4:] = 0
    visual[0] = text[0] = 0  # a user without a memory yet
    return MemoryContent(visual, text)


@pytest.mark.parametrize("routed", [False, True])
def test_it_starts_as_sasrec_to_the_last_bit(routed: bool) -> None:
    """Invariant 2: warm items are scored exactly as Stage 1 scores them."""
    sequence, candidates = torch.randn(B, D), items(1)
    scores, weights = mixture(trained=False)(sequence, candidates, memory(), routed)
    expected = (sequence[:, None] * candidates.ids).sum(-1)
    assert scores.shape == (B, N)
    assert (scores[:, :4] == expected[:, :4]).all()
    assert (scores[:, 4:] != expected[:, 4:]).all()  # cold ones by content
    assert weights[0, 0].tolist() == [0.5, 0.5]


def test_shared_candidates_equal_each_rows_own() -> None:
    sequence, shared, held = torch.randn(B, D), items(1), memory()
    own = Candidates(*(value.expand(B, *value.shape[1:]) for value in vars(shared).values()))
    model = mixture(trained=True)
    torch.testing.assert_close(
        model(sequence, shared, held, True)[0], model(sequence, own, held, True)[0]
    )


def test_a_batch_equals_one_row_and_one_candidate_at_a_time() -> None:
    sequence, candidates, held, model = torch.randn(B, D), items(B), memory(), mixture(True)
    scores, _ = model(sequence, candidates, held, True)
    for b in range(B):
        for n in range(N):
            one = Candidates(*(v[b : b + 1, n : n + 1] for v in vars(candidates).values()))
            mine = MemoryContent(held.visual[b : b + 1], held.text[b : b + 1])
            alone, _ = model(sequence[b : b + 1], one, mine, True)
            torch.testing.assert_close(scores[b, n], alone[0, 0], atol=1e-4, rtol=1e-4)


def test_the_untrained_id_of_a_cold_item_is_never_read() -> None:
    sequence, candidates, held, model = torch.randn(B, D), items(1), memory(), mixture(True)
    other = torch.where(candidates.cold[..., None], 99.0, candidates.ids)
    changed = Candidates(other, candidates.visual, candidates.text, candidates.cold)
    torch.testing.assert_close(
        model(sequence, candidates, held, True)[0], model(sequence, changed, held, True)[0]
    )


def test_scores_are_not_normalised_and_the_gate_scales_the_mixture_only() -> None:
    sequence, candidates, held = torch.randn(B, D), items(1), memory()
    model = mixture(True)
    with torch.no_grad():
        model.gate.zero_()
        plain = model(sequence, candidates, held, True)[0]
        twice = model(2 * sequence, candidates, held, True)[0]
        torch.testing.assert_close(twice, 2 * plain)
        model.gate.fill_(1.0)
        once = model(sequence, candidates, held, True)[0] - plain
        model.gate.fill_(3.0)
        thrice = model(sequence, candidates, held, True)[0] - plain
    torch.testing.assert_close(thrice, 3 * once, atol=1e-4, rtol=1e-4)
    assert once.abs().max() > 1e-3


def test_an_empty_memory_leaves_sasrec_alone() -> None:
    sequence, candidates, held = torch.randn(B, D), items(1), memory()
    scores, _ = mixture(True)(sequence, candidates, held, True)
    plain = (sequence[:, None] * candidates.ids).sum(-1)
    torch.testing.assert_close(scores[0, :4], plain[0, :4])
    assert (scores[1:, :4] - plain[1:, :4]).abs().max() > 1e-2


def test_in_batch_targets_mask_their_duplicates() -> None:
    targets = torch.tensor([7, 3, 7, 5])
    masked = mask_repeated_targets(torch.ones(4, 4), targets)
    assert masked.shape == (4, 4)
    assert (masked == float("-inf")).nonzero().tolist() == [[0, 2], [2, 0]]


def test_every_parameter_moves_and_the_loss_goes_down() -> None:
    """Invariant 6 for experts, content heads, fusion, gate and router, with the gate learning."""
    model, sequence, candidates, held = (
        mixture(False, gate=0.5),
        torch.randn(B, D),
        items(1),
        memory(),
    )
    targets = torch.tensor([0, 3, 4, 5])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(
            model(sequence, candidates, held, True)[0], targets
        )

    for _ in range(40):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0] - 0.3
    still = [name for name, value in model.state_dict().items() if (before[name] == value).all()]
    assert not still
