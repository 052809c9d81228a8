#!/usr/bin/env bash
# Cornac 3.0.1, ImageModality(features, ids): an item that has interactions and no row in `features` gets, without a word, the row of
# some other item, if only the matrix has as many rows as there are items (rows of a catalogue usually are more). What VBPR reads:
# the rows are put in their places, and a place that nobody takes keeps what stood there before.
# Seen: 1,000 items, 100 of them without a picture, 600 with interactions: all 60 of these without a picture have another item's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env" cornac==3.0.1
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
from cornac.data import ImageModality
from cornac.eval_methods import BaseMethod

rng = np.random.default_rng(0)
catalogue = [f"item{i:04}" for i in range(1000)]
pictured = [item for i, item in enumerate(catalogue) if i % 10]
features = 1.0 + np.arange(len(pictured))[:, None]  # a row says whose it is
used = rng.permutation(catalogue[:600])
train = [(f"user{i % 50}", str(item), 1.0) for i, item in enumerate(used)]

images = ImageModality(features=features, ids=list(pictured), normalized=False)
method = BaseMethod.from_splits(train, train[:1], item_image=images)
places = method.train_set.iid_map
got = {item: method.train_set.item_image.features[place, 0] for item, place in places.items()}
right = [got[item] == 1 + pictured.index(item) for item in got if item in pictured]
bare = [item for item in got if item not in pictured]
owners = {item: pictured[int(got[item]) - 1] for item in bare if got[item]}
print(f"{sum(right)} of {len(right)} items with a picture have their own")
print(f"{len(owners)} of {len(bare)} without one have another's, as", *list(owners.items())[:2])
assert all(right) and len(bare) == 60
assert len(owners) == 60, "items without features get no others' now"
PYTHON
