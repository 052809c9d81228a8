"""Stage 1 on a large catalogue: some items compete in a round, the same for all its users.

These are all items that the round's participants trained on, on all nodes, and candidates: a hash
of (seed, stage, round) draws them from the others, and each counts as often as there are others
that it stands for (as Jean et al., ACL 2015, section 3, correct a sample). So the full softmax's
sum over the catalogue is estimated without bias, and a round touches these rows of the item table
alone: nothing here costs more where the catalogue is larger, but the draw.

What users of other nodes met has to be there. With each user's own targets and a sample alone, an
item's pull in every round that somebody met it stood against a push in few rounds, many times as
strong, and these did not cancel within a run (docs/log.md).

Letters: B users of a batch, T positions, M items that were met, K rows of the table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client_app.data.dataset import Dataset, Ints, Rows, pad_batch
from client_app.training.objective import BackboneObjective
from shared_model.device import on_device
from shared_model.errors import NodeError
from shared_model.model.recommender import Recommender
from shared_model.model.sasrec import PAD
from shared_model.protocol.plan import RoundPlan
from shared_model.seeds import mix, stable_hash


@dataclass(frozen=True)
class RoundItems:
    """The items that compete in a round, and padding."""

    items: Ints  # [K], rising
    stands_for: npt.NDArray[np.float32]  # [K], log of a number of items


def met_items(dataset: Dataset, having: Rows, max_length: int) -> Ints:
    """The items that participants ``having`` train on, as inputs or targets: int64 [M], rising."""
    parts = pad_batch(dataset, having, "train", max_length)
    items = np.unique(np.concatenate([part.ravel() for part in parts]))
    met: Ints = items[items != PAD]
    return met


def round_items(dataset: Dataset, plan: RoundPlan, met: Ints) -> RoundItems:
    """Who competes where participants, of all nodes, met these items [M]."""
    others = np.array(dataset.warm)
    if not others[met].all():
        raise NodeError("items that nobody can have trained on", where="the round's items")
    others[met] = False
    left = np.flatnonzero(others)
    count = min(plan.candidates, len(left))
    seed = stable_hash(plan.seed, "candidates", plan.stage, plan.round)
    order = np.argsort(mix(seed, left.astype(np.uint64)))
    drawn = left[order[:count]]
    items = np.sort(np.concatenate([[PAD], met, drawn]))
    stands_for = np.zeros(len(items), np.float32)
    if count:
        stands_for[np.searchsorted(items, drawn)] = np.log(len(left) / count)
    return RoundItems(items, stands_for)


@contextmanager
def some_rows(model: Recommender, table: Tensor) -> Iterator[None]:
    """The model with another item table [K, D] in here: some rows of its own."""
    whole = model.item_embedding.weight
    model.item_embedding.weight = nn.Parameter(table)
    try:
        yield
    finally:
        model.item_embedding.weight = whole


class SampledObjective(BackboneObjective):
    """Stage 1 among a round's items, in a model that has their rows alone."""

    def __init__(
        self, model: Recommender, dataset: Dataset, plan: RoundPlan, competing: RoundItems
    ) -> None:
        super().__init__(model, dataset, plan)
        self.items = on_device(competing.items, self.device)
        self.absent = torch.tensor([PAD], device=self.device)
        self.bias = on_device(competing.stands_for, self.device)

    def placed(self, items: Tensor) -> Tensor:
        """Among the round's."""
        return torch.searchsorted(self.items, items)
