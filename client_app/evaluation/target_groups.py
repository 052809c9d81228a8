"""Groups of the results (docs/manifest.md): which targets are ranked among which items.

To tell them, a node needs its own users and the catalogue alone: so topology changes nothing.
Letters: B users of a batch, I items.
"""

import numpy as np
import numpy.typing as npt

from client_app.data.dataset import Dataset, Ints, Split
from client_app.data.folder import POPULARITY

Bools = npt.NDArray[np.bool_]

WARM_GROUPS = ("all", "all-with-cold")  # the targets of "valid" and "test"
COLD_GROUPS = ("cold", "cold-only")  # the cold test cases
BUCKET_PROTOCOLS = ("uniform-100", "full")
LENGTH_PROTOCOLS = ("full", "full-unseen")  # of the parts by length (shared_model: lengths.py)
HISTORIES = ("short", "medium", "long")
LONGEST_SHORT, LONGEST_MEDIUM = 20, 50  # items; fixed, so that figures of data sets compare


def groups_of(dataset: Dataset, split: Split) -> tuple[str, ...]:
    """The groups that the cases of a split count in; without cold items only "all"."""
    if split == "cold":
        return COLD_GROUPS
    return WARM_GROUPS if dataset.cold.any() else WARM_GROUPS[:1]


def candidates(dataset: Dataset, group: str) -> Bools:
    """The catalogue items that a group's targets are ranked among, never padding: [I+1] bool."""
    if group == "all":
        among = dataset.warm.copy()
    elif group == "cold-only":
        among = dataset.cold.copy()
    else:
        among = np.ones_like(dataset.cold)
    among[0] = False
    return among


def buckets(dataset: Dataset, targets: Ints, lengths: Ints) -> dict[str, Bools]:
    """Which users of group "all" are in each bucket, [B] bool by the bucket's name.

    By popularity of the target [B], where items.csv tells it, and by length of the input [B].
    """
    popularity = dataset.popularity[targets]
    history = np.searchsorted([LONGEST_SHORT, LONGEST_MEDIUM], lengths)
    by_name = {f"popularity-{name}": popularity == n for n, name in enumerate(POPULARITY)}
    return by_name | {f"history-{name}": history == n for n, name in enumerate(HISTORIES)}
