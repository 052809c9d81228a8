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
    assert set(once.items.tolist()) == set(names.unique().tolist())
    assert (taken == catalogue[once.items]).all()
    found = (taken @ weight.T)[once.places]
    expected = features @ weight.T
    torch.testing.assert_close(found, expected)
    pull = torch.randn(found.shape).double()
    [got] = torch.autograd.grad((found * pull).sum(), [weight])
    [own] = torch.autograd.grad((expected * pull).sum(), [weight])
    torch.testing.assert_close(got, own)


def test_one_user_is_left_as_it_is() -> None:
    features = torch.randn(1, L, F)
    once = distinct(torch.zeros(1, L, dtype=torch.int64))
    assert (once.take(features) == features[0]).all()
    assert once.places.tolist() == [list(range(L))]
