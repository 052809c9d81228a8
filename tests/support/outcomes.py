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


def files(home: Path) -> dict[str, bytes]:
    """Every file of a run but the manifest: the checkpoints of all stages, and nothing else."""
    found = {path.name: path.read_bytes() for path in (home / "runs/default").iterdir()}
    del found["lock"]  # names the last process
    del found["manifest.json"]
    return found


def assert_same(home: Path, undisturbed: Path) -> None:
    assert outcome(home) == outcome(undisturbed)
    assert files(home) == files(undisturbed)
