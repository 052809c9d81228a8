"""`flower-supernode`, with its options: it looks for messages twice a second, not every 3 s."""

import sys
import time
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

SECONDS = 0.5  # between two looks of an idle node: one small request to the SuperLink each


def main() -> None:
    """Run the SuperNode until a signal ends it."""
    # Flower waits 3 s between two looks, and has no option for it: most of a short round.
    waiting = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, SECONDS)))
    start_client_internal.time = waiting  # type: ignore[assignment, attr-defined]
    flower_supernode()


if __name__ == "__main__":
    sys.argv[0] = "flower-supernode"
    main()
