"""How many users train at once: as asked, or as many as fit, fewer once they did not."""

import warnings
from functools import lru_cache

import numpy as np
from client_app.data.dataset import Rows
from shared_model.errors import NodeError

ON_CPU = 16  # their activations stay in a processor's cache
ON_GPU = 128  # at first: with more, what is padded to the longest costs more than it gains


class BatchSize:
    """The number of users in a batch, which shrinks to what the memory holds."""

    def __init__(self, asked: int, device: str) -> None:
        """``asked`` users, or (0) as many as fit on a ``device`` of torch's type."""
        self.users = asked or (ON_CPU if device == "cpu" else ON_GPU)

    def halved(self, rows: Rows, reason: str) -> list[Rows]:
        """Two halves of a batch that did not fit; so large will no other be. ``NodeError`` if it
        was one user."""
        if len(rows) == 1:
            raise NodeError(
                "the memory of the device does not hold the training of one user",
                expected="a smaller model or catalogue, or a larger device",
                got=reason,
                todo="set device='cpu', or smaller hidden-size, max-length or targets-per-user",
            )
        half = -(-len(rows) // 2)
        if half < self.users:
            self.users = half
            warnings.warn(
                f"{len(rows)} users at once do not fit in the device's memory: {half} from now on",
                stacklevel=2,
            )
        return np.array_split(rows, 2)


@lru_cache(maxsize=16)
def batch_size(asked: int, device: str, stage: int) -> BatchSize:
    """The batch size of a stage on this process's device, kept for the process's life."""
    return BatchSize(asked, device)
