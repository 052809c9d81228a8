"""Histories of users, and their rows."""

import numpy as np

from client_app.data.dataset import (
    Dataset,
)

Histories = dict[int | str, list[int]]


def rows_of(dataset: Dataset) -> np.ndarray:
    return np.arange(dataset.num_users)
