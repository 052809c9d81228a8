"""Evaluation of the users that a node hosts, as sums that merge over nodes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client_app.data.content import Content
from client_app.data.dataset import Dataset, Ints, Rows, Split, cold_rows, input_lengths
from client_app.evaluation.cases import make_cases, protocol_ranks
from client_app.evaluation.target_groups import (
    BUCKET_PROTOCOLS,
    LENGTH_PROTOCOLS,
    buckets,
    candidates,
    groups_of,
)
from client_app.memory.cache import Recall, shared_bank
from shared_model.memory.memory import MemorySettings
from shared_model.model.dropout import Dropout
from shared_model.model.mixture import Candidates
from shared_model.model.recommender import Recommender
from shared_model.protocol.lengths import groups_by_length
from shared_model.protocol.metrics import MetricSums, Ranks

_BATCH = 64
_CELLS = 16_000_000  # candidates times remembered items at once: 64 MB a head


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
    unscored = torch.from_numpy(dataset.cold & (mixing is None))
    for part, batch in _batches(dataset, rows, split):
        cases = {
            group: make_cases(dataset, batch, part, seed, model.shape.max_length, group)
            for group in groups_of(dataset, part)
        }
        one = next(iter(cases.values()))  # inputs and targets are the same in every group
        lengths = input_lengths(dataset, batch, part)
        users = (batch, one.targets.numpy(), lengths)
        hidden = model(one.inputs.to(model.item_embedding.weight.device), Dropout())[
            :, -1
        ]  # [B, D]
        if mixing is None:
            scores = model.score(hidden).cpu().masked_fill(unscored, -torch.inf)  # [B, I+1]
        else:
            scores, as_cold = _mixed_scores(model, hidden, one.targets, batch, lengths, *mixing)
            if "all" in cases:
                among = torch.from_numpy(candidates(dataset, "all"))
                yield Ranked("as-cold", *users, protocol_ranks(as_cold, cases["all"], among))
        for group, of_group in cases.items():
            among = torch.from_numpy(candidates(dataset, group))
            yield Ranked(group, *users, protocol_ranks(scores, of_group, among))


def _batches(dataset: Dataset, rows: Rows, split: Split) -> Iterator[tuple[Split, Rows]]:
    """What to evaluate for a split, batch by batch: its own cases; after "test" the cold ones."""
    parts: list[tuple[Split, Rows]] = [(split, rows)]
    if split == "test":
        parts.append(("cold", cold_rows(dataset, rows)))
    for part, users in parts:
        for batch in _similar_lengths(dataset, users, part):
            yield part, batch


def _similar_lengths(dataset: Dataset, rows: Rows, split: Split) -> list[Rows]:
    """The users in batches of similar input length, to pad little."""
    rows = rows[np.lexsort((dataset.user_keys[rows], input_lengths(dataset, rows, split)))]
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


def _mixed_scores(
    model: Recommender,
    hidden: Tensor,
    targets: Tensor,
    rows: Rows,
    lengths: Ints,
    memory: MemorySettings,
    recall: Recall,
) -> tuple[Tensor, Tensor]:
    """Scores of the whole catalogue after each user's input, cold items by content. [B, I+1].

    And the same with each user's own target by content: the score it would have if it were cold.
    """
    device = hidden.device
    memories = recall.memories(model, rows, [np.array([n]) for n in lengths], memory)
    bank = shared_bank(memories).to(device)
    banked = bank.memories(recall.content)
    cold = torch.from_numpy(recall.dataset.cold).to(device)

    def score(items: Tensor, as_cold: Tensor) -> Tensor:
        candidates = shared_candidates(model, recall.content, items, as_cold)
        scores: Tensor = model.mix()(hidden[None], candidates, banked).scores[0]  # [B, N]
        return scores

    # A large catalogue is scored in parts: what all candidates meet in memory is [N, L].
    size = max(1, _CELLS // bank.items.shape[1])
    parts: tuple[Tensor, ...] = torch.arange(len(cold), device=device).split(size)  # type: ignore[no-untyped-call]
    scores = torch.cat([score(part, cold[part]) for part in parts], 1).cpu()
    own = targets.to(device)
    by_content = score(own, torch.ones_like(own, dtype=torch.bool)).diagonal().cpu()  # of [B, B]
    return scores, scores.scatter(1, targets[:, None], by_content[:, None])


def shared_candidates(
    model: Recommender, content: Content, items: Tensor, cold: Tensor
) -> Candidates:
    """Items [N] as candidates that all users share; ``cold`` [N] ones are scored by content."""
    ids = model.item_embedding.weight[items]
    shared = (ids, content.visual[items], content.text[items], cold, items)
    return Candidates(*(part[None] for part in shared))
