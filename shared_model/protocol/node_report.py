"""What a node says of itself when a run begins, and what of it cannot be true."""

import json
import re
from dataclasses import dataclass

from shared_model.errors import NodeError
from shared_model.fingerprint import canonical
from shared_model.protocol.lengths import read_lengths

# The least that each count of a report can be, the most that any can, and what is a hash.
_LEAST = {"partition": -1, "num_partitions": 1, "users": 1, "interactions": 1, "items": 1}
_LEAST |= {"cold_items": 0, "visual": 0, "text": 0, "trainable": 0}
MOST = 2**48
_HEX = {"history_digest": r"[0-9a-f]{1,64}", "features_sha256": r"([0-9a-f]{64})?"}


@dataclass(frozen=True)
class NodeReport:
    """What a node hosts, as it answers to ``query.prepare``. Counts and fingerprints only."""

    name: str
    partition: int  # -1: a node with a data folder of its own
    num_partitions: int
    users: int
    interactions: int
    items: int
    cold_items: int
    history_digest: str  # hex, adds up over nodes modulo 2**256
    catalogue_sha256: str
    features_sha256: str
    features: str  # JSON: dimensions, coverages and encoders
    visual: int  # dimensions that the model is built with; 0 without features
    text: int
    app_sha256: str
    trainable: int  # users with a training target
    lengths: str = ""  # JSON: how many users have histories of which length (lengths.py)


def check_report(report: NodeReport) -> None:
    """``NodeError`` if a count or a fingerprint cannot be one."""
    faults = [name for name, least in _LEAST.items() if not least <= getattr(report, name) < MOST]
    faults += [name for name, of in _HEX.items() if not re.fullmatch(of, getattr(report, name))]
    faults += [] if _is_object(report.features) else ["features"]
    faults += [] if _counts_users(report) else ["lengths"]
    if faults:
        got = ", ".join(faults)
        raise NodeError("a node's report cannot be true", where=ascii(report.name)[:80], got=got)


def _is_object(text: str) -> bool:
    try:
        value = json.loads(text)
        return isinstance(value, dict) and bool(
            canonical(value)
        )  # no NaN, which no manifest can say
    except (ValueError, RecursionError):
        return False


def _counts_users(report: NodeReport) -> bool:
    """Whether the counted lengths, if any are told, are those of all its users."""
    try:
        return not report.lengths or sum(read_lengths(report.lengths).values()) == report.users
    except (ValueError, TypeError, RecursionError):
        return False
