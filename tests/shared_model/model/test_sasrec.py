"""SASRec against a naive reference, and the properties that everything else relies on."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared_model.model.dropout import Dropout
from shared_model.model.packing import Packing
from shared_model.model.recommender import ModelShape, Recommender, build

SHAPE = ModelShape(num_items=40, hidden=16, heads=2, blocks=2, max_length=12)


def randomised(seed: int = 0) -> Recommender:
    """A model whose biases and norms are not at their initial zeros and ones."""
    model = build(SHAPE, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.item_embedding.weight[0] = 0
    return model


def naive_hidden(model: Recommender, history: list[int]) -> Tensor:
    """Hidden state after a history, position by position and head by head. [D]."""
    backbone, hidden = model.backbone, SHAPE.hidden
    offset = SHAPE.max_length - len(history)
    states = [
        model.item_embedding.weight[item] * hidden**0.5 + backbone.positions[offset + place]
        for place, item in enumerate(history)
    ]
    for block in backbone.blocks:
        normed = [block.attention_norm(state) for state in states]
        mixed = [naive_attention(block.attention, normed, place) for place in range(len(states))]
        states = [s + m for s, m in zip(states, mixed, strict=True)]
        states = [s + naive_feed_forward(block, s) for s in states]
    result: Tensor = backbone.final_norm(states[-1])
    return result


def naive_attention(attention: nn.Module, states: list[Tensor], place: int) -> Tensor:
    query, key, value = attention.query_key_value.weight.chunk(3)
    width, heads = SHAPE.hidden // SHAPE.heads, []
    for head in range(SHAPE.heads):
        rows = slice(head * width, (head + 1) * width)
        wanted = query[rows] @ states[place]
        logits = torch.stack([wanted @ (key[rows] @ s) for s in states[: place + 1]]) / width**0.5
        weights = logits.softmax(0)
        values = torch.stack([value[rows] @ s for s in states[: place + 1]])
        heads.append((weights[:, None] * values).sum(0))
    result: Tensor = attention.output.weight @ torch.cat(heads)
    return result


def naive_feed_forward(block: nn.Module, state: Tensor) -> Tensor:
    layer = block.feed_forward
    inner = layer.expand.weight @ block.feed_forward_norm(state) + layer.expand.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    result: Tensor = layer.output.weight @ gelu + layer.output.bias
    return result


def left_pad(histories: list[list[int]], width: int) -> Tensor:
    return torch.tensor([[0] * (width - len(h)) + h for h in histories])


HISTORIES = [[5], [3, 9, 3], [7, 1, 30, 2, 40, 11, 12, 5, 6, 8, 21, 33]]


def test_hidden_states_equal_the_naive_reference() -> None:
    model = randomised()
    hidden = model(left_pad(HISTORIES, 12), Dropout())[:, -1]
    for row, history in zip(hidden, HISTORIES, strict=True):
        torch.testing.assert_close(row, naive_hidden(model, history), atol=1e-5, rtol=1e-4)


def test_padding_width_and_neighbours_change_nothing() -> None:
    model = randomised()
    together = model(left_pad(HISTORIES[:2], 12), Dropout())[:, -1]
    alone = model(torch.tensor([HISTORIES[1]]), Dropout())[:, -1]
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_some_positions_are_what_they_are_among_all(rate: float) -> None:
    """With dropout, too, in any order; gradients are those of the chosen alone."""
    model, inputs = randomised(), left_pad(HISTORIES, 12)
    look, valid = model.item_embedding, inputs != 0
    columns = torch.tensor([[11, 10], [9, 11], [3, 7]])
    keys = torch.tensor([5, -7, 2**40])
    whole = model.backbone(look(inputs), valid, Dropout(rate, keys))
    expected = whole[torch.arange(3)[:, None], columns]
    found = model.backbone.some(look(inputs), valid, Dropout(rate, keys), columns)
    _same_with_gradients(model, found, expected)


@pytest.mark.parametrize(("histories", "parts"), [(HISTORIES, 2), (HISTORIES[::-1], 1)])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_histories_in_one_row_are_what_they_are_apart(
    rate: float, histories: list[list[int]], parts: int
) -> None:
    model, inputs = randomised(), left_pad(histories, 12)
    valid, keys = inputs != 0, torch.tensor([5, -7, 2**40])
    expected = model.backbone(model.item_embedding(inputs), valid, Dropout(rate, keys))[valid]
    lengths = valid.sum(1).numpy()
    ends = len(lengths) + 3 + np.cumsum(lengths[::-1] + 1)[::-1]  # the last user's come first
    packing = Packing.of(lengths, ends - lengths - 1, inputs.device)
    assert len(packing.parts) == parts
    others = [1] * (len(lengths) + 3)
    items = torch.tensor([*others, *(item for own in histories[::-1] for item in [*own, 40])])
    packed, targets = packing.inputs_and_targets(items.int())
    assert packed.tolist() == inputs[valid].tolist()
    assert targets.tolist() == [item for own in histories for item in [*own[1:], 40]]
    embedded = model.item_embedding(packed)
    found = model.backbone.packed(embedded, packing, Dropout(rate, keys))
    _same_with_gradients(model, found, expected)


def _same_with_gradients(model: Recommender, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    pull, names = torch.randn(found.shape), dict(model.named_parameters())
    both = [torch.autograd.grad((x * pull).sum(), list(names.values())) for x in (found, expected)]
    for name, got, own in zip(names, *both, strict=True):
        torch.testing.assert_close(got, own, atol=2e-4, rtol=1e-3, msg=name)


def test_a_position_sees_nothing_after_it() -> None:
    model = randomised()
    first = torch.tensor([HISTORIES[2]])
    other = first.clone()
    other[0, 7:] = 39
    same, changed = model(first, Dropout())[0], model(other, Dropout())[0]
    torch.testing.assert_close(same[:7], changed[:7])
    assert (same[7:] - changed[7:]).abs().max() > 0.1


def test_scores_are_plain_dot_products() -> None:
    model = randomised()
    hidden = torch.randn(3, SHAPE.hidden)
    expected = torch.stack(
        [torch.stack([h @ item for item in model.item_embedding.weight]) for h in hidden]
    )
    torch.testing.assert_close(model.score(hidden), expected)
    assert (model.score(2 * hidden) == 2 * model.score(hidden)).all()  # not normalised


def test_there_is_no_attention_bias() -> None:
    assert not [name for name in build(SHAPE, 0).state_dict() if "query_key_value.bias" in name]
