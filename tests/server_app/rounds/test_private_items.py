"""Under noise nobody is told which items a round's participants met."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message

from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.nodes.census import take_census
from server_app.nodes.fitting import fit
from shared_model.protocol import messages
from shared_model.protocol.config import parse_settings
from shared_model.protocol.plan import RoundPlan
from shared_model.stages import stage_of
from tests.support.strategy import DEFAULTS

NOISE = {"dp-clip-norm": 1.0, "dp-noise-multiplier": 1.0, "weighting": "uniform"}
MASKS = {"dp-clip-norm": 1.0, "weighting": "uniform", "aggregation": "secure"}


@pytest.mark.parametrize(
    ("settings", "asked", "told"),
    [
        ({}, {"candidates": 5}, True),
        ({}, {}, False),
        ({}, {"candidates": 5, "draw": "secret"}, False),
        (NOISE | {"aggregation": "mean", "stage": 1}, {"candidates": 5}, False),
        (MASKS, {"candidates": 5}, False),
    ],
)
def test_a_node_tells_its_items_for_rounds_without_noise_or_masks_alone(
    small_dataset: Dataset, tmp_path: Path, settings: Any, asked: Any, told: bool
) -> None:
    own = {"dataset": str(small_dataset.folder), "home": str(tmp_path)}
    config = DEFAULTS | own | settings
    grid = InProcessGrid([{"partition-id": 0, "num-partitions": 1}], config)
    parsed = parse_settings(config)
    census = take_census(grid, parsed)
    app = next(iter(census.nodes.values())).app_sha256
    plan: RoundPlan = fit(parsed, stage_of(1), census).round_plan(
        1, 1, app, census.catalogue_sha256
    )
    content = messages.request_content(dataclasses.replace(plan, **asked), None, ArrayRecord())
    (reply,) = grid.send_and_receive([Message(content, 1000, messages.ITEMS)])
    assert messages.refuses(reply.content) is not told
    assert bool(reply.content.array_records) is told
