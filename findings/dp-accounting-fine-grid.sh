#!/usr/bin/env bash
# dp-accounting 0.6.0, PLDAccountant: a finer grid should tell less epsilon (losses are rounded up), or
# the same. Where sampling is rare it tells more: rate 1e-6, noise multiplier 10, 10,000 rounds, delta 1e-10.
# Seen: 3.9e-05 on a grid of 4e-9, 5.2e-05 on one of 2e-10. Masses are differences of numbers near one,
# and lose their digits; the answer stays an upper bound, but no refinement brings it near the truth.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet dp-accounting==0.6.0
"$folder/env/bin/python" - <<'PYTHON'
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

told = {}
for grid in (4e-9, 1e-9, 2e-10):
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, grid)
    accountant.compose(PoissonSampledDpEvent(1e-6, GaussianDpEvent(10.0)), 10_000)
    told[grid] = accountant.get_epsilon(1e-10)
    print(f"grid {grid:g}: epsilon {told[grid]:.3g}")
assert told[2e-10] > 1.2 * told[4e-9], "the finer grid no longer tells more"
PYTHON
