"""What a benchmark found, as a JSON file, or its error as one line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server_app.record.checkpoint import write_atomically
from shared_model.errors import FedDMMRError


def write_json(path: Path, found: Any) -> None:
    """Write it whole or not at all; ``ManifestError`` if the disk is full, say."""
    todo = "free disk space or choose another output file, then measure again"
    write_atomically(path, json.dumps(found, indent=1).encode(), todo)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user, a peer or the disk can cause is one line on stderr, and exit code 1."""
    try:
        yield
    except (FedDMMRError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
