"""Evaluation of the users that a node hosts, as sums that merge over nodes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from client_app.data.dataset import Dataset, Ints, Rows, Split, cold_rows, input_lengths
from client_app.evaluation.cases import Cases, make_cases, protocol_ranks
from client_app.evaluation.scoring import CatalogueScores
from client_app.evaluation.target_groups import BUCKET_PROTOCOLS, buckets, candidates, groups_of
from client_app.memory.cache import Recall
from shared_model.memory.memory import MemorySettings
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import Recommender
from shared_model.protocol.metrics import MetricSums, Ranks

_BATCH = 64


@torch.no_grad()
def evaluate_users(
    model: Recommender,
    dataset: Dataset,
    rows: Rows,
    split: Split,
    seed: int,
    mixing: tuple[MemorySettings, Recall] | None = None,
) -> MetricSums:
    """HR, NDCG and MRR sums of users ``rows`` [N] on "valid" or "test", every group in one pass.

    Stages 2 and 3 need ``mixing``. A model without a mixture has nothing to say about cold items:
    what it has in their place counts as -inf, so that a cold target ranks behind all other
    candidates, not by chance.
    """
    sums = MetricSums()
    unscored = torch.from_numpy(dataset.cold & (mixing is None))
    for part, batch in _batches(dataset, rows, split):
        cases = {
            group: make_cases(dataset, batch, part, seed, model.shape.max_length, group)
            for group in groups_of(dataset, part)
        }
        one = next(iter(cases.values()))  # inputs and targets are the same in every group
        lengths = input_lengths(dataset, batch, part)
        hidden = model(one.inputs.to(model.item_embedding.weight.device), Dropout())[
            :, -1
        ]  # [B, D]
        if mixing is None:
            scores = model.score(hidden).cpu().masked_fill(unscored, -torch.inf)  # [B, I+1]
        else:
            scores, as_cold = _mixed_scores(model, hidden, one.targets, batch, lengths, *mixing)
            if "all" in cases:
                among = torch.from_numpy(candidates(dataset, "all"))
                for protocol, ranks in protocol_ranks(as_cold, cases["all"], among).items():
                    sums.add("as-cold", protocol, ranks)
        for group, protocol, ranks in _ranks(dataset, cases, scores, lengths):
            sums.add(group, protocol, ranks)
    return sums


def _ranks(
    dataset: Dataset, cases: dict[str, Cases], scores: Tensor, lengths: Ints
) -> Iterator[tuple[str, str, Ranks]]:
    """Group or bucket, protocol, and ranks of its users. Scores [B, I+1], input lengths [B]."""
    for group, of_group in cases.items():
        among = torch.from_numpy(candidates(dataset, group))
        ranks = protocol_ranks(scores, of_group, among)
        for protocol in ranks:
            yield group, protocol, ranks[protocol]
        if group == "all":
            for bucket, members in buckets(dataset, of_group.targets.numpy(), lengths).items():
                for protocol in BUCKET_PROTOCOLS:
                    yield bucket, protocol, ranks[protocol].of(members)


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
    scorer = CatalogueScores(model, hidden, rows, lengths, memory, recall)
    scores, own = scorer.everything(), targets.to(hidden.device)
    by_content = scorer.of(own, torch.ones_like(own, dtype=torch.bool)).diagonal().cpu()  # [B, B]
    return scores, scores.scatter(1, targets[:, None], by_content[:, None])
