"""What a benchmark found, as a JSON file."""

import json
from pathlib import Path
from typing import Any

from server_app.record.checkpoint import write_atomically


def write_json(path: Path, found: Any) -> None:
    """Write it whole or not at all; ``ManifestError`` if the disk is full, say."""
    todo = "free disk space or choose another output file, then measure again"
    write_atomically(path, json.dumps(found, indent=1).encode(), todo)
