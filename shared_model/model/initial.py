"""How parameters start: each is a function of its name and the seed.

Biases start at zero, the scales of norms at one, and every other parameter as Glorot and Bengio
have it, unless the module that it belongs to says otherwise in a class attribute ``starts``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared_model.errors import ModelError
from shared_model.seeds import stable_hash


@dataclass(frozen=True)
class Normal:
    """Normal numbers around zero: of that standard deviation, or a matrix's own, times a scale."""

    std: float | None = None  # None: Glorot's
    scale: float = 1.0


Start = float | Normal  # the same number everywhere, or drawn numbers
Starts = dict[str, Start]  # by name, as seen from the module that declares it


def initialise(model: nn.Module, seed: int) -> None:
    """Give every parameter its first value, in place; ``ModelError`` for a start of none."""
    declared = {
        f"{path}.{name}".lstrip("."): start
        for path, module in model.named_modules()
        for name, start in getattr(module, "starts", {}).items()
    }
    parameters = dict(model.named_parameters())
    if unknown := sorted(declared.keys() - parameters.keys()):
        raise ModelError("a start for a parameter that is not there", got=", ".join(unknown))
    for name, parameter in parameters.items():
        key = stable_hash(seed, "init", name) >> 1
        _fill(parameter, declared.get(name, _usual(name)), key)


def _usual(name: str) -> Start:
    if name.endswith("bias"):
        return 0.0
    return 1.0 if name.endswith("norm.weight") else Normal()


@torch.no_grad()
def _fill(parameter: Tensor, start: Start, key: int) -> None:
    if not isinstance(start, Normal):
        parameter.fill_(start)
        return
    std = _glorot_std(*parameter.shape) if start.std is None else start.std
    drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(key))
    parameter.copy_(drawn.mul_(std * start.scale))


def _glorot_std(outputs: int, inputs: int) -> float:
    """Glorot and Bengio (AISTATS 2010), eq. 16. Query, key and value count as matrices apart."""
    parts = outputs // inputs if outputs == 3 * inputs else 1
    return math.sqrt(2 / (outputs / parts + inputs))
