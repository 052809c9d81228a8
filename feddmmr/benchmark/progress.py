"""How far a benchmark is: a bar with an estimate on a terminal, or else a line for each stage."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from feddmmr.benchmark.run import Plan
from feddmmr.benchmark.training import Job
from feddmmr.notes import note
from server_app.record.units import spoken


class Progress:
    """Over the rounds of all benchmarks; on stderr, since results are on stdout."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._total = sum(plan.rounds for plan in plans)
        self._done: dict[tuple[str, str, int], int] = {}  # by home, run and stage
        self._known: set[tuple[str, str, int]] = set()  # finished before this command began
        self._started = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar, self._task = _bar(self._total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, job: Job, rounds: int, done: bool) -> None:
        """A job has that many finished rounds; ``done`` is said once, at its end."""
        name = (str(job.config["home"]), job.run, job.stage)
        if done and name not in self._done:
            self._known.add(name)
        self._done[name] = rounds
        label = f"{Path(name[0]).parent.name}: {job.row}, seed {job.seed}"
        if self._bar is not None:
            finished = sum(self._done.values())
            self._bar.update(
                self._task, completed=finished, total=max(self._total, finished), description=label
            )
        elif done:
            note(f"{label}: {self._told(name)}")

    def _told(self, name: tuple[str, str, int]) -> str:
        """That a job is done, and when all of them will be."""
        if name in self._known:
            return "finished before"
        known = sum(self._done[one] for one in self._known)
        done = sum(self._done.values())
        passed = time.monotonic() - self._started
        left = passed / max(1, done - known) * max(0, self._total - done)
        return f"done; {done} of {self._total} rounds, {spoken(passed)}, about {spoken(left)} left"


def _bar(total: int) -> tuple[Any, Any]:
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        redirect_stdout=False,
        redirect_stderr=False,
    )
    return bar, bar.add_task("preparing", total=total)
