"""The embedded demo dataset: generated, never downloaded, the same bytes every time.

500 items lie in 25 clusters (5 styles x 5 topics) of 20 places in a ring. A history mostly walks
along rings: after an item comes the next one of its ring. An image shows style and place modulo 4,
a text says topic and place modulo 5: each modality tells half of the cluster and half of the place
(4 x 5 = 20 places, by the Chinese remainder theorem), so one is useful and both are better.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_model.errors import DataError
from shared_model.seeds import rng

if TYPE_CHECKING:
    import pandas as pd

USERS, STYLES, TOPICS, RING = 200, 5, 5, 20
ITEMS = STYLES * TOPICS * RING
VISUAL_PLACES, TEXT_PLACES = 4, 5  # coprime, with RING as their product
VISUAL_DIM, TEXT_DIM = 512, 384
LENGTHS = (38, 66)  # a history's length before cold items are taken out
FOLLOW = 0.75  # how often a history goes on to the next place of its ring
OWN_CLUSTER = 0.6  # else: how often it jumps within the user's clusters, not to a popular item
CLUSTERS_A_USER = 4
COLD_FRACTION = 0.1
MISSING = 0.05  # of either modality, of different items

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def demo_dataset(home: Path) -> Path:
    """The demo's folder below `home`, generated if it is not there; the same in every process.

    Its name has a hash of the generator, so that another version writes another folder. Two
    processes may race: both generate, one renames first, the other's copy is discarded.
    """
    folder = home / f"demo-{_version()}"
    if folder.is_dir():
        return folder
    try:
        write_demo(folder)
    except DataError:
        if not folder.is_dir():
            raise
    return folder


def write_demo(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Generate the demo, write it as a dataset folder, return its dataset.json.

    Raises DataError if `folder` exists.
    """
    from client_app.data.compile import (
        write_dataset,  # pandas: only when there is something to write
    )

    interactions, items, features = demo_frames(seed)
    encoders = {"visual": "planted", "text": "planted"}
    return write_dataset(folder, interactions, items, features, "demo", encoders, popularity=True)


def demo_frames(
    seed: int = 0,
) -> tuple["pd.DataFrame", "pd.DataFrame", dict[str, npt.NDArray[np.float16]]]:
    """The tables that `write_dataset` takes: interactions, items with `cold`, features."""
    import pandas as pd

    from client_app.data.compile import choose_cold

    histories = list(_histories(rng("demo", seed, "histories")))
    users = np.repeat(np.arange(1, USERS + 1), [len(history) for history in histories])
    interactions = pd.DataFrame(
        {
            "user_id": users,
            "item_id": np.concatenate(histories) + 1,
            "timestamp": np.concatenate([np.arange(len(history)) for history in histories]),
        }
    )
    style, topic, place = _structure()
    title = [f"Style {s}, topic {t}, part {p}" for s, t, p in zip(style, topic, place, strict=True)]
    items = pd.DataFrame({"item_id": np.arange(1, ITEMS + 1), "title": title})
    items["cold"] = choose_cold(items["item_id"], COLD_FRACTION, seed)
    return interactions, items, _features(rng("demo", seed, "features"))


def _structure() -> tuple[Ints, Ints, Ints]:
    """Style, topic and place in the ring of every item: int64 [I] each."""
    cluster, place = np.divmod(np.arange(ITEMS), RING)
    style, topic = np.divmod(cluster, TOPICS)
    return style, topic, place


def _histories(random: np.random.Generator) -> Iterator[Ints]:
    """One user after the other: items from 0, none twice."""
    popularity = random.permutation(1.0 / np.arange(1, ITEMS + 1) ** 0.7)
    for _ in range(USERS):
        own = random.choice(STYLES * TOPICS, CLUSTERS_A_USER, replace=False)
        yield _history(random, own, popularity, int(random.integers(*LENGTHS)))


def _history(random: np.random.Generator, own: Ints, popularity: Floats, length: int) -> Ints:
    """`length` items: along a ring, or by a jump into the user's clusters or to a popular item."""
    unseen = popularity.copy()  # weight of each item that may come next
    mine = np.isin(np.arange(ITEMS) // RING, own)
    history: list[int] = []
    while len(history) < length:
        item = _next_in_ring(history[-1]) if history else -1
        if item < 0 or unseen[item] == 0 or random.random() >= FOLLOW:
            weights = unseen * mine if random.random() < OWN_CLUSTER else unseen
            item = int(random.choice(ITEMS, p=weights / weights.sum()))
        unseen[item] = 0
        history.append(item)
    return np.array(history)


def _next_in_ring(item: int) -> int:
    return item // RING * RING + (item + 1) % RING


def _features(random: np.random.Generator) -> dict[str, npt.NDArray[np.float16]]:
    """Unit vectors: what a modality shows of the cluster, of the place, and noise of the item's."""
    style, topic, place = _structure()
    visual = _directions(random, STYLES, VISUAL_DIM)[style]
    visual = visual + _directions(random, VISUAL_PLACES, VISUAL_DIM)[place % VISUAL_PLACES]
    text = _directions(random, TOPICS, TEXT_DIM)[topic]
    text = text + _directions(random, TEXT_PLACES, TEXT_DIM)[place % TEXT_PLACES]
    visual = _unit(visual + 0.7 * _directions(random, ITEMS, VISUAL_DIM))
    text = _unit(text + 0.7 * _directions(random, ITEMS, TEXT_DIM))
    count = round(MISSING * ITEMS)
    missing = random.choice(ITEMS, 2 * count, replace=False)
    visual[missing[:count]] = 0
    text[missing[count:]] = 0
    return {"visual": visual.astype(np.float16), "text": text.astype(np.float16)}


def _directions(random: np.random.Generator, count: int, dim: int) -> Floats:
    return _unit(random.standard_normal((count, dim)))


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _version() -> str:
    """A hash of the code that makes the folder: the generator and what compiles it."""
    here = Path(__file__).parent
    names = ("demo.py", "compile.py", "tables.py", "folder.py", "popularity.py")
    code = b"".join((here / name).read_bytes() for name in names)
    return hashlib.sha256(code).hexdigest()[:12]
