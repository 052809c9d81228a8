"""Which users train at once: so many as asked, or what is cheapest, fewer once they did not fit."""

import warnings
from functools import lru_cache

import numpy as np

from client_app.data.dataset import Ints, Rows
from shared_model.errors import NodeError

ON_CPU = 16  # their activations stay in a processor's cache
ON_GPU = 1024  # at most, until they did not fit
# What it costs a GPU to begin a batch, in interactions that it trains: a thousand small calls.
_START = 150_000
_BOUNDARIES = 64


class BatchSize:
    """How many users a batch may have; it shrinks to what the memory holds."""

    def __init__(self, asked: int, device: str) -> None:
        """``asked`` users, or (0) as the ``device``, of torch's type, likes them best."""
        self.fixed = bool(asked) or device == "cpu"
        self.users = asked or (ON_CPU if device == "cpu" else ON_GPU)

    def split(self, rows: Rows, lengths: Ints) -> list[Rows]:
        """Users [N], shortest of ``lengths`` [N] first, in batches of users that are neighbours."""
        if self.fixed:
            return [rows[start : start + self.users] for start in range(0, len(rows), self.users)]
        return np.split(rows, _cuts(lengths, self.users)) if len(rows) else []

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


def _cuts(lengths: Ints, most: int) -> list[int]:
    """Where to cut users with rising ``lengths`` [N] into batches of at most so many: cheapest.

    A batch costs what it takes to begin one, and its users times its longest history, to which all
    are padded. Only every so many-th place is tried.
    """
    if len(lengths) <= most and (lengths[-1] - lengths).sum() <= _START:
        return []  # all the padding there is costs less than to begin another
    step = min(most, -(-len(lengths) // _BOUNDARIES))
    places = [*range(0, len(lengths), step), len(lengths)]
    best, cut_before = [0.0], [0]  # of the users before each place
    for place in places[1:]:
        longest = int(lengths[place - 1])
        users = place - np.array(places[: len(best)])
        costs = np.where(users <= most, np.array(best) + _START + users * longest, np.inf)
        best.append(float(costs.min()))
        cut_before.append(int(costs.argmin()))
    cuts, at = [], cut_before[-1]
    while at:
        cuts.append(places[at])
        at = cut_before[at]
    return cuts[::-1]
