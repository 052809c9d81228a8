#!/usr/bin/env bash
# What becomes of the users with more than max_len events, who tell most about sequences:
# - torch-rechub 0.9.0, generate_seq_feature(max_len=50, the default): only a user's first 50 events are looked at, for targets too. Who
#   has 51 has no test row, who has more none to validate either, and all that came later is in no part. In MovieLens 1M
#   70% of the users have more than 50 ratings: they are in no test.
# - FuxiCTR 2.3.10, a sequence column with max_len: it is padded at its end by default ("post"), and then also cut at its end:
#   the oldest events stay, the newest are gone. `padding: pre` keeps the newest.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env" torch-rechub==0.9.0 fuxictr==2.3.10 torch==2.15.0 pandas==2.3.3 numpy==2.4.6 polars==1.44.2
cd "$folder"
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import pandas as pd
import polars as pl
from fuxictr.preprocess import FeatureProcessor
from torch_rechub.utils.data import generate_seq_feature

LENGTHS = {1: 20, 2: 50, 3: 51, 4: 80}
events = pd.DataFrame([(user, time, time) for user, n in LENGTHS.items() for time in range(n)])
events = pd.concat([events, pd.DataFrame([(5, 100, 100)])])  # an item nobody else has, to sample
events.columns = ["user_id", "item_id", "time"]
parts = generate_seq_feature(events, "user_id", "item_id", "time")
counts = {user: [int((part["label"].where(part["user_id"] == user) == 1).sum()) for part in parts] for user in LENGTHS}
for user, n in LENGTHS.items():
    print("torch-rechub, {} events: {} rows to train, {} to validate, {} to test".format(n, *counts[user]))
assert list(counts.values()) == [[17, 1, 1], [47, 1, 1], [48, 1, 0], [49, 0, 0]], "long histories are cut otherwise now"


def kept(**options: str) -> list[str]:
    """What FuxiCTR keeps of the items 1 (oldest) to 8 (newest) in five places."""
    history = {"name": "history", "type": "sequence", "dtype": "str", "max_len": 5, "active": True, **options}
    label = {"name": "label", "dtype": "float"}
    processor = FeatureProcessor([history], label, dataset_id="x", data_root=".")
    table = pl.DataFrame({"history": ["^".join("12345678")], "label": [1.0]}).lazy()
    processor.fit(processor.preprocess(table))
    words = {place: word for word, place in processor.processor_dict["history::tokenizer"].vocab.items()}
    coded = processor.transform({"history": table.collect()["history"].to_list()})
    return [words[place] for place in coded["history"][0].tolist()]


default, pre = kept(), kept(padding="pre")
print("FuxiCTR, 1 (oldest) to 8 (newest), max_len 5:", *default, "by default;", *pre, "with padding: pre")
assert default == list("12345"), "the newest events stay now"
assert pre == list("45678")
PYTHON
