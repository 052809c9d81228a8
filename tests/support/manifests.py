"""A manifest's document, made up."""

import json
from typing import Any

SHA256 = "0123456789abcdef" * 4
CELL = {"hr@10": 0.25, "ndcg@10": 0.125, "users": 20.0}


def document(rounds: int = 3) -> dict[str, Any]:
    """A run with Stage 1 complete and Stage 2 running."""
    report = {group: {"full": CELL, "uniform-100": CELL} for group in ("all", "cold")}
    entry = {"participants": 3, "nodes": 1, "loss": 2.5, "seconds": 0.1, "valid": report}
    entry |= {"bytes_down": 9, "bytes_up": 8, "dropped": [{"node": "a", "reason": "late"}]}
    record = {
        "status": "complete",
        "app_sha256": SHA256,
        "parent_sha256": "",
        "checkpoint": "stage1-round0002-abc.safetensors",
        "sha256": SHA256,
        "last": {},
        "loaded": [],
        "trained": ["item_embedding", "backbone"],
        "frozen": [],
        "config": {"seed": 0, "dropout": 0.2, "redo": False},
        "seed": 0,
        "best_round": 2,
        "rounds": [{"round": n} | entry for n in range(rounds)],
        "valid": report,
        "test": report,
        "test_dropped": [],
        "privacy": {},
    }
    last = {"file": "l.safetensors", "sha256": SHA256, "round": 1, "optimizer_steps": 1}
    second = record | {"status": "running", "last": last, "test": {}, "memory_novelty": 0.4}
    return {
        "format": 2,
        "run": "a",
        "app": {"sha256": SHA256, "packages": {}},
        "dataset": {"sha256": SHA256, "catalogue_sha256": SHA256, "users": 20},
        "features": {"sha256": "", "visual_dim": None},
        "stages": json.loads(json.dumps({"1": record, "2": second})),
        "superseded": [{"stage": 1, **record}],
    }
