"""The estimate of a long command: from what its units took, and quiet while it is short."""

import pytest

from feddmmr import progress as module
from feddmmr.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, for a test to move."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_what_is_left_takes_as_long_as_what_is_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("audit")
    progress.expect("first", "round", 4)
    progress.expect("second", "round", 10)
    progress.expect("third", "update", 100, 0.5)
    assert progress.seconds_left() == 50  # what is known of updates; nothing yet of rounds
    for _ in range(2):
        clock[0] += 3
        progress.step("first")
    assert progress.seconds_left() == 12 * 3 + 50
    assert capsys.readouterr().err == ""
    clock[0] += 9
    progress.step("first")
    assert capsys.readouterr().err == "audit: first, about 105.0 s left\n"
    assert progress.seconds_left() == 11 * 5 + 50
    progress.end("second")  # it had been done before
    clock[0] += 20
    progress.step("third", 50)
    assert progress.seconds_left() == 5 + 50 * 0.4
    progress.step("nobody expects")
