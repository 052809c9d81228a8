"""How far a long command is, and about how long the rest takes: lines on stderr, now and then."""

import time
from collections import defaultdict
from dataclasses import dataclass

from feddmmr.notes import note
from server_app.record.units import spoken

EVERY = 10.0  # seconds between lines; a command that is done before says nothing


@dataclass
class _Task:
    """Units that are still to do."""

    unit: str
    left: int


class Progress:
    """Tasks of a command, each of some units; units of a kind take about as long as each other."""

    def __init__(self, command: str) -> None:
        self._command, self._told = command, time.monotonic()
        self._last = self._told
        self._tasks: dict[str, _Task] = {}
        self._known: dict[str, float] = {}  # seconds of a unit, until one was measured
        self._done: dict[str, int] = defaultdict(int)
        self._took: dict[str, float] = defaultdict(float)

    def expect(self, task: str, unit: str, count: int, seconds: float = 0.0) -> None:
        """A task of ``count`` units, each of which takes ``seconds`` as far as one knows."""
        self._tasks.setdefault(task, _Task(unit, count))
        self._known.setdefault(unit, seconds)

    def step(self, task: str, count: int = 1) -> None:
        """Some units of a task are done; of one that nobody expects, nothing is said."""
        if task not in self._tasks:
            return
        now, found = time.monotonic(), self._tasks[task]
        found.left = max(0, found.left - count)
        self._done[found.unit] += count
        self._took[found.unit] += now - self._last
        self._last = now
        if now - self._told >= EVERY:
            self._told = now
            note(f"{self._command}: {task}, about {spoken(self.seconds_left())} left")

    def end(self, task: str) -> None:
        """Nothing of a task is left: what was not done had been done before."""
        if task in self._tasks:
            self._tasks[task].left = 0
        self._last = time.monotonic()

    def seconds_left(self) -> float:
        """The units that are left, each as long as those of its kind so far."""
        return sum(task.left * self._seconds(task.unit) for task in self._tasks.values())

    def _seconds(self, unit: str) -> float:
        done = self._done[unit]
        return self._took[unit] / done if done else self._known[unit]
