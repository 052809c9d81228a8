"""What batches share in a round: the same update as with maps of their own."""

import dataclasses

import pytest

from client_app.data.content import open_content
from client_app.memory.cache import Recall
from client_app.training import mixture_objective, train
from client_app.training.shared_maps import worth_sharing
from client_app.training.train import train_round
from shared_model.protocol.plan import LocalUpdate
from tests.conftest import MakeDataset
from tests.support.mixed import (
    MIXING,
    PLAN,
    everyone,
    mixed_dataset,
    mixed_histories,
    trained_model,
)


@pytest.mark.parametrize("stage", [2, 3])
def test_shared_maps_change_nothing(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    dataset = mixed_dataset(make_dataset, mixed_histories(9))
    recall = Recall(dataset, open_content(dataset, "both"))
    plan = dataclasses.replace(PLAN, stage=stage)
    shared = []

    def update(share: bool) -> LocalUpdate:
        def asked(items: int, batches: int, device: str) -> bool:
            shared.append((items, batches, share))
            return share

        monkeypatch.setattr(mixture_objective, "worth_sharing", asked)
        model = trained_model(stage)
        return train_round(model, dataset, everyone(dataset), plan, 2, (MIXING, recall))

    with train.single_threaded():
        apart, together = update(False), update(True)
    assert {share for _, _, share in shared} == {False, True}
    assert together.targets == apart.targets
    for name, own in apart.arrays.items():
        assert own.any(), name
        error = (together.arrays[name] - own).norm() / own.norm()
        assert error < 1e-5, name


def test_few_batches_do_not_map_a_large_catalogue() -> None:
    assert worth_sharing(3417, 10, "cpu")
    assert not worth_sharing(100_000, 10, "cpu")
    assert not worth_sharing(3417, 1, "cpu")
    assert worth_sharing(3417, 1, "cuda")
    assert not worth_sharing(100_000, 3, "cuda")
