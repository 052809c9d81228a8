"""Reducing the nodes' sums to the round's mean update, in float64 and partition order."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from shared_model.errors import NodeError
from shared_model.model import Arrays, check_arrays
from shared_model.plan import MIXTURE_LOGS, LocalUpdate


@dataclass(frozen=True)
class RoundUpdate:
    """What the usable nodes of a round say together."""

    delta: Arrays  # weighted mean update, float32
    loss: float  # mean over targets, nats
    targets: int
    participants: int
    logs: dict[str, float]  # sums over participants


def check_update(update: LocalUpdate, arrays: Arrays, users: int, interactions: int) -> None:
    """``NodeError`` or ``ModelError`` unless an update can be added to the others.

    ``users`` and ``interactions`` are what the node hosts: no honest sum exceeds them.
    """
    check_arrays(arrays, update.arrays)
    limits = {"weight": interactions, "targets": interactions, "participants": users}
    for name, limit in limits.items():
        if not 0 <= getattr(update, name) <= limit:
            raise NodeError(
                f"unusable {name}", expected=f"0 to {limit}", got=str(getattr(update, name))
            )
    if not math.isfinite(update.loss):
        raise NodeError("unusable loss", expected="a finite number", got=str(update.loss))
    expected = set(MIXTURE_LOGS if "mixture.gate" in arrays and update.participants else ())
    if set(update.logs) != expected or not all(map(math.isfinite, update.logs.values())):
        raise NodeError("unusable logs", expected="a finite number each", got=str(update.logs))
    broken = [name for name, value in update.arrays.items() if not torch.isfinite(value).all()]
    if broken:
        raise NodeError("update is not finite", where=", ".join(broken))
    if update.weight == 0 and any(value.any() for value in update.arrays.values()):
        raise NodeError("an update without weight", expected="zeros", got="other numbers")


def reduce_updates(updates: Iterable[LocalUpdate], arrays: Arrays) -> RoundUpdate | None:
    """Sums over nodes in their order, divided by the sum of weights; ``None`` if nobody trained."""
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in arrays.items()}
    weight, loss, targets, participants = 0.0, 0.0, 0, 0
    logs: dict[str, float] = defaultdict(float)
    for update in updates:
        for name, total in sums.items():
            total += update.arrays[name]
        weight, loss = weight + update.weight, loss + update.loss
        targets, participants = targets + update.targets, participants + update.participants
        for name, value in update.logs.items():
            logs[name] += value
    if weight == 0:
        return None
    delta = {name: (total / weight).float() for name, total in sums.items()}
    return RoundUpdate(delta, loss / max(1, targets), targets, participants, dict(logs))
