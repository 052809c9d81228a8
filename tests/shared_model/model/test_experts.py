"""The experts' two halves, softmax(logits) @ values, against an attention written as a loop."""

import pytest
import torch
from torch import Tensor, nn

from shared_model.model.experts import SHARPNESS, Experts, SemanticExpert, VisualExpert
from shared_model.model.recommender import ModelShape, build
from shared_model.stages import STAGES
from tests.support.naive_mixture import (
    HEADS,
    PICTURE_SCALE,
    B,
    D,
    L,
    N,
    S,
    V,
    naive_semantic,
    naive_visual,
    unit,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return module.double()


def found_by(logits: Tensor, values: Tensor) -> Tensor:
    """What an expert finds for each candidate in the whole memory: [B, N, dim]."""
    return (logits.softmax(-1) @ values).sum(1)


@pytest.mark.parametrize("rows", [1, B])
def test_visual_expert_equals_a_loop(rows: int) -> None:
    expert = randomised(VisualExpert(V))
    pictures, memory = unit(rows, N, V), unit(B, L, V)
    logits, values = expert.logits(pictures, memory), expert.values(memory)
    assert (logits.shape, values.shape) == ((B, 1, N, L), (B, 1, L, V))
    found = found_by(logits, values)
    for b in range(B):
        for n in range(N):
            expected = naive_visual(expert, pictures[b % rows, n], list(memory[b]))
            torch.testing.assert_close(found[b, n], expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("heads", [1, HEADS, 3])
@pytest.mark.parametrize("rows", [1, B])
def test_semantic_expert_equals_a_loop(rows: int, heads: int) -> None:
    expert = randomised(SemanticExpert(D, S, heads))
    vectors, memory = torch.randn(rows, N, D).double(), unit(B, L, S)
    logits, values = expert.logits(vectors, expert.keys(memory)), expert.values(memory)
    assert (logits.shape, values.shape) == ((B, heads, N, L), (B, heads, L, S))
    found = found_by(logits, values)
    for b in range(B):
        for n in range(N):
            expected = naive_semantic(expert, vectors[b % rows, n], list(memory[b]))
            torch.testing.assert_close(found[b, n], expected, atol=1e-12, rtol=1e-9)


def test_one_bank_serves_all_candidates_of_one_row() -> None:
    expert = randomised(SemanticExpert(D, S, HEADS))
    vectors, memory = torch.randn(B, N, D).double(), unit(1, L, S)
    torch.testing.assert_close(
        *(expert.logits(vectors, expert.keys(m)) for m in (memory, memory.expand(B, -1, -1)))
    )


def test_content_is_the_weighted_sum_of_both_heads() -> None:
    experts = randomised(Experts(D, V, S, HEADS))
    visual, text, weights = unit(B, N, V), unit(B, N, S), torch.rand(B, N, 2).double()
    weights[:, 1], weights[:, 2, 0] = 0, 0
    content = experts.content(visual, text, weights)
    for b in range(B):
        for n in range(N):
            picture = PICTURE_SCALE * visual[b, n]
            seen = experts.visual_head.weight @ picture + experts.visual_head.bias
            read = experts.text_head.weight @ text[b, n] + experts.text_head.bias
            expected = weights[b, n, 0] * seen + weights[b, n, 1] * read
            torch.testing.assert_close(content[b, n], expected)
    assert not content[:, 1].any()  # an item without weights has no content, biases or not


def test_the_visual_expert_starts_by_finding_the_picture_itself() -> None:
    """At the initialisation the best match gets most of the weight, in the 512 sizes of CLIP."""
    shape = ModelShape(num_items=3, hidden=8, heads=2, blocks=1, max_length=4, visual=512, text=8)
    expert = build(shape, 0, stage=STAGES[2]).mix().experts.visual
    assert (expert.sharpness == SHARPNESS).all()
    memory = unit(1, 50, 512).float()
    weights = expert.logits(memory, memory).softmax(-1)[0, 0]
    assert weights.diagonal().min() > 0.9
