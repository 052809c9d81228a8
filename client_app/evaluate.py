"""Evaluation of the users that a node hosts, as sums that merge over nodes."""

import numpy as np
import torch

from client_app.cases import make_cases, protocol_ranks, warm_candidates
from client_app.data import Dataset, Rows, Split
from shared_model.dropout import Dropout
from shared_model.metrics import MetricSums
from shared_model.model import Recommender

_BATCH = 64


@torch.no_grad()
def evaluate_users(
    model: Recommender, dataset: Dataset, rows: Rows, split: Split, seed: int
) -> MetricSums:
    """HR, NDCG and MRR sums of users ``rows`` [N] on a split, under every protocol in one pass."""
    device = model.item_embedding.weight.device
    candidates = warm_candidates(dataset)
    sums = MetricSums()
    for batch in _similar_lengths(dataset, rows):
        cases = make_cases(dataset, batch, split, seed, model.shape.max_length)
        hidden = model(cases.inputs.to(device), Dropout())[:, -1]  # [B, D]
        scores = model.score(hidden).cpu()
        for protocol, ranks in protocol_ranks(scores, cases, candidates).items():
            sums.add("all", protocol, ranks)
    return sums


def _similar_lengths(dataset: Dataset, rows: Rows) -> list[np.ndarray]:
    """The users in batches of similar history length, to pad little."""
    rows = rows[np.lexsort((dataset.user_keys[rows], dataset.lengths(rows)))]
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
