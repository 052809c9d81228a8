#!/usr/bin/env bash
# RecTools 0.19.0, NDCG(k=10) with one relevant item: 0.2201 at rank 1, not 1. By default the ideal list has
# all k places relevant; divide_by_achievable=True makes it 1 / log2(rank + 1), as ranx, RecBole and this project have it.
# With a parquet of `feddmmr runs export` as argument: HR@10 and NDCG@10 of "all", "full-unseen" by RecTools, and by hand.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet rectools==0.19.0 pyarrow==17.0.0
"$folder/env/bin/python" - "$@" <<'PYTHON'
import sys

import numpy as np
import pandas as pd
from rectools.metrics import NDCG, HitRate


def figures(ranks: np.ndarray) -> dict[str, float]:
    """Each user's first ten places, with the target (item 0) at its rank."""
    users, places = np.repeat(np.arange(len(ranks)), 10), np.tile(np.arange(1, 11), len(ranks))
    items = np.where(places == np.repeat(ranks, 10), 0, places)
    reco = pd.DataFrame({"user_id": users, "item_id": items, "rank": places})
    target = pd.DataFrame({"user_id": np.arange(len(ranks)), "item_id": 0})
    metrics = {
        "hr@10": HitRate(k=10),
        "ndcg@10, default": NDCG(k=10),
        "ndcg@10, achievable": NDCG(k=10, divide_by_achievable=True),
    }
    return {name: float(metric.calc(reco, target)) for name, metric in metrics.items()}


for rank in (1, 2, 10, 11):
    found = figures(np.array([rank]))
    print(f"rank {rank}: {found}")
    wanted = 1 / np.log2(rank + 1) if rank <= 10 else 0.0
    assert abs(found["ndcg@10, achievable"] - wanted) < 1e-12
    assert rank > 1 or abs(found["ndcg@10, default"] - 0.2201) < 1e-4, "the default is another one now"
if sys.argv[1:]:
    table = pd.read_parquet(sys.argv[1])
    ranks = table.query("group == 'all' and protocol == 'full-unseen'")["rank"].to_numpy()
    found, inside = figures(ranks), ranks <= 10
    own = {"hr@10": inside.mean(), "ndcg@10": (inside / np.log2(ranks + 1)).mean()}
    print(f"{len(ranks)} users by RecTools: {found}\nby hand: {own}")
    assert abs(found["hr@10"] - own["hr@10"]) < 1e-9
    assert abs(found["ndcg@10, achievable"] - own["ndcg@10"]) < 1e-9
PYTHON
