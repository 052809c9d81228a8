"""`flower-supernode`, with its options: it looks for messages 2 to 5 times a second, not every 3 s.

It waits in turns: for a message of the SuperLink, then for its ClientApp's answer, which lies in
its own memory. Each wait begins with short pauses, that grow with it.
"""

import sys
import time
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from .pauses import Pauses
from .pulling import pull_soon

FLOWERS = 3.0  # seconds that Flower waits between two looks for a message; for an answer, 0.5
SHORTEST = {True: 0.2, False: 0.02}  # seconds, for a message and for an answer
LONGEST = 0.5


class Looks:
    """The ``sleep`` of a SuperNode: Flower has no option for how often it looks."""

    def __init__(self) -> None:
        self._pauses = {what: Pauses(shortest, LONGEST) for what, shortest in SHORTEST.items()}
        self._message: bool | None = None  # what is waited for

    def sleep(self, seconds: float) -> None:
        """Instead of ``time.sleep``: no longer than Flower would."""
        time.sleep(min(seconds, self.pause(seconds >= FLOWERS, time.monotonic())))

    def pause(self, message: bool, now: float) -> float:
        """Seconds until the next look for a message, or for an answer."""
        if message != self._message:
            self._message = message
            self._pauses[message].begin(now)
        return self._pauses[message].next(now)


def main() -> None:
    """Run the SuperNode until a signal ends it."""
    waiting = SimpleNamespace(sleep=Looks().sleep)
    start_client_internal.time = waiting  # type: ignore[assignment, attr-defined]
    start_client_internal.pull_objects = pull_soon  # type: ignore[attr-defined]
    flower_supernode()


if __name__ == "__main__":
    sys.argv[0] = "flower-supernode"
    main()
