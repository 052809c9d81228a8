"""Means, standard errors and paired differences against arithmetic by hand; bars."""

import math
from statistics import fmean, stdev

import numpy as np
import pytest

from feddmmr.benchmark.bars import Bar, held
from feddmmr.benchmark.figures import Rows, gains, summary
from feddmmr.runs.ranks import Standing, Table
from shared_model.errors import DataError

USERS = 50


def table(seed: int, shift: int = 0, users: int = USERS) -> Table:
    """Ranks of users in group "all", full; ``shift`` makes each of them worse."""
    random = np.random.default_rng(seed)
    ranks = random.geometric(0.08, users).astype(np.int32) - 1 + shift
    keys = np.arange(users, dtype=np.uint64)
    many = np.full(users, 200, np.int32)
    return {("all", "full"): Standing(keys, np.full(users, 5, np.int32), ranks, many)}


def ndcg(standing: Standing) -> list[float]:
    return [1 / math.log2(rank + 2) if rank < 10 else 0.0 for rank in standing.ranks.tolist()]


@pytest.fixture
def rows() -> Rows:
    rows = Rows()
    for seed in (0, 1, 2):
        rows.add("popularity", 0, table(9)) if seed == 0 else None
        rows.add("stage 1", seed, table(seed, 2))
        rows.add("stage 3", seed, table(seed + 20))
        rows.add("control", seed, table(seed, 1))
    return rows


def test_means_and_errors_over_seeds(rows: Rows) -> None:
    means = [fmean(ndcg(table(seed, 1)["all", "full"])) for seed in (0, 1, 2)]
    cell = ("control", "all", "full", "ndcg@10")
    assert rows.value(*cell) == pytest.approx(fmean(means))
    assert rows.error(*cell) == pytest.approx(stdev(means) / math.sqrt(3))
    assert rows.error("popularity", "all", "full", "ndcg@10") is None
    assert rows.value("control", "cold", "full", "ndcg@10") is None
    assert rows.value("nobody", "all", "full", "ndcg@10") is None


def test_differences_pair_the_same_users_and_the_same_seeds(rows: Rows) -> None:
    apart = [
        [a - b for a, b in zip(*(ndcg(t["all", "full"]) for t in pair), strict=True)]
        for pair in ((table(seed + 20), table(seed, 1)) for seed in (0, 1, 2))
    ]
    by_user = [fmean(user) for user in zip(*apart, strict=True)]
    by_seed = [fmean(seed) for seed in apart]
    found = rows.difference("stage 3", "control", "all", "full", "ndcg@10")
    assert found is not None
    assert found["difference"] == pytest.approx(fmean(by_user))
    assert found["error_users"] == pytest.approx(stdev(by_user) / math.sqrt(USERS))
    assert found["error_seeds"] == pytest.approx(stdev(by_seed) / math.sqrt(3))
    assert found["relative"] == pytest.approx(
        fmean(by_user) / rows.value("control", "all", "full", "ndcg@10")  # type: ignore[operator]
    )
    one = rows.difference("stage 3", "popularity", "all", "full", "hr@10")
    assert one is not None
    assert one["error_seeds"] is None  # one seed in common


def test_rows_with_other_users_are_refused(rows: Rows) -> None:
    rows.add("stage 2", 0, table(3, users=49))
    with pytest.raises(DataError, match="other users"):
        rows.difference("stage 2", "control", "all", "full", "mrr")


@pytest.mark.parametrize("metric", ["hr@5", "ndcg@20", "mrr"])
def test_gains_add_up_to_the_figure(rows: Rows, metric: str) -> None:
    one = table(4)["all", "full"]
    found = Rows({"x": {0: {("all", "full"): one}}}).value("x", "all", "full", metric)
    assert gains(one, metric).mean() == pytest.approx(found)


def test_the_summary_has_every_row_and_the_stages_against_all_others(rows: Rows) -> None:
    found = summary(rows, ["stage 3"])
    assert [row["row"] for row in found["rows"]] == ["popularity", "stage 1", "stage 3", "control"]
    against = {(d["against"], d["metric"]) for d in found["differences"]}
    names = ("popularity", "stage 1", "control")
    assert against == {(name, metric) for name in names for metric in ("hr@10", "ndcg@10")}


def test_bars_are_reached_missed_or_not_there(rows: Rows) -> None:
    value = rows.value("stage 3", "all", "full", "hr@10") or 0.0
    cells = {"row": "stage 3", "protocol": "full"}
    bars = [
        Bar(**cells, least=value),  # type: ignore[arg-type]
        Bar(**cells, least=value + 1e-9),  # type: ignore[arg-type]
        Bar(**cells, above="stage 1"),  # type: ignore[arg-type]
        Bar(**cells, above="stage 1", by=50.0),  # type: ignore[arg-type]
        Bar(**cells, above="stage 1", errors=1000.0),  # type: ignore[arg-type]
        Bar(**cells, above="item-knn"),  # type: ignore[arg-type]
        Bar(**cells, chance=3.0),  # type: ignore[arg-type]
        Bar(row="stage 2", protocol="full", least=0.1),
    ]
    found = held(bars, rows.value, rows.chance, rows.beyond)
    reached = [bar["reached"] for bar in found]
    assert reached == [True, False, True, False, False, None, value >= 3 * 10 / 201, None]
    assert found[4]["what"] == "stage 3 full hr@10 >= stage 1, beyond 1000 errors"
    apart, error = rows.beyond("stage 3", "stage 1", "all", "full", "hr@10") or (0, 1)
    assert found[4]["beyond"] == pytest.approx(apart / error)
