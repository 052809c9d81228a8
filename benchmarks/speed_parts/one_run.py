"""One run of whatever app stands first on the path, measured: for benchmarks/catalogue.py.

It reads a run's settings as JSON from stdin and needs of the app no more than a run in process and
its manifest: so commits of long ago can be measured beside this one. A round's seconds are told by
the process's own time, of all its threads: whatever else the machine does costs nothing.
"""

import contextlib
import json
import resource
import sys
import time
from typing import Any

try:
    from feddmmr.launch.in_process import run_in_process
except ImportError:  # at 9b0433c and before
    from tools.in_process import run_in_process  # type: ignore


def main() -> None:
    """Print what the stages cost as the last line."""
    given: dict[str, Any] = json.load(sys.stdin)
    stages, nodes = given.pop("stages"), given.pop("nodes")
    time.monotonic = time.process_time  # by which the manifest tells seconds
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        for stage in stages:
            manifest: Any = run_in_process(nodes, stage=stage, **given)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    names = ("round", "seconds", "bytes_down", "bytes_up", "participants")
    found = {
        stage: {
            "rounds": [{name: entry[name] for name in names} for entry in record["rounds"]],
            "test": record["test"]["all"]["full"],
        }
        for stage, record in manifest["stages"].items()
    }
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = {"stages": found, "seconds": seconds, "cpu_seconds": spent, "peak": _peak()}
    print(json.dumps(told))


def _peak() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123 (as old commits have it)
        return 1024 * int(status.read().split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
