"""Reducing the nodes' sums to the round's mean update, in float64 and partition order."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from shared_model.errors import NodeError
from shared_model.model import Arrays, check_arrays
from shared_model.plan import LocalUpdate


@dataclass(frozen=True)
class RoundUpdate:
    """What the usable nodes of a round say together."""

    delta: Arrays  # weighted mean update, float32
    loss: float  # mean over targets, nats
    targets: int
    participants: int


def check_update(update: LocalUpdate, arrays: Arrays) -> None:
    """``NodeError`` or ``ModelError`` unless an update can be added to the others."""
    check_arrays(arrays, update.arrays)
    if not (math.isfinite(update.weight) and update.weight >= 0):
        raise NodeError("unusable weight", expected="finite and >= 0", got=str(update.weight))
    if not math.isfinite(update.loss) or min(update.targets, update.participants) < 0:
        raise NodeError("unusable sums", got=f"loss {update.loss}, targets {update.targets}")
    broken = [name for name, value in update.arrays.items() if not torch.isfinite(value).all()]
    if broken:
        raise NodeError("update is not finite", where=", ".join(broken))


def reduce_updates(updates: Iterable[LocalUpdate], arrays: Arrays) -> RoundUpdate | None:
    """Sums over nodes in their order, divided by the sum of weights; ``None`` if nobody trained."""
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in arrays.items()}
    weight, loss, targets, participants = 0.0, 0.0, 0, 0
    for update in updates:
        for name, total in sums.items():
            total += update.arrays[name]
        weight, loss = weight + update.weight, loss + update.loss
        targets, participants = targets + update.targets, participants + update.participants
    if weight == 0:
        return None
    delta = {name: (total / weight).float() for name, total in sums.items()}
    return RoundUpdate(delta, loss / max(1, targets), targets, participants)
