"""`flower-superexec` for a site, with its options: tasks go to one resident worker.

This room imports itself and Flower alone, so an image can hold it without the app.
"""

import sys
from types import SimpleNamespace
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec import run_superexec
from flwr.supernode.runtime import run_clientapp

from .executor import ResidentExecutor
from .pulling import inflate_soon


def main() -> None:
    """Wait for tasks and run them, until a signal ends it."""
    # Flower has executors, but no option that names one of somebody else's.
    run_superexec.get_executor = _resident  # type: ignore[attr-defined]
    run_clientapp.pull_and_inflate_object_from_tree = inflate_soon  # type: ignore[attr-defined]
    flower_superexec()


def _resident(*_: Any, **__: Any) -> ResidentExecutor:
    executor = ResidentExecutor()
    run_superexec.time = SimpleNamespace(sleep=executor.sleep)  # type: ignore[assignment, attr-defined]
    return executor


if __name__ == "__main__":
    sys.argv[0] = "flower-superexec"
    main()
