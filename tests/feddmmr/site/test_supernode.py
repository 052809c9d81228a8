"""How often a SuperNode looks: often at first, twice a second in the end."""

from itertools import pairwise

from feddmmr.site.supernode import LONGEST, SHORTEST, Pauses


def looks(pauses: Pauses, message: bool, start: float, seconds: float) -> list[float]:
    """When it looks within that time."""
    times = [start]
    while times[-1] < start + seconds:
        times.append(times[-1] + pauses.pause(message, times[-1]))
    return times


def test_pauses_grow_from_the_shortest_to_the_longest() -> None:
    for message in (True, False):
        times = looks(Pauses(), message, 100.0, 20.0)
        pauses = [after - before for before, after in pairwise(times)]
        assert pauses == sorted(pauses)
        assert abs(pauses[0] - SHORTEST[message]) < 1e-9
        assert abs(pauses[-1] - LONGEST) < 1e-9


def test_each_wait_begins_anew() -> None:
    pauses = Pauses()
    looks(pauses, True, 0.0, 60.0)
    assert pauses.pause(False, 60.0) == SHORTEST[False]
    assert pauses.pause(True, 60.1) == SHORTEST[True]


def test_a_message_is_seen_before_a_sixth_more_time_has_passed() -> None:
    for message in (True, False):
        for before, after in pairwise(looks(Pauses(), message, 0.0, 3.0)):
            assert after <= max(1.15 * before, before + SHORTEST[message]) + 1e-9
