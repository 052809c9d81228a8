"""What batches of users say of themselves, and what all of a node come to."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from client_app.training.objective import Batch, Losses
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate


@dataclass(frozen=True)
class Told:
    """What a batch says of itself: sums over its users, still on the device.

    Read when all batches are trained: so nothing waits for a GPU's answer, and a batch is prepared
    while the one before trains.
    """

    weight: Tensor
    nats: Tensor
    logs: Arrays
    targets: int
    participants: int

    @classmethod
    def of(cls, batch: Batch, losses: Losses) -> "Told":
        logs = {name: value.sum() for name, value in losses.logs.items()}
        sums = batch.weights.sum(), losses.nats.sum(), logs
        return cls(*sums, batch.targets, len(batch.keys))


def summed(sums: Arrays, told: Sequence[Told]) -> LocalUpdate:
    """What batches came to."""
    logs: dict[str, float] = defaultdict(float)
    for batch in told:
        for name, value in batch.logs.items():
            logs[name] += float(value)
    return LocalUpdate(
        sums,
        sum((float(batch.weight) for batch in told), 0.0),
        sum((float(batch.nats) for batch in told), 0.0),
        sum(batch.targets for batch in told),
        sum(batch.participants for batch in told),
        dict(logs),
    )
