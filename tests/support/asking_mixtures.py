"""A mixture asked about a random world."""

import pytest
from torch import Tensor

from shared_model.model.mixture import Mixture
from tests.support.naive_mixture import World

ROUTED = pytest.mark.parametrize("routed", [False, True], ids=["uniform", "routed"])


def ask(mixture: Mixture, world: World) -> Tensor:
    scores: Tensor = mixture(world.sequence, world.items, world.memories).scores
    return scores
