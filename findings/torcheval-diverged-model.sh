#!/usr/bin/env bash
# torcheval 0.0.7: hit_rate and reciprocal_rank count the items with a higher score than the target's, and nothing is higher than NaN,
# nor than an equal. Seen, 100 items: a diverged model (all scores NaN) and one that scores all items alike have HR@10 = MRR = 1.0; a
# single NaN, the target's, does it too. Chance is 0.1 and 0.052.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env" torcheval==0.0.7 torch==2.15.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
from torcheval.metrics.functional import hit_rate, reciprocal_rank

USERS, ITEMS = 2000, 100
torch.manual_seed(0)
targets = torch.randint(0, ITEMS, (USERS,))
chance = torch.rand(USERS, ITEMS)
lost = chance.clone()
lost[torch.arange(USERS), targets] = float("nan")
models = {
    "chance": chance,
    "diverged": torch.full((USERS, ITEMS), float("nan")),
    "the target's is NaN": lost,
    "all alike": torch.zeros(USERS, ITEMS),
}
for name, scores in models.items():
    hit, mrr = hit_rate(scores, targets, k=10).mean(), reciprocal_rank(scores, targets).mean()
    print(f"{name}: HR@10 {hit:.3f}, MRR {mrr:.3f}")
    assert (hit < 0.15 and mrr < 0.08) if name == "chance" else hit == mrr == 1, "NaN and ties no longer win"
PYTHON
