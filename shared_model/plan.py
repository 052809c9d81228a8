"""What a node is told to do in a round, and what it answers: plain frozen data, no flwr."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from shared_model.seeds import UInt64, mix, participates, stable_hash


@dataclass(frozen=True)
class RoundPlan:
    """One round of one stage. Everything a node's answer depends on besides arrays and data."""

    stage: int
    round: int
    seed: int
    fraction: float
    local_steps: int
    learning_rate: float
    weighting: str
    dropout: float
    app_sha256: str
    catalogue_sha256: str

    def takes_part(self, keys: UInt64) -> np.ndarray:
        """Which users [N] take part, by the hash of their keys. [N] bool."""
        return participates(self.seed, self.stage, self.round, self.fraction, keys)

    def dropout_keys(self, keys: UInt64, step: int) -> np.ndarray:
        """Names of the users' dropout masks in a local step. [N] uint64 -> [N] int64."""
        seed = stable_hash(self.seed, "dropout", self.stage, self.round, step)
        return mix(seed, keys).view(np.int64)


@dataclass(frozen=True)
class EvaluationPlan:
    """What to score: one stage's arrays on one split, by that round's arrays only."""

    stage: int
    round: int
    seed: int
    split: Literal["valid", "test"]
    app_sha256: str
    catalogue_sha256: str


@dataclass(frozen=True)
class LocalUpdate:
    """A node's sums over its participating users; nodes add up to the round."""

    arrays: dict[str, Tensor]  # sum of weight * delta, float32
    weight: float  # sum of weights
    loss: float  # sum over targets of the loss before the first local step, nats
    targets: int
    participants: int
