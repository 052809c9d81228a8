"""How often is looked: often at first, seldom in the end, and soon for what is on its way."""

import inspect
import time
from itertools import pairwise
from types import ModuleType

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.superexec import run_superexec
from flwr.superlink.grid import http_grid
from flwr.supernode import start_client_internal
from flwr.supernode.runtime import run_clientapp

from feddmmr.site import executor, supernode
from feddmmr.site.pauses import Pauses
from feddmmr.site.pulling import pull_soon

WAITS = [
    *((shortest, supernode.LONGEST) for shortest in supernode.SHORTEST.values()),
    (executor.SHORTEST, executor.LONGEST),
]


def looks(pauses: Pauses, start: float, seconds: float) -> list[float]:
    """When it looks within that time."""
    pauses.begin(start)
    times = [start]
    while times[-1] < start + seconds:
        times.append(times[-1] + pauses.next(times[-1]))
    return times


@pytest.mark.parametrize(("shortest", "longest"), WAITS)
def test_pauses_grow_from_the_shortest_to_the_longest(shortest: float, longest: float) -> None:
    times = looks(Pauses(shortest, longest), 100.0, 20.0)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == pytest.approx(sorted(pauses))
    assert pauses[0] == pytest.approx(shortest)
    assert pauses[-1] == pytest.approx(longest)


@pytest.mark.parametrize(("shortest", "longest"), WAITS)
def test_it_is_seen_before_a_sixth_more_time_has_passed(shortest: float, longest: float) -> None:
    for before, after in pairwise(looks(Pauses(shortest, longest), 0.0, 2.0)):
        assert after <= max(1.15 * before, before + shortest) + 1e-9


def test_each_wait_of_a_supernode_begins_anew() -> None:
    look = supernode.Looks()
    assert look.pause(True, 0.0) == supernode.SHORTEST[True]
    assert look.pause(True, 60.0) == supernode.LONGEST
    assert look.pause(False, 60.0) == supernode.SHORTEST[False]
    assert look.pause(True, 60.1) == supernode.SHORTEST[True]


def test_a_part_that_is_on_its_way_is_had_soon_after_it_came() -> None:
    asked = []

    def pull(name: str) -> bytes:
        asked.append(name)
        if len(asked) < 4:  # Flower would be back after 1, 3 and 7 s
            raise ObjectUnavailableError(name)
        return b"part"

    start = time.monotonic()
    assert pull_soon(["a"], pull) == {"a": b"part"}
    assert time.monotonic() - start < 4.0


@pytest.mark.parametrize(
    ("module", "used"),
    [
        (start_client_internal, "time.sleep("),
        (start_client_internal, "pull_objects("),
        (run_clientapp, "pull_and_inflate_object_from_tree("),
        (run_superexec, "time.sleep("),
        (run_superexec, "get_executor("),
        (http_grid, "pull_objects("),
    ],
)
def test_flower_looks_by_the_names_that_are_replaced(module: ModuleType, used: str) -> None:
    assert hasattr(module, used.rstrip("(").split(".")[0])
    assert used in inspect.getsource(module)
