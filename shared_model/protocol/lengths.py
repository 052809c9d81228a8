"""Lengths of histories in steps of 5%, counted: by these all nodes cut their users into tenths.

A length is that of a test's input. Letters: B users, S steps.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Where steps begin: each length up to 20 has its own, those beyond are 5% wide. [S], up to 2^31.
STEPS: Ints = np.unique(np.round(1.05 ** np.arange(441)).astype(np.int64))
PARTS = 10  # into which users are cut, where lengths allow it
_PREFIX = "length-"


def count_lengths(lengths: Ints) -> str:
    """How many of some users [B] are in each step, as JSON: {"where it begins": users}."""
    steps, counts = np.unique(_step(lengths), return_counts=True)
    return json.dumps(dict(zip(STEPS[steps].tolist(), counts.tolist(), strict=True)))


def read_lengths(text: str) -> dict[int, int]:
    """The counts of a text by ``count_lengths``; ``ValueError`` for any other."""
    given = json.loads(text)
    known = {str(step): step for step in STEPS.tolist()}
    counts = {known.get(step, 0): count for step, count in dict(given).items()}
    if 0 in counts or not all(type(count) is int and count > 0 for count in counts.values()):
        raise ValueError("not a count of lengths")
    return counts


def cuts_of(parts: Iterable[Mapping[int, int]]) -> list[int]:
    """The least length of each tenth of all users but the first, out of the nodes' counts.

    Equal lengths stay together, so that there may be fewer than ten.
    """
    counts = np.zeros(len(STEPS), np.int64)
    for part in parts:
        for step, users in part.items():
            counts[np.searchsorted(STEPS, step)] += users
    ends = np.cumsum(counts)
    wanted = ends[-1] * np.arange(1, PARTS) / PARTS
    # after the step at whose end the number of users is nearest to the wanted one
    last = np.abs(ends[None] - wanted[:, None]).argmin(1)
    some = sorted({int(place) for place in last if 0 < ends[place] < ends[-1]})
    return [int(STEPS[place + 1]) for place in some]


def median_of(parts: Iterable[Mapping[int, int]]) -> int | None:
    """The step that the median length of all users is in, out of the nodes' counts; ``None`` of
    nobody."""
    counts = Counter[int]()
    for part in parts:
        counts.update(part)
    if not counts:
        return None
    steps = sorted(counts)
    ends = np.cumsum([counts[step] for step in steps])
    return steps[int(np.searchsorted(ends, ends[-1] / 2))]


def groups_by_length(lengths: Ints, cuts: list[int]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which users [B] are in each part, [B] bool by its name: "length-6-7" has 6 or 7 items."""
    bounds = [1, *cuts]
    part = np.searchsorted(cuts, lengths, side="right")
    names = [f"{low}-{high - 1}" for low, high in pairwise(bounds)]
    names.append(f"{bounds[-1]}-up")
    return {f"{_PREFIX}{name}": part == place for place, name in enumerate(names)}


def length_groups(groups: Iterable[str]) -> list[str]:
    """Those of some groups that are parts by length, the shortest first."""
    found = [group for group in groups if group.startswith(_PREFIX)]
    return sorted(found, key=lambda group: int(group.split("-")[1]))


def _step(lengths: Ints) -> Ints:
    found: Ints = np.searchsorted(STEPS, np.maximum(lengths, 1), side="right") - 1
    return found
