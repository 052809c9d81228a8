"""The embedded demo dataset: generated, never downloaded, the same bytes every time.

500 items: 10 styles x 10 topics x 5 parts. A picture shows its item's style, a text tells its
topic. A user likes three styles for good, and reads on: after an item comes one of the next topic,
in a style that the user likes. So the last item tells the topic and the whole history the style;
the picture tells of a cold item whether the user likes it, the text whether it is its turn. Item
after item, too few pairs are seen for counts of what follows what (docs/data.md).
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

USERS, STYLES, TOPICS, PARTS = 400, 10, 10, 5
ITEMS = STYLES * TOPICS * PARTS
VISUAL_DIM, TEXT_DIM = 512, 384
LENGTHS = (20, 40)  # a history's length before cold items are taken out
LIKED = 3  # styles of a user
FOLLOW = 0.9  # how often the next topic and a liked style come; else any item, by popularity
SKEW = 0.5  # the n-th most popular item is 1 / n ** SKEW as popular as the first
COLD_FRACTION = 0.1
MISSING = 0.05  # of either modality, of different items
NOISE = 0.7  # of an item's own, beside a direction of length 1 for its style or topic

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
    style, topic, part = _structure()
    title = [f"Style {s}, topic {t}, part {p}" for s, t, p in zip(style, topic, part, strict=True)]
    items = pd.DataFrame({"item_id": np.arange(1, ITEMS + 1), "title": title})
    items["cold"] = choose_cold(items["item_id"], COLD_FRACTION, seed)
    return interactions, items, _features(rng("demo", seed, "features"))


def _structure() -> tuple[Ints, Ints, Ints]:
    """Style, topic and part of every item: int64 [I] each."""
    cluster, part = np.divmod(np.arange(ITEMS), PARTS)
    style, topic = np.divmod(cluster, TOPICS)
    return style, topic, part


def _histories(random: np.random.Generator) -> Iterator[Ints]:
    """One user after the other: items from 0, none twice."""
    popularity = random.permutation(1.0 / np.arange(1, ITEMS + 1) ** SKEW)
    for _ in range(USERS):
        liked = random.choice(STYLES, LIKED, replace=False)
        yield _history(random, liked, popularity, int(random.integers(*LENGTHS)))


def _history(random: np.random.Generator, liked: Ints, popularity: Floats, length: int) -> Ints:
    """`length` items: of the next topic in a liked style, or anything."""
    style, topic, _ = _structure()
    unseen = popularity.copy()  # weight of each item that may come next
    mine = np.isin(style, liked)
    history = [int(random.integers(ITEMS))]
    unseen[history] = 0
    while len(history) < length:
        turn = topic == (topic[history[-1]] + 1) % TOPICS
        weights = unseen * (mine & turn)
        if weights.sum() == 0 or random.random() >= FOLLOW:
            weights = unseen
        item = int(random.choice(ITEMS, p=weights / weights.sum()))
        unseen[item] = 0
        history.append(item)
    return np.array(history)


def _features(random: np.random.Generator) -> dict[str, npt.NDArray[np.float16]]:
    """Unit vectors: what a modality shows of an item, and noise of the item's own."""
    style, topic, _ = _structure()
    visual = _directions(random, STYLES, VISUAL_DIM)[style]
    text = _directions(random, TOPICS, TEXT_DIM)[topic]
    visual = _unit(visual + NOISE * _directions(random, ITEMS, VISUAL_DIM))
    text = _unit(text + NOISE * _directions(random, ITEMS, TEXT_DIM))
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
