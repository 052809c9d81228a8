"""Memories decided on a device: what they hold is what the reference holds, to the bit.

Triton's interpreter runs the kernel on the processor; on a GPU, `benchmarks/one_gpu.py` compares
whole rounds.
"""

import dataclasses
import os

import numpy as np
import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # before the kernel is imported, here alone

from client_app.data.content import open_content, unit_rows
from client_app.data.dataset import Dataset
from client_app.memory import decided, on_device
from client_app.memory.cache import Bank, Recall
from client_app.memory.on_device import DeviceRecall, recall_of
from shared_model.memory.memory import EMPTY, MemorySettings
from shared_model.model.recommender import ModelShape, Recommender, build
from shared_model.stages import STAGES
from tests.conftest import MakeDataset

pytest.importorskip("triton")

ITEMS, USERS, D, V, S = 40, 7, 8, 12, 6
# Everything decides something: merges of near-duplicates, evictions, surprise, both tiers.
BUSY = MemorySettings(
    short_term=4, long_term=5, novelty=0.4, surprise=3.6, duplicate=0.9, recency=6.0
)
SETTINGS = {
    "busy": BUSY,
    "by surprise alone": dataclasses.replace(BUSY, novelty=3.0),
    "everything is written": dataclasses.replace(BUSY, novelty=0.0, duplicate=2.0),
    "nearly all is merged": dataclasses.replace(BUSY, duplicate=0.1),
    "no long-term memory": dataclasses.replace(BUSY, long_term=0),
    "one slot": dataclasses.replace(BUSY, long_term=1),
}


@pytest.fixture(scope="module")
def model() -> Recommender:
    model = build(ModelShape(ITEMS, D, 2, 1, 10), 0, stage=STAGES[1])
    with torch.no_grad():
        model.item_embedding.weight.mul_(20)
    return model


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    """Items that are alike, items without features, a short history, and one of nearly all."""
    random = np.random.default_rng(3)
    histories = {u: (random.permutation(ITEMS)[: 3 + 6 * u] + 1).tolist() for u in range(USERS)}
    kinds = random.normal(size=(6, V + S))
    rows = kinds[random.integers(0, 6, ITEMS)] + 0.25 * random.normal(size=(ITEMS, V + S))
    rows[[4, 9]] = 0
    raw = {"visual": rows[:, :V], "text": rows[:, V:]}
    features = {kind: unit_rows(part).astype(np.float16) for kind, part in raw.items()}
    return make_dataset(histories, num_items=ITEMS, features=features)


def both(dataset: Dataset) -> tuple[Recall, DeviceRecall]:
    content = open_content(dataset, "both")
    return Recall(dataset, content), DeviceRecall.of(dataset, content)


def sets(bank: Bank, user: int, positions: int) -> list[set[int]]:
    held = [set(bank.items[user, bank.held[user, p]].tolist()) for p in range(positions)]
    assert all(EMPTY not in items for items in held)
    return held


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("table", ["of the catalogue", "of each user"])
def test_what_is_held(
    name: str, table: str, dataset: Dataset, model: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    if table == "of each user":  # as if the catalogue were too large, and few users at once
        monkeypatch.setattr(decided, "TABLE", 1500)
        monkeypatch.setattr(on_device, "TABLE", 1500)
        monkeypatch.setattr(on_device, "_CELLS", 200)
    settings, (reference, device) = SETTINGS[name], both(dataset)
    rows = np.random.default_rng(0).permutation(dataset.num_users)
    lengths = dataset.lengths(rows)
    device.foresee(model, rows[::2], lengths[::2], settings)
    held = device.held(model, rows, lengths, settings)
    assert torch.equal(held, reference.held(model, rows, lengths, settings))
    assert held.any() or name == "no long-term memory"
    places = np.sort(np.random.default_rng(1).integers(0, lengths[:, None] + 1, (len(rows), 5)), 1)
    real = np.arange(5) < np.array([5, 5, 3, 1, 5, 2, 5])[:, None]
    found, logs = device.banks(model, rows, places, real, settings)
    expected, expected_logs = reference.banks(model, rows, places, real, settings)
    assert torch.equal(logs, expected_logs)
    for user, count in enumerate(real.sum(1)):
        assert sets(found, user, count) == sets(expected, user, count)
        items = found.items[user][found.items[user] != EMPTY].tolist()
        assert len(items) == len(set(items))  # each item once


def test_asked_in_any_order_and_with_another_backbone_between(
    dataset: Dataset, model: Recommender
) -> None:
    reference, device = both(dataset)
    other = build(ModelShape(ITEMS, D, 2, 1, 10), 5, stage=STAGES[1])
    rows, lengths = np.arange(USERS), dataset.lengths(np.arange(USERS))
    asked = [(model, "a", rows[::2]), (model, "a", rows), (other, "b", rows), (model, "a", rows)]
    for round_, (backbone, name, some) in enumerate(asked):
        counts = lengths[some] if round_ else lengths[some] // 2
        held = device.with_backbone(name).held(backbone, some, counts, BUSY)
        fresh = Recall(dataset, reference.content)
        assert torch.equal(held, fresh.held(backbone, some, counts, BUSY))


def test_a_processor_simulates(dataset: Dataset) -> None:
    assert type(recall_of(dataset, open_content(dataset, "both"))) is Recall
