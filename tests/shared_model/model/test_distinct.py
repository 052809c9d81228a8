"""What is done once for each distinct item equals what is done for every item."""

import torch

from shared_model.model.unique_items import distinct

B, L, F, D = 3, 7, 5, 4


def test_items_are_mapped_once_and_stand_where_they_stood() -> None:
    torch.manual_seed(0)
    catalogue, weight = torch.randn(10, F).double(), torch.randn(D, F).double().requires_grad_()
    names = torch.randint(0, 10, (B, L))
    features, once = catalogue[names], distinct(names)
    taken = once.take(features)
    assert taken.shape == (1, len(names.unique()), F)
    found = once.spread((taken @ weight.T)[:, None].expand(-1, 2, -1, -1))  # two heads
    expected = (features @ weight.T)[:, None].expand(-1, 2, -1, -1)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(found.shape).double()
    [got] = torch.autograd.grad((found * pull).sum(), [weight])
    [own] = torch.autograd.grad((expected * pull).sum(), [weight])
    torch.testing.assert_close(got, own)


def test_one_user_is_left_as_it_is() -> None:
    features = torch.randn(1, L, F)
    once = distinct(torch.zeros(1, L, dtype=torch.int64))
    assert once.take(features) is features
    assert once.spread(features) is features
