"""What a run came to, to compare with another."""

import json
from pathlib import Path
from typing import Any


def outcome(home: Path) -> dict[str, Any]:
    """The manifest but for what a run cannot repeat: seconds, traffic, and the seal of them."""
    data: dict[str, Any] = json.loads((home / "runs/default/manifest.json").read_bytes())
    del data["seal"]
    for record in data["stages"].values():
        for entry in record["rounds"]:
            for changing in ("seconds", "bytes_down", "bytes_up"):
                del entry[changing]
    return data
