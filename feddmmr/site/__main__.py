"""`flower-superexec` for a site, with its options: tasks go to one resident worker.

This room imports itself and Flower alone, so an image can hold it without the app.
"""

import os
import sys

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec import run_superexec

from .executor import ResidentExecutor

POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"  # Flower's: seconds between two looks for a task


def main() -> None:
    """Wait for tasks and run them, until a signal ends it."""
    os.environ.setdefault(POLL, "0.1")
    # Flower has executors, but no option that names one of somebody else's.
    run_superexec.get_executor = lambda *_, **__: ResidentExecutor()  # type: ignore[attr-defined]
    flower_superexec()


if __name__ == "__main__":
    sys.argv[0] = "flower-superexec"
    main()
