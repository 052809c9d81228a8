#!/usr/bin/env bash
# flwr-datasets 0.6.1, ContinuousPartitioner(strictness=1.0): partitions should follow the column without overlap, but it is
# made float32 first, which knows Unix times of today to 128 s. Rows of one such step are dealt out in any order.
# Seen on 10,000 events, one a second, in 10 partitions: at each of the 9 boundaries events lie on the wrong side, up to 127 s
# too early or late. The seconds since the first event, given in place of the times, are parted exactly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet flwr-datasets==0.6.1
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import ContinuousPartitioner

FIRST = 1_700_000_000  # November 2023
seconds = np.random.default_rng(0).permutation(10_000)


def overlaps(column: np.ndarray) -> list[int]:
    """By how much each partition reaches into the next one."""
    partitioner = ContinuousPartitioner(10, "time", strictness=1.0, shuffle=False)
    partitioner.dataset = Dataset.from_dict({"time": column})
    parts = [np.array(partitioner.load_partition(i)["time"]) for i in range(10)]
    return [int(a.max() - b.min()) for a, b in zip(parts, parts[1:])]


by_time, by_age = overlaps(FIRST + seconds), overlaps(seconds)
print("Unix times:", by_time)
print("seconds since the first:", by_age)
assert all(0 < overlap < 128 for overlap in by_time), "Unix times are parted otherwise now"
assert by_age == [-1] * 9, "small numbers are not parted exactly"
PYTHON
