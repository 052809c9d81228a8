"""A dataset evaluated as a node does it."""

from typing import Any

import numpy as np
import torch

from client_app.data.content import Content
from client_app.data.dataset import Dataset
from client_app.evaluation.evaluate import evaluate_users
from client_app.memory.cache import Recall
from shared_model.memory.memory import MemorySettings
from shared_model.protocol.metrics import MetricSums
from tests.support.naive_evaluation import (
    ITEMS,
    SEED,
    TableModel,
)

EVERYTHING = MemorySettings(short_term=130, long_term=0, novelty=0.0, surprise=0.0)


def mixing(dataset: Dataset) -> tuple[MemorySettings, Recall]:
    """A memory that holds all of an input; an item's feature is its index."""
    index = torch.arange(ITEMS + 1.0)[:, None]
    return EVERYTHING, Recall(dataset, Content(index, index, np.zeros((ITEMS + 1, 2), np.float32)))


def evaluated(dataset: Dataset, rows: Any, split: Any, mixes: bool = True) -> MetricSums:
    model: Any = TableModel()
    given = mixing(dataset) if mixes else None
    return evaluate_users(model, dataset, np.asarray(rows), split, SEED, given)
