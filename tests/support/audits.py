"""A run whose histories are planted, and its audit."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from feddmmr import cli

ITEMS, USERS = 150, 60
RUN: dict[str, Any] = {
    "stage": 1,
    "run": "planted",
    "num_rounds": 40,
    "evaluate_every": 40,
    "checkpoint_every": 40,
    "fraction_train": 0.5,
    "hidden_size": 32,
    "num_blocks": 1,
    "max_length": 20,
    "dropout": 0.0,
    "server_learning_rate": 0.01,
}


def planted_histories() -> dict[int | str, list[int]]:
    """The next item of a ring comes next in two cases of three, so some of it can be learned."""
    random, histories = np.random.default_rng(3), {}
    for user in range(USERS):
        history = [int(random.integers(ITEMS))]
        while len(history) < 16:
            following = (history[-1] + 1) % ITEMS
            if random.random() > 0.67 or following in history:
                following = int(random.choice([i for i in range(ITEMS) if i not in history]))
            history.append(following)
        histories[user] = [item + 1 for item in history]
    return histories


def audit(*arguments: str | Path, out: Path | None = None) -> Any:
    """`feddmmr audit` in this process; the JSON, or the code that it exits with."""
    given = ["feddmmr", "audit", *map(str, arguments), *(["--out", str(out)] if out else [])]
    before, sys.argv = sys.argv, given
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            return stop.code
    finally:
        sys.argv = before
    return json.loads(out.read_text()) if out else 0


def rows_of(document: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [r for r in document["rows"] if all(r[key] == value for key, value in wanted.items())]


def row_of(document: dict[str, Any], **wanted: str) -> dict[str, Any]:
    [row] = rows_of(document, **wanted)
    return row
