"""Evaluation of the users that a node hosts, as sums that merge over nodes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from client_app.cases import Cases, make_cases, protocol_ranks
from client_app.data import Dataset, Ints, Rows, Split, cold_rows, input_lengths
from client_app.groups import BUCKET_PROTOCOLS, buckets, candidates, groups_of
from shared_model.dropout import Dropout
from shared_model.metrics import MetricSums
from shared_model.model import Recommender

_BATCH = 64


@torch.no_grad()
def evaluate_users(
    model: Recommender,
    dataset: Dataset,
    rows: Rows,
    split: Split,
    seed: int,
    scores_cold: bool = False,
) -> MetricSums:
    """HR, NDCG and MRR sums of users ``rows`` [N] on "valid" or "test", every group in one pass.

    A model without ``scores_cold`` has nothing to say about cold items: what it has in their place
    counts as -inf, so that a cold target ranks behind all other candidates, not by chance.
    """
    sums = MetricSums()
    unscored = torch.from_numpy(dataset.cold & (not scores_cold))
    for part, batch in _batches(dataset, rows, split):
        cases = {
            group: make_cases(dataset, batch, part, seed, model.shape.max_length, group)
            for group in groups_of(dataset, part)
        }
        inputs = next(iter(cases.values())).inputs  # the same in every group of a part
        scores = _scores(model, inputs).masked_fill(unscored, -torch.inf)
        lengths = input_lengths(dataset, batch, part)
        for group, protocol, ranks in _ranks(dataset, cases, scores, lengths):
            sums.add(group, protocol, ranks)
    return sums


def _ranks(
    dataset: Dataset, cases: dict[str, Cases], scores: Tensor, lengths: Ints
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Group or bucket, protocol, and ranks of its users. Scores [B, I+1], input lengths [B]."""
    for group, of_group in cases.items():
        among = torch.from_numpy(candidates(dataset, group))
        ranks = protocol_ranks(scores, of_group, among)
        for protocol in ranks:
            yield group, protocol, ranks[protocol]
        if group == "all":
            for bucket, members in buckets(dataset, of_group.targets.numpy(), lengths).items():
                for protocol in BUCKET_PROTOCOLS:
                    yield bucket, protocol, ranks[protocol][members]


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


def _scores(model: Recommender, inputs: Tensor) -> Tensor:
    """What comes after each input [B, T]: a score for every item, on the CPU. [B, I+1]."""
    hidden = model(inputs.to(model.item_embedding.weight.device), Dropout())[:, -1]  # [B, D]
    return model.score(hidden).cpu()
