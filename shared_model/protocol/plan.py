"""What a node is told to do in a round, and what it answers: plain frozen data, no flwr."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from shared_model.seeds import UInt64, mix, participates, stable_hash, uniform

if TYPE_CHECKING:  # the command reads settings whenever it starts, and waits for no torch
    from torch import Tensor


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
    clip_norm: float = 0.0  # of each user's whole update; 0 = not clipped
    draw: str = ""  # with differential privacy: by which participation is drawn, not public
    noise_std: float = 0.0  # of what all nodes add to their sums together; 0 = they add nothing
    total_users: int = 0  # of all nodes
    candidates: int = 0  # of Stage 1's loss, drawn of the items nobody in the round met; 0 = all

    @property
    def private(self) -> bool:
        """Whether the round is noised, so that nothing beside its sum may be told."""
        return bool(self.draw)

    @property
    def sums_users(self) -> bool:
        """Whether nobody's own update is needed, so that a batch has one gradient."""
        return self.local_steps == 1 and self.clip_norm == 0

    def takes_part(self, keys: UInt64) -> np.ndarray:
        """Which users [N] take part, by the hash of their keys. [N] bool."""
        by = self.draw or self.seed
        return participates(by, self.stage, self.round, self.fraction, keys)

    def dropout_keys(self, keys: UInt64, step: int) -> np.ndarray:
        """Names of the users' dropout masks in a local step. [N] uint64 -> [N] int64."""
        seed = stable_hash(self.seed, "dropout", self.stage, self.round, step)
        return mix(seed, keys).view(np.int64)


@dataclass(frozen=True)
class TableVersion:
    """Which item table a request is about, and from which one its rows lead there."""

    sha256: str  # content hash (fingerprint.rows_sum)
    base: str  # the version that the rows change; "" = the request has the whole table


@dataclass(frozen=True)
class MixturePlan:
    """What Stages 2 and 3 add to a plan: which frozen arrays it needs, memory, sampling, losses."""

    frozen_sha256: str  # content hash of the stage's frozen groups
    short_term: int
    long_term: int
    novelty: float
    surprise: float
    targets: int
    negatives: int
    id_dropout: float
    content_dropout: float
    alignment_weight: float
    temperature: float
    surprise_weight: float
    balance_weight: float


@dataclass(frozen=True)
class EvaluationPlan:
    """What to score: one stage's arrays on one split, by that round's arrays only."""

    stage: int
    round: int
    seed: int
    split: Literal["valid", "test"]
    app_sha256: str
    catalogue_sha256: str
    share: float = 1.0  # of the users: a sample, the same in every round and stage of a run
    cuts: str = ""  # JSON: the lengths at which users are cut into parts (lengths.py); "" = none

    def scores(self, keys: UInt64) -> np.ndarray:
        """Which users [N] are scored, by the hash of their keys. [N] bool."""
        return uniform(stable_hash(self.seed, "evaluate"), keys) < self.share


# What a node logs of Stages 2 and 3: sums over its participants of each user's loss or mean weight,
# of interactions that left its short-term memory, of those written to the long-term one, and of the
# slots in use.
LOSS_LOGS = ("alignment", "load_balance")
ROUTER_LOGS = ("router_visual", "router_text", "router_entropy")
MEMORY_LOGS = ("memory_left", "memory_written", "memory_short", "memory_long")
MIXTURE_LOGS = LOSS_LOGS + ROUTER_LOGS + MEMORY_LOGS


@dataclass(frozen=True)
class LocalUpdate:
    """A node's sums over its participating users; nodes add up to the round."""

    arrays: "dict[str, Tensor]"  # sum of weight * delta, float32
    weight: float  # sum of weights
    loss: float  # sum over targets of the loss before the first local step, nats
    targets: int
    participants: int
    logs: dict[str, float] = field(default_factory=dict)  # sums over participants, for the record
    rows: "Tensor | None" = None  # of the item table, rising: those that its array has; None = all

    def __add__(self, other: "LocalUpdate") -> "LocalUpdate":
        """The sums of both, of other users each; both have the same rows."""
        logs = {n: self.logs.get(n, 0.0) + other.logs.get(n, 0.0) for n in self.logs | other.logs}
        return LocalUpdate(
            {name: value + other.arrays[name] for name, value in self.arrays.items()},
            self.weight + other.weight,
            self.loss + other.loss,
            self.targets + other.targets,
            self.participants + other.participants,
            logs,
            self.rows,
        )
