"""A reference for evaluation: a model that is a table, and every figure by plain Python loops."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from client_app.data.compile import write_dataset
from client_app.data.dataset import Dataset, open_dataset
from shared_model.model.recommender import ModelShape
from shared_model.protocol.metrics import CUTOFFS, SAMPLED, Report
from shared_model.seeds import mix, stable_hash, user_key

ITEMS, SEED, MAX_LENGTH = 260, 5, 8
MANY_COLD, FEW_COLD = frozenset(range(2, 261, 2)), frozenset(range(7, 261, 20))
Histories = dict[int, list[int]]


def small_numbers(seed: int) -> Tensor:
    """[ITEMS + 1, ITEMS + 1] with many ties, and NaN."""
    random = np.random.default_rng(seed)
    table = random.integers(0, 9, (ITEMS + 1, ITEMS + 1)).astype(np.float32)
    table[random.random(table.shape) < 0.01] = np.nan
    table[5] = np.nan
    return torch.from_numpy(table)


class TableModel(nn.Module):
    """Scores by the last item of the input alone, from one table by ID and another by content.

    An item's embedding is its index, and so are its features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table, self.content_table, self.bonus = small_numbers(3), small_numbers(4), 0.5
        self.shape = ModelShape(ITEMS, 1, 1, 1, MAX_LENGTH)
        self.item_embedding = nn.Embedding.from_pretrained(torch.arange(ITEMS + 1.0)[:, None])
        self.forwarded = 0

    def forward(self, inputs: Tensor, dropout: Any, vectors: Tensor | None = None) -> Tensor:
        self.forwarded += len(inputs)
        assert inputs.shape[1] <= MAX_LENGTH
        return inputs[:, :, None]

    def score(self, hidden: Tensor) -> Tensor:
        return self.table[hidden[:, 0]]

    def catalogue(
        self, visual: Tensor, text: Tensor, cold: Tensor, named: str = ""
    ) -> "TableCatalogue":
        for features in (visual, text, self.item_embedding.weight):
            assert torch.equal(features[:, 0], torch.arange(ITEMS + 1.0))
        return TableCatalogue(self, cold)


class TableCatalogue:
    """What the tables say of every item; it adds ``bonus`` to what the user's memory holds."""

    vectors = torch.empty(0)  # the model looks its inputs up in a table of its own

    def __init__(self, model: TableModel, cold: Tensor) -> None:
        self.model, self.cold = model, cold

    def around(self, hidden: Tensor, held: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        last, model = hidden[:, 0].long(), self.model
        scores = torch.where(self.cold, model.content_table[last], model.table[last])
        own = model.content_table[last] + model.bonus * held
        return scores + model.bonus * held, own.gather(1, targets[:, None])[:, 0]


def make_histories() -> Histories:
    """90 users with 4 to 129 of the items, popular items first among them."""
    random = np.random.default_rng(2)
    weights = 1 / np.arange(1, ITEMS + 1)
    lengths = random.integers(4, 130, 90)
    return {
        user: (random.choice(ITEMS, n, replace=False, p=weights / weights.sum()) + 1).tolist()
        for user, n in enumerate(lengths)
    }


HISTORIES = make_histories()


def write(
    folder: Path, histories: Histories, cold: frozenset[int], popularity: bool = True
) -> Dataset:
    rows = [
        (u, item, time) for u, history in histories.items() for time, item in enumerate(history)
    ]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": range(1, ITEMS + 1)})
    items["cold"] = items["item_id"].isin(cold).astype(int)
    write_dataset(folder, interactions, items, None, "groups", popularity=popularity)
    return open_dataset(folder)


def warm_histories(histories: Histories, cold: frozenset[int]) -> Histories:
    warm = {u: [item for item in h if item not in cold] for u, h in histories.items()}
    return {user: history for user, history in warm.items() if len(history) >= 3}


def cold_case(history: list[int], cold: frozenset[int]) -> tuple[list[int], int]:
    """The warm items before the last cold one that has ten of them, and that one; or 0."""
    for place in reversed(range(len(history))):
        before = [item for item in history[:place] if item not in cold]
        if history[place] in cold and len(before) >= 10:
            return before, history[place]
    return [], 0


def naive_buckets(histories: Histories, cold: frozenset[int]) -> dict[int, str]:
    """An item's popularity bucket, by the share of train interactions with more popular ones."""
    train = [item for history in warm_histories(histories, cold).values() for item in history[:-2]]
    counts = Counter(train)
    above = {
        i: sum(c for c in counts.values() if c > counts[i]) / len(train)
        for i in range(1, ITEMS + 1)
    }
    return {
        i: "head" if share < 1 / 3 else "middle" if share < 2 / 3 else "tail"
        for i, share in above.items()
        if i not in cold
    }


def naive_negatives(
    user: int, split: str, group: str, met: set[int], among: set[int], cold: frozenset[int]
) -> list[int]:
    """The first distinct usable items of the user's endless sequence of draws."""
    name = ("negatives", split) if group == "all" else ("negatives", split, group)
    usable = among - met
    pool = sorted(cold) if group == "cold-only" else list(range(1, ITEMS + 1))
    wanted = min(SAMPLED, len(usable))
    steps = np.arange(5_000, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    drawn: list[int] = []
    for number in mix(stable_hash(SEED, *name), np.uint64(user_key(user)) ^ steps).tolist():
        item = pool[number % len(pool)]
        if len(drawn) == wanted:
            return drawn
        if item in usable and item not in drawn:
            drawn.append(item)
    raise AssertionError("too few draws")


def naive_report(
    model: TableModel, histories: Histories, cold: frozenset[int], split: str, mixing: bool
) -> Report:
    whole, ranks = set(range(1, ITEMS + 1)), dict[tuple[str, str], list[tuple[int, int]]]()
    bucket_of = naive_buckets(histories, cold)
    among = {"all": whole - cold, "all-with-cold": whole, "cold": whole, "cold-only": set(cold)}
    for user, warm in warm_histories(histories, cold).items():
        case = cold_case(histories[user], cold)
        met = {*warm, case[1]}
        held_out = 2 if split == "valid" else 1
        cases = [("all", warm[:-held_out], warm[-held_out], split)]
        if cold:
            cases.append(("all-with-cold", *cases[0][1:]))
        if split == "test" and case[1]:
            cases += [("cold", *case, "cold"), ("cold-only", *case, "cold")]
        for group, inputs, target, part in cases:
            sampled = naive_negatives(user, part, group, met, among[group], cold)
            for protocol, candidates in {
                "uniform-100": set(sampled),
                "full": among[group],
                "full-unseen": among[group] - set(inputs),
            }.items():
                scores = naive_scores(model, inputs, cold, mixing)
                size = len(candidates - {target})
                if not size:
                    continue
                rank = naive_rank(scores, target, candidates), size
                ranks.setdefault((group, protocol), []).append(rank)
                if group == "all" and protocol != "full-unseen":
                    length = len(inputs)
                    history = "short" if length <= 20 else "medium" if length <= 50 else "long"
                    for name in (f"history-{history}", f"popularity-{bucket_of[target]}"):
                        ranks.setdefault((name, protocol), []).append(rank)
                if group == "all" and mixing:
                    scores[target] = naive_scores(model, inputs, cold | {target}, mixing)[target]
                    as_cold = naive_rank(scores, target, candidates), size
                    ranks.setdefault(("as-cold", protocol), []).append(as_cold)
    report: Report = {}
    for (group, protocol), found in ranks.items():
        report.setdefault(group, {})[protocol] = naive_metrics(found)
    return report


def naive_scores(
    model: TableModel, inputs: list[int], cold: frozenset[int], mixing: bool
) -> list[float]:
    """Cold items by content and with a bonus for what was met, or not at all."""
    by_id, by_content = model.table[inputs[-1]].tolist(), model.content_table[inputs[-1]].tolist()
    if not mixing:
        return [-math.inf if i in cold else s for i, s in enumerate(by_id)]
    own = [by_content[i] if i in cold else s for i, s in enumerate(by_id)]
    met = set(inputs)
    return [s + model.bonus if i in met else s for i, s in enumerate(own)]


def naive_rank(scores: list[float], target: int, candidates: set[int]) -> int:
    return sum(not scores[i] < scores[target] for i in candidates - {target})


def naive_metrics(found: list[tuple[int, int]]) -> dict[str, float]:
    """Of each user's rank, and the number of its candidates."""
    ranks, users = [rank for rank, _ in found], len(found)
    metrics = {f"hr@{k}": sum(rank < k for rank in ranks) / users for k in CUTOFFS}
    for k in CUTOFFS:
        metrics[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in ranks if rank < k) / users
    metrics |= {"mrr": sum(1 / (rank + 1) for rank in ranks) / users, "users": users}
    return metrics | {"candidates": sum(size for _, size in found) / users}
