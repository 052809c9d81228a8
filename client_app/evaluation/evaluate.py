"""Evaluation of the users that a node hosts, as sums that merge over nodes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client_app.data.dataset import Dataset, Ints, Rows, Split, cold_rows, input_lengths
from client_app.evaluation.cases import make_cases, protocol_ranks
from client_app.evaluation.target_groups import (
    BUCKET_PROTOCOLS,
    LENGTH_PROTOCOLS,
    buckets,
    candidates,
    groups_of,
)
from client_app.memory.cache import Recall
from shared_model.device import on_device
from shared_model.memory.memory import MemorySettings
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import Recommender
from shared_model.protocol.lengths import groups_by_length
from shared_model.protocol.metrics import MetricSums, Ranks

_FEWEST, _BATCH, _MOST = 16, 64, 1024
_CACHED = 2**21  # scores of a batch on a processor
_CELLS = 2**27  # scores of a batch on a GPU at most


@dataclass(frozen=True)
class Ranked:
    """Where the targets of a batch of users stand in one group."""

    group: str
    rows: Rows  # [B]
    targets: Ints  # [B]
    lengths: Ints  # [B], of the inputs
    ranks: dict[str, Ranks]  # by protocol


def evaluate_users(
    model: Recommender,
    dataset: Dataset,
    rows: Rows,
    split: Split,
    seed: int,
    mixing: tuple[MemorySettings, Recall] | None = None,
    cuts: list[int] | None = None,
) -> MetricSums:
    """HR, NDCG and MRR sums of users ``rows`` [N] on "valid" or "test", every group in one pass.

    Group "all" by buckets, too; by the length of the input, cut at ``cuts``, if they are given.
    """
    sums = MetricSums()
    for found in rank_users(model, dataset, rows, split, seed, mixing):
        for protocol, ranks in found.ranks.items():
            sums.add(found.group, protocol, ranks)
        if found.group == "all":
            for bucket, members in buckets(dataset, found.targets, found.lengths).items():
                for protocol in BUCKET_PROTOCOLS:
                    sums.add(bucket, protocol, found.ranks[protocol].of(members))
            parts = {} if cuts is None else groups_by_length(found.lengths, cuts)
            for part, members in parts.items():
                for protocol in LENGTH_PROTOCOLS:
                    sums.add(part, protocol, found.ranks[protocol].of(members))
    return sums


@torch.no_grad()
def rank_users(
    model: Recommender,
    dataset: Dataset,
    rows: Rows,
    split: Split,
    seed: int,
    mixing: tuple[MemorySettings, Recall] | None = None,
) -> Iterator[Ranked]:
    """The ranks of users ``rows`` [N] in every group of "valid" or "test", batch by batch.

    Stages 2 and 3 need ``mixing``. A model without a mixture has nothing to say about cold items:
    what it has in their place counts as -inf, so that a cold target ranks behind all other
    candidates, not by chance.
    """
    device = model.item_embedding.weight.device
    unscored = on_device(dataset.cold & (mixing is None), device)
    mixed = _Mixed(model, *mixing) if mixing else None
    vectors = mixed.catalogue.vectors if mixed else None
    for part, batch in _batches(dataset, rows, split, _batch_size(dataset, device)):
        cases = {
            group: make_cases(dataset, batch, part, seed, model.shape.max_length, group).to(device)
            for group in groups_of(dataset, part)
        }
        one = next(iter(cases.values()))  # inputs and targets are the same in every group
        lengths = input_lengths(dataset, batch, part)
        users = (batch, one.targets.cpu().numpy(), lengths)
        hidden = model(one.inputs, Dropout(), vectors=vectors)[:, -1]  # [B, D]
        if mixed is None:
            scores = model.score(hidden).masked_fill_(unscored, -torch.inf)  # [B, I+1]
        else:
            scores, by_content = mixed.scores(hidden, one.targets, batch, lengths)
            if "all" in cases:
                among = on_device(candidates(dataset, "all"), device)
                ranks = protocol_ranks(scores, cases["all"], among, by_content)
                yield Ranked("as-cold", *users, ranks)
        for group, of_group in cases.items():
            among = on_device(candidates(dataset, group), device)
            yield Ranked(group, *users, protocol_ranks(scores, of_group, among))


def _batch_size(dataset: Dataset, device: torch.device) -> int:
    """Users scored at once: few for a processor's cache, many for a GPU, within its memory."""
    if device.type == "cpu":
        return max(_FEWEST, min(_BATCH, _CACHED // (dataset.num_items + 1)))
    return max(_BATCH, min(_MOST, _CELLS // (dataset.num_items + 1)))


def _batches(dataset: Dataset, rows: Rows, split: Split, size: int) -> Iterator[tuple[Split, Rows]]:
    """What to evaluate for a split, batch by batch: its own cases; after "test" the cold ones."""
    parts: list[tuple[Split, Rows]] = [(split, rows)]
    if split == "test":
        parts.append(("cold", cold_rows(dataset, rows)))
    for part, users in parts:
        for batch in _similar_lengths(dataset, users, part, size):
            yield part, batch


def _similar_lengths(dataset: Dataset, rows: Rows, split: Split, size: int) -> list[Rows]:
    """The users in batches of similar input length, to pad little."""
    rows = rows[np.lexsort((dataset.user_keys[rows], input_lengths(dataset, rows, split)))]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Mixed:
    """Scores by a mixture: of everything, and of each user's target as if it were cold."""

    def __init__(self, model: Recommender, settings: MemorySettings, recall: Recall) -> None:
        self.model, self.settings, self.recall = model, settings, recall
        device = model.item_embedding.weight.device
        content, cold = recall.content, on_device(recall.dataset.cold, device)
        features = content.visual, content.text
        self.catalogue = model.catalogue(*features, cold, recall.model)

    def scores(
        self, hidden: Tensor, targets: Tensor, rows: Rows, lengths: Ints
    ) -> tuple[Tensor, Tensor]:
        """After each user's input of ``lengths`` [B], as good as exact for the target's rank
        [B, I+1]; and the target's by content, which it would have if it were cold, [B]."""
        held = self.recall.held(self.model, rows, lengths, self.settings)
        return self.catalogue.around(hidden, held, targets)
