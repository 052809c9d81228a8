"""What came of a round of training, or of an evaluation: frozen values, and what they cost."""

from dataclasses import dataclass, field
from typing import Any

from server_app.record.schema import Clip, Drop, Release
from shared_model.model.recommender import Arrays
from shared_model.protocol.metrics import MetricSums


@dataclass(frozen=True)
class Exchange:
    """What asking the nodes cost in payload bytes, and who was left out of the answers."""

    bytes_down: int = 0
    bytes_up: int = 0
    dropped: list[Drop] = field(default_factory=list)

    def __add__(self, other: "Exchange") -> "Exchange":
        return Exchange(
            self.bytes_down + other.bytes_down,
            self.bytes_up + other.bytes_up,
            self.dropped + other.dropped,
        )


@dataclass(frozen=True)
class RoundResult:
    """A round of training. ``exchange`` counts all attempts, the rest is of the last one."""

    arrays: Arrays  # the new global ones; if nobody trained, the very ones it started from
    participants: int
    targets: int
    loss: float | None  # mean over targets, nats; None if nobody trained, or with noise
    nodes: int  # that answered usably
    exchange: Exchange
    clipped: list[Clip]  # whose update was scaled down
    logs: dict[str, Any]  # of Stages 2 and 3 (logs.py)
    release: Release | None  # of the noised sum, for the ledger; None without noise


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation: metric sums over all users of the nodes that answered."""

    sums: MetricSums
    exchange: Exchange  # of all attempts
