"""Server optimizers: SGD, momentum and Adam on the round's pseudo-gradient.

Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), algorithm 2, with Adam's bias
correction and eps where torch has them (Flower's FedAdam has another algorithm).

eps is 1e-5. Updates are sums in float32, whose last bits depend on which users share a batch, and
Adam multiplies an error near zero by rate / eps: with torch's 1e-8 a handful of half a million
parameters differed by 1e-4 between topologies (invariant 1). Most entries of an update are well
above it (docs/log.md).
"""

import torch
from torch import Tensor

from shared_model.model.recommender import Arrays
from shared_model.stages import TABLE

_MOMENTUM = 0.9
_BETA1, _BETA2, _EPS = 0.9, 0.99, 1e-5
_DECAY = 0.3
_SLOTS = {"sgd": (), "momentum": ("velocity",), "adam": ("first", "second")}
_TOUCHED = "touched"  # rounds that a row was in: its own number of steps


class ServerOptimizer:
    """Moves the global arrays along the mean client delta. State is arrays, so it checkpoints."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps = 0
        self.state: Arrays = {}

    def step(
        self, arrays: Arrays, delta: Arrays, learning_rate: float, rows: Tensor | None = None
    ) -> Arrays:
        """New arrays from old ones and the mean delta, which points downhill. Same names.

        ``rows`` [U]: the delta has these of the item table alone, and no other one moves, nor does
        its state (lazy Adam): each is corrected by the number of its own steps.
        """
        self.steps += 1
        new = {}
        for name, array in arrays.items():
            slots = {slot: self._slot(slot, name, array) for slot in _SLOTS[self.kind]}
            if name == TABLE and rows is not None:
                new[name] = self._some(array, delta[name], learning_rate, rows, slots)
            else:
                new[name] = array + learning_rate * self._move(slots, delta[name], self.steps)
        return new

    def _some(
        self, table: Tensor, delta: Tensor, rate: float, rows: Tensor, slots: Arrays
    ) -> Tensor:
        """A table whose ``rows`` alone have moved."""
        touched = self._slot(_TOUCHED, TABLE, table[:, 0])
        touched[rows] += 1
        own = {slot: state[rows] for slot, state in slots.items()}
        move = self._move(own, delta, touched[rows][:, None])
        for slot, state in slots.items():
            state[rows] = own[slot]
        new = table.clone()
        new[rows] += rate * move
        return new

    def _slot(self, slot: str, name: str, like: Tensor) -> Tensor:
        key = f"{slot}/{name}"
        if key not in self.state:
            self.state[key] = torch.zeros_like(like)
        return self.state[key]

    def _move(self, slots: Arrays, delta: Tensor, steps: int | Tensor) -> Tensor:
        """Where to, by the array's ``slots``, which are moved in place."""
        if self.kind == "sgd":
            return delta
        if self.kind == "momentum":
            return slots["velocity"].mul_(_MOMENTUM).add_(delta)
        first = slots["first"].lerp_(delta, 1 - _BETA1)
        second = slots["second"].mul_(_BETA2).addcmul_(delta, delta, value=1 - _BETA2)
        scale = (second / (1 - _BETA2**steps)).sqrt_().add_(_EPS)
        return (first / (1 - _BETA1**steps)).div_(scale)


def scheduled_rate(schedule: str, rate: float, round_: int, num_rounds: int) -> float:
    """The server learning rate of a round, counted from 1.

    ``decay`` is constant and falls linearly to zero over the last 30% of the rounds. A warmup is
    not offered: it cost 3% of HR@10 on MovieLens-1M (docs/log.md).
    """
    if schedule == "constant":
        return rate
    return rate * min(1.0, (num_rounds - round_ + 1) / (_DECAY * num_rounds))
