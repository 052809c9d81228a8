"""A dataset's interactions on a GPU, sent once for all rounds."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from client_app.data.dataset import Dataset
from shared_model.device import on_device


@lru_cache(maxsize=4)  # as many datasets as a process keeps open
def resident_items(dataset: Dataset, device: torch.device) -> Tensor:
    """The ``items`` of a dataset on a device: int32 [N], not to write."""
    return on_device(dataset.items.astype(np.int32), device)
