"""Rounds of Stage 1 without validations: nodes in process, a strategy, and who is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import take_census
from server_app.privacy.mechanism import Noising
from server_app.rounds.exchange import Asking
from server_app.rounds.result import RoundResult
from server_app.rounds.strategy import StageStrategy
from shared_model.model.recommender import Arrays, build, read_groups
from shared_model.protocol.config import Value, parse_settings
from shared_model.stages import stage_of
from tests.conftest import SMALL
from tests.support.strategy import DEFAULTS

NODES = 4  # threshold 3
CLIPPED: dict[str, Any] = {"dp_clip_norm": 0.05, "weighting": "uniform"}
BARE: dict[str, Any] = {**CLIPPED, "aggregation": "mean"}
SECURE: dict[str, Any] = {**CLIPPED, "aggregation": "secure"}


@dataclass
class Rounds:
    """A stage that is asked for one round after the other."""

    asking: Asking
    arrays: Arrays
    number: int = 0

    def train(self) -> RoundResult:
        """The next round."""
        self.number += 1
        result = self.asking.train(self.number, self.arrays)
        self.arrays = result.arrays
        return result


def rounds_of(
    folder: Path,
    home: Path,
    nodes: int = NODES,
    noising: Noising | None = None,
    **overrides: Any,
) -> Rounds:
    """The rounds of a dataset's folder on so many nodes."""
    given = {"dataset": str(folder), "home": str(home), "stage": 1} | SMALL | overrides
    config = DEFAULTS | {key.replace("_", "-"): value for key, value in given.items()}
    placed: list[dict[str, Value]] = [
        {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
    ]
    grid, settings, stage = InProcessGrid(placed, config), parse_settings(config), stage_of(1)
    census = take_census(grid, settings)
    model = build(settings.shape(census.num_items), settings.seed, stage=stage)
    optimizer = ServerOptimizer(settings.server_optimizer)
    strategy = StageStrategy(stage, settings, census, optimizer, noising=noising)
    return Rounds(Asking(grid, strategy), read_groups(model, stage.trained))


def lose(monkeypatch: pytest.MonkeyPatch, *lost: tuple[str, int]) -> None:
    """Messages of a type to a node (by its partition) are answered by an exception."""
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Any) -> Any:
        if (message.metadata.message_type, message.metadata.dst_node_id - 1000) in lost:
            message.metadata.__dict__["_dst_node_id"] = -1  # no such context: an error reply
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_handle", handle)


def differ(one: Arrays, other: Arrays) -> float:
    """The largest difference of two models."""
    return max(float((one[name] - value).abs().max()) for name, value in other.items())
