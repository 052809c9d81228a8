"""Whether a site is alive: it notes when it last heard of its SuperNode, and a check reads that.

    python -P -m feddmmr.site.health       # exit code 0 if so; feddmmr site --check

It imports neither Flower nor the rest of the project, since it runs twice a minute.
"""

import os
import sys
import time
from pathlib import Path

NAME = "site-alive"
LONGEST = 120.0  # seconds; a site that trains hears of its SuperNode by a heartbeat every 30
_EVERY = 5.0  # seconds between two notes


def note_path() -> Path:
    """Where the site of this FLWR_HOME notes it."""
    return Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser() / NAME


class Alive:
    """Notes that its SuperNode answered a site."""

    def __init__(self) -> None:
        self._noted = 0.0
        self._path = note_path()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)  # an earlier site's

    def heard(self) -> None:
        """Note it, at most every few seconds."""
        now = time.monotonic()
        if now - self._noted >= _EVERY or not self._noted:
            self._path.write_text(f"{os.getpid()}\n")
            self._noted = now


def trouble(now: float) -> str:
    """What is wrong with the site of this FLWR_HOME at ``now`` (`time.time`); empty if nothing."""
    path = note_path()
    try:
        age, pid = now - path.stat().st_mtime, int(path.read_text())
    except (OSError, ValueError):
        return f"no site has reached its SuperNode; where: {path}"
    if not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
        return f"the site's process {pid} is gone; where: {path}"
    if age > LONGEST:
        return f"the site heard of its SuperNode {age:.0f} s ago; expected at most {LONGEST:.0f} s"
    return ""


def main() -> None:
    """Check, and say in one line what is wrong."""
    if wrong := trouble(time.time()):
        sys.exit(wrong)


if __name__ == "__main__":
    main()
