"""Experts, router and fusion against naive loops, and the properties the stages rely on."""

import pytest
import torch
from torch import Tensor, nn

from shared_model.experts import SemanticExpert, VisualExpert, attend
from shared_model.fusion import CrossModalFusion
from shared_model.router import (
    ItemCentricRouter,
    entropy,
    load_balance,
    present,
    uniform_weights,
)

B, N, K, D, V, S, HEADS = 3, 5, 4, 8, 12, 6, 2


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))


def usable_slots() -> Tensor:
    usable = torch.rand(B, K) > 0.4
    usable[0], usable[1, 0] = False, True  # one empty memory, one that is not
    return usable


def naive_softmax(logits: list[Tensor]) -> list[Tensor]:
    exps = [logit.exp() for logit in logits]
    total = torch.stack(exps).sum()
    return [e / total for e in exps]


def test_visual_expert_equals_a_loop() -> None:
    expert, usable = VisualExpert(V), usable_slots()
    randomise(expert)
    candidates, memory = torch.randn(B, N, V), torch.randn(B, K, V)
    found = expert(candidates, memory, usable)
    assert found.shape == (B, N, V)
    for b in range(B):
        slots = [k for k in range(K) if usable[b, k]]
        for n in range(N):
            logits = [(candidates[b, n] * expert.sharpness * memory[b, k]).sum() for k in slots]
            mixed = torch.zeros(V)
            for weight, k in zip(naive_softmax(logits) if slots else [], slots, strict=True):
                mixed = mixed + weight * memory[b, k]
            expected = expert.output.weight @ mixed
            torch.testing.assert_close(found[b, n], expected, atol=1e-4, rtol=1e-4)


def test_semantic_expert_equals_a_loop() -> None:
    expert, usable = SemanticExpert(D, S, HEADS), usable_slots()
    randomise(expert)
    candidates, memory = torch.randn(B, N, D), torch.randn(B, K, S)
    found = expert(candidates, memory, usable)
    key_weight, value_weight = expert.key_value.weight.chunk(2)
    width = S // HEADS
    for b in range(B):
        slots = [k for k in range(K) if usable[b, k]]
        for n in range(N):
            query = expert.query.weight @ candidates[b, n] + expert.query.bias
            heads = []
            for head in range(HEADS):
                rows = slice(head * width, (head + 1) * width)
                keys = [key_weight[rows] @ memory[b, k] for k in slots]
                logits = [query[rows] @ key / width**0.5 for key in keys]
                mixed = torch.zeros(width)
                for weight, k in zip(naive_softmax(logits) if slots else [], slots, strict=True):
                    mixed = mixed + weight * (value_weight[rows] @ memory[b, k])
                heads.append(mixed)
            expected = expert.output.weight @ torch.cat(heads)
            torch.testing.assert_close(found[b, n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [V, D])
def test_candidates_of_all_rows_may_be_given_once(width: int) -> None:
    expert = VisualExpert(V) if width == V else SemanticExpert(D, S, HEADS)
    memory, usable = torch.randn(B, K, V if width == V else S), usable_slots()
    shared = torch.randn(1, N, width)
    once, repeated = (
        expert(shared, memory, usable),
        expert(shared.expand(B, -1, -1), memory, usable),
    )
    torch.testing.assert_close(once, repeated)


def test_what_is_not_usable_has_no_influence() -> None:
    memory, usable = torch.randn(B, K, V), usable_slots()
    changed = torch.where(usable[..., None], memory, 1e6)
    expert, candidates = VisualExpert(V), torch.randn(B, N, V)
    torch.testing.assert_close(
        expert(candidates, memory, usable)[1:], expert(candidates, changed, usable)[1:]
    )
    assert not expert(candidates, memory, usable)[0].any()  # an empty memory says nothing


def test_attend_has_finite_gradients_without_anything_usable() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    attend(logits, torch.tensor([[False] * 3, [True, False, True]])).square().sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()
    assert logits.grad[1, 0] != 0


def features() -> tuple[Tensor, Tensor]:
    visual, text = torch.randn(N, V), torch.randn(N, S)
    visual[1] = text[2] = 0
    visual[3] = text[3] = 0
    return visual, text


def test_router_starts_uniform_and_gives_nothing_to_what_is_missing() -> None:
    router, (visual, text) = ItemCentricRouter(V, S, 16), features()
    expected = torch.tensor([[0.5, 0.5], [0, 1], [1, 0], [0, 0], [0.5, 0.5]])
    torch.testing.assert_close(router(visual, text), expected)
    torch.testing.assert_close(uniform_weights(visual, text), expected)
    assert present(visual, text).tolist() == (expected > 0).tolist()
    randomise(router)
    weights = router(visual, text)
    torch.testing.assert_close(weights[1:4], expected[1:4])
    assert abs(weights[0, 0] - 0.5) > 0.01
    torch.testing.assert_close(weights[[0, 1, 2, 4]].sum(-1), torch.ones(4))


def test_load_balance_and_entropy() -> None:
    even = torch.full((3, N, 2), 0.5)
    one_sided = torch.tensor([[0.999, 0.001], [0.999, 0.001]])
    assert load_balance(even) == pytest.approx(0.0)
    assert load_balance(one_sided) == pytest.approx(1.0, abs=0.01)
    missing = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    assert load_balance(missing) == pytest.approx(0.0)  # nothing was there to be balanced
    assert load_balance(torch.tensor([[1.0, 0.0]])) == 0
    assert entropy(even) == pytest.approx(0.6931, abs=1e-3)
    assert entropy(missing[:2]) == 0


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


def test_fusion_equals_a_loop() -> None:
    fusion = CrossModalFusion(D, V, S)
    randomise(fusion)
    sequence, visual, text = torch.randn(B, D), torch.randn(B, N, V), torch.randn(B, N, S)
    prior = torch.tensor([[0.3, 0.7], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    fused = fusion(sequence, visual, text, prior[None])
    for b in range(B):
        query = fusion.query.weight @ sequence[b]
        for n in range(N):
            tokens = [
                layer.weight @ nn.functional.layer_norm(found[b, n], (found.shape[-1],))
                for layer, found in (
                    (fusion.visual_key_value, visual),
                    (fusion.text_key_value, text),
                )
            ]
            odds = [
                prior[n, m] * ((query @ token[:D]) / D**0.5).exp() for m, token in enumerate(tokens)
            ]
            total = sum(odds)
            mixed = sum(o / total * t[D:] for o, t in zip(odds, tokens, strict=True))
            expected = fusion.output.weight @ mixed if total > 0 else torch.zeros(D)
            torch.testing.assert_close(fused[b, n], expected, atol=1e-4, rtol=1e-4)


def test_fusion_starts_at_exactly_zero_and_every_parameter_moves() -> None:
    """The residual is zero at first (invariant 2), and two steps move everything (invariant 6)."""
    modules = nn.ModuleDict(
        {
            "visual": VisualExpert(V),
            "text": SemanticExpert(D, S, HEADS),
            "router": ItemCentricRouter(V, S, 16),
            "fusion": CrossModalFusion(D, V, S),
        }
    )
    sequence, ids = torch.randn(B, D), torch.randn(1, N, D)
    visual, text = torch.randn(1, N, V), torch.randn(1, N, S)
    memory_visual, memory_text = torch.randn(B, K, V), torch.randn(B, K, S)
    usable, target = torch.ones(B, K, dtype=torch.bool), torch.randn(B, N, D)

    def fused() -> Tensor:
        seen = modules["visual"](visual, memory_visual, usable)
        read = modules["text"](ids, memory_text, usable)
        result: Tensor = modules["fusion"](sequence, seen, read, modules["router"](visual, text))
        return result

    assert not fused().any()
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
    for _ in range(3):  # output, then what feeds it, then the router's first layer
        optimizer.zero_grad()
        (fused() - target).square().mean().backward()
        optimizer.step()
    still = [name for name, value in modules.state_dict().items() if (before[name] == value).all()]
    assert not still
