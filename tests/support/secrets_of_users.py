"""What must never leave a node, as the bytes in which it would be seen."""

from collections.abc import Iterator

import numpy as np

from client_app.data.content import open_content
from client_app.data.dataset import Dataset

_ITEMS = 5  # of a history, one after another: in random bytes once in 10^9 histories
_VALUES = 8  # of a row of features


def secrets_of(dataset: Dataset, user_ids: list[str]) -> Iterator[tuple[str, bytes]]:
    """What it is -> the bytes: users' ids and keys, pieces of histories, features in memory."""
    for user_id, key in zip(user_ids, dataset.user_keys.tolist(), strict=True):
        yield f"id of {user_id}", user_id.encode()
        yield f"key of {user_id}", int(key).to_bytes(8, "little")
        yield f"key of {user_id} as text", str(key).encode()
    for row, user_id in enumerate(user_ids):
        history = np.asarray(dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]])
        for start in range(0, len(history) - _ITEMS + 1):
            piece = history[start : start + _ITEMS]
            for dtype in ("<i2", "<i4", "<i8", "<f4", "<f8"):
                yield f"history of {user_id} as {dtype}", piece.astype(dtype).tobytes()
            for between in (",", ", ", " "):
                yield f"history of {user_id} as text", between.join(map(str, piece)).encode()
    content = open_content(dataset, "both")
    for name, rows in (("picture", content.visual.numpy()), ("text", content.text.numpy())):
        for item in np.flatnonzero(rows.any(axis=1)).tolist():
            for dtype in ("<f2", "<f4", "<f8"):
                yield f"{name} of item {item}", rows[item, :_VALUES].astype(dtype).tobytes()
