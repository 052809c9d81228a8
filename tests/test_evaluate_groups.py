"""Every group, bucket and protocol of an evaluation, against a loop over users in plain Python."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from client_app.cases import NUM_NEGATIVES, make_cases
from client_app.compile import write_dataset
from client_app.data import Dataset, cold_rows, open_dataset
from client_app.evaluate import evaluate_users
from client_app.groups import COLD_GROUPS, WARM_GROUPS
from shared_model.metrics import CUTOFFS, PROTOCOLS, MetricSums, Report, merge
from shared_model.model import ModelShape
from shared_model.seeds import mix, stable_hash, user_key
from tools.importers import split_dataset

ITEMS, SEED, MAX_LENGTH = 260, 5, 8
MANY_COLD, FEW_COLD = frozenset(range(2, 261, 2)), frozenset(range(7, 261, 20))
Histories = dict[int, list[int]]


class TableModel(nn.Module):
    """Scores by the last item of the input alone: small integers, so many ties, and NaN."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(3)
        table = random.integers(0, 9, (ITEMS + 1, ITEMS + 1)).astype(np.float32)
        table[random.random(table.shape) < 0.01] = np.nan
        table[5] = np.nan
        self.table = torch.from_numpy(table)
        self.shape = ModelShape(ITEMS, 1, 1, 1, MAX_LENGTH)
        self.item_embedding = nn.Embedding(1, 1)
        self.forwarded = 0

    def forward(self, inputs: Tensor, dropout: Any) -> Tensor:
        self.forwarded += len(inputs)
        assert inputs.shape[1] <= MAX_LENGTH
        return inputs[:, :, None]

    def score(self, hidden: Tensor) -> Tensor:
        return self.table[hidden[:, 0]]


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
    wanted = min(NUM_NEGATIVES, len(usable))
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
    table: Tensor, histories: Histories, cold: frozenset[int], split: str, scores_cold: bool
) -> Report:
    whole, ranks = set(range(1, ITEMS + 1)), dict[tuple[str, str], list[int]]()
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
            scores = table[inputs[-1]].tolist()
            if not scores_cold:
                scores = [-math.inf if i in cold else s for i, s in enumerate(scores)]
            sampled = naive_negatives(user, part, group, met, among[group], cold)
            for protocol, candidates in {
                "uniform-100": set(sampled),
                "full": among[group],
                "full-unseen": among[group] - set(inputs),
            }.items():
                ahead = [i for i in candidates - {target} if not scores[i] < scores[target]]
                ranks.setdefault((group, protocol), []).append(len(ahead))
                if group == "all" and protocol != "full-unseen":
                    size = len(inputs)
                    history = "short" if size <= 20 else "medium" if size <= 50 else "long"
                    for name in (f"history-{history}", f"popularity-{bucket_of[target]}"):
                        ranks.setdefault((name, protocol), []).append(len(ahead))
    report: Report = {}
    for (group, protocol), found in ranks.items():
        report.setdefault(group, {})[protocol] = naive_metrics(found)
    return report


def naive_metrics(ranks: list[int]) -> dict[str, float]:
    users = len(ranks)
    metrics = {f"hr@{k}": sum(rank < k for rank in ranks) / users for k in CUTOFFS}
    for k in CUTOFFS:
        metrics[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in ranks if rank < k) / users
    return metrics | {"mrr": sum(1 / (rank + 1) for rank in ranks) / users, "users": users}


def evaluated(dataset: Dataset, rows: Any, split: Any, scores_cold: bool = True) -> MetricSums:
    model: Any = TableModel()
    return evaluate_users(model, dataset, np.asarray(rows), split, SEED, scores_cold)


def flat(report: Report) -> dict[str, float]:
    cells = {f"{g}/{p}": c for g, ps in report.items() for p, c in ps.items()}
    return {f"{name}/{metric}": v for name, cell in cells.items() for metric, v in cell.items()}


@pytest.mark.parametrize("scores_cold", [False, True])
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("cold", [MANY_COLD, FEW_COLD, frozenset()], ids=["many", "few", "none"])
def test_every_figure_equals_a_loop_over_users(
    tmp_path: Path, cold: frozenset[int], split: str, scores_cold: bool
) -> None:
    dataset = write(tmp_path / "data", HISTORIES, cold)
    report = evaluated(dataset, np.arange(dataset.num_users), split, scores_cold).report()
    expected = naive_report(TableModel().table, HISTORIES, cold, split, scores_cold)
    assert flat(report) == pytest.approx(flat(expected), rel=1e-12)
    cold_groups = {"all-with-cold", *(COLD_GROUPS if split == "test" else ())} if cold else set()
    lengths = {f"history-{name}" for name in ("short", "medium", "long")}
    popular = {f"popularity-{name}" for name in ("head", "middle", "tail")}
    assert set(report) == {"all"} | cold_groups | lengths | popular
    for group in ({"all"} | cold_groups) & set(report):
        assert set(report[group]) == set(PROTOCOLS)
    for kind in (lengths, popular):  # everyone is in one bucket of a kind
        for protocol in ("uniform-100", "full"):
            users = sum(report[bucket][protocol]["users"] for bucket in kind)
            assert users == report["all"][protocol]["users"] == dataset.num_users


@pytest.mark.parametrize("parts", [2, 7, None])
def test_sums_of_nodes_add_up_to_the_whole(tmp_path: Path, parts: int | None) -> None:
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows, parts = np.arange(dataset.num_users), parts or dataset.num_users
    whole = merge([evaluated(dataset, rows, "test").sums])
    nodes = [evaluated(dataset, rows[part::parts], "test").sums for part in range(parts)]
    assert merge(nodes).sums == pytest.approx(whole.sums, rel=1e-12)


def test_nodes_with_folders_of_their_own_give_the_same_sums(tmp_path: Path) -> None:
    whole = write(tmp_path / "data", HISTORIES, MANY_COLD)
    split_dataset(whole.folder, tmp_path / "parts", 3)
    parts = [open_dataset(tmp_path / "parts" / f"part-{n}") for n in range(3)]
    assert {part.catalogue_sha256 for part in parts} == {whole.catalogue_sha256}
    sums = [evaluated(part, np.arange(part.num_users), "test").sums for part in parts]
    everyone = evaluated(whole, np.arange(whole.num_users), "test")
    assert merge(sums).sums == pytest.approx(everyone.sums, rel=1e-12)


def test_a_user_is_forwarded_once_and_a_cold_case_once(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows = np.arange(dataset.num_users)
    for split, passes in (
        ("valid", len(rows)),
        ("test", len(rows) + len(cold_rows(dataset, rows))),
    ):
        model: Any = TableModel()
        evaluate_users(model, dataset, rows, split, SEED)
        assert model.forwarded == passes


def test_a_model_that_cannot_score_cold_items_gets_nothing_by_chance(tmp_path: Path) -> None:
    """Untrained rows would put cold items first; without `scores_cold` they are never looked at."""
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows, model = np.arange(dataset.num_users), TableModel()
    model.table[:, dataset.cold] = 99.0
    for scores_cold in (False, True):
        report = evaluate_users(model, dataset, rows, "test", SEED, scores_cold).report()  # type: ignore
        alone, crowded = report["all"]["full"]["hr@10"], report["all-with-cold"]["full"]["hr@10"]
        assert crowded == (0 if scores_cold else alone)
    model.table[:] = torch.arange(ITEMS + 1.0)
    report = evaluate_users(model, dataset, rows, "test", SEED).report()  # type: ignore
    assert {report[g][p]["hr@20"] for g in COLD_GROUPS for p in PROTOCOLS} == {0.0}
    able = evaluate_users(model, dataset, rows, "test", SEED, True).report()  # type: ignore
    assert all(able[g]["full"]["hr@20"] > 0 for g in COLD_GROUPS)
    assert able["all"] == report["all"]


def test_groups_of_a_split_share_all_but_their_negatives(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows = cold_rows(dataset, np.arange(dataset.num_users))
    for split, groups in (("test", WARM_GROUPS), ("cold", COLD_GROUPS)):
        first, second = (make_cases(dataset, rows, split, 0, 9, group) for group in groups)  # type: ignore
        for name in ("inputs", "targets", "seen"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(first.negatives, second.negatives)
