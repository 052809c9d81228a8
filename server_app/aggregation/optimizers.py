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

_MOMENTUM = 0.9
_BETA1, _BETA2, _EPS = 0.9, 0.99, 1e-5
_DECAY = 0.3


class ServerOptimizer:
    """Moves the global arrays along the mean client delta. State is arrays, so it checkpoints."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps = 0
        self.state: Arrays = {}

    def step(self, arrays: Arrays, delta: Arrays, learning_rate: float) -> Arrays:
        """New arrays from old ones and the mean delta, which points downhill. Same names."""
        self.steps += 1
        move = {"sgd": self._sgd, "momentum": self._momentum, "adam": self._adam}[self.kind]
        return {n: arrays[n] + learning_rate * move(n, delta[n]) for n in arrays}

    def _slot(self, slot: str, name: str, like: Tensor) -> Tensor:
        return self.state.setdefault(f"{slot}/{name}", torch.zeros_like(like))

    def _sgd(self, _: str, delta: Tensor) -> Tensor:
        return delta

    def _momentum(self, name: str, delta: Tensor) -> Tensor:
        return self._slot("velocity", name, delta).mul_(_MOMENTUM).add_(delta)

    def _adam(self, name: str, delta: Tensor) -> Tensor:
        first = self._slot("first", name, delta).lerp_(delta, 1 - _BETA1)
        second = self._slot("second", name, delta)
        second.mul_(_BETA2).addcmul_(delta, delta, value=1 - _BETA2)
        unbiased = first / (1 - _BETA1**self.steps)
        return unbiased / ((second / (1 - _BETA2**self.steps)).sqrt() + _EPS)


def scheduled_rate(schedule: str, rate: float, round_: int, num_rounds: int) -> float:
    """The server learning rate of a round, counted from 1.

    ``decay`` is constant and falls linearly to zero over the last 30% of the rounds. A warmup is
    not offered: it cost 3% of HR@10 on MovieLens-1M (docs/log.md).
    """
    if schedule == "constant":
        return rate
    return rate * min(1.0, (num_rounds - round_ + 1) / (_DECAY * num_rounds))
