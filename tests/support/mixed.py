"""Users, features and a model for what Stages 2 and 3 train."""

import numpy as np
import torch

from client_app.data.dataset import Dataset
from shared_model.model.recommender import ModelShape, Recommender, build
from shared_model.protocol.plan import MixturePlan, RoundPlan
from shared_model.stages import STAGES
from tests.conftest import MakeDataset
from tests.support.naive_mixture import HEADS, D, S, V

ITEMS, COLD, LONGEST = 50, {4, 9, 50}, 12
SHAPE = ModelShape(ITEMS, D, HEADS, 1, LONGEST, V, S)
PLAN = RoundPlan(2, 3, 0, 1.0, 1, 0.5, "targets", 0.25, "", "")
MIXING = MixturePlan("", 4, 5, 0.9, 3.0, 6, 15, 0.3, 0.5, 0.4, 0.2, 0.3, 2.0)


def mixed_dataset(make: MakeDataset, histories: dict[int | str, list[int]]) -> Dataset:
    """With pictures and texts, some of them missing, and cold items."""
    random, features = np.random.default_rng(1), {}
    for name, dim in (("visual", V), ("text", S)):
        rows = random.standard_normal((ITEMS, dim))
        rows[random.random(ITEMS) < 0.2] = 0
        features[name] = (rows / np.maximum(1e-9, np.linalg.norm(rows, axis=1))[:, None]).astype(
            "f2"
        )
    return make(histories, num_items=ITEMS, cold=COLD, features=features)


def mixed_histories(users: int = 18) -> dict[int | str, list[int]]:
    """Users with 4, 6, 8, ... warm items."""
    random = np.random.default_rng(2)
    warm = [item for item in range(1, ITEMS + 1) if item not in COLD]
    return {u: random.permutation(warm)[: 4 + 2 * u].tolist() for u in range(users)}


def trained_model(stage: int) -> Recommender:
    """Every parameter away from its initial value."""
    generator, model = torch.Generator().manual_seed(4), build(SHAPE, 0, stage=STAGES[stage])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.item_embedding.weight[0] = 0
    return model


def everyone(dataset: Dataset) -> np.ndarray:
    return np.arange(dataset.num_users)
