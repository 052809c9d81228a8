"""Runs with noise for tests: their settings, and how they are cut off."""

from typing import Any

import pytest

from feddmmr.launch.in_process import InProcessGrid
from server_app.rounds.loop import StageRun
from tests.conftest import CutError

DP: dict[str, Any] = {
    "dp_clip_norm": 0.05,
    "dp_noise_multiplier": 2.0,
    "weighting": "uniform",
    "aggregation": "mean",
}


def cut_in(
    monkeypatch: pytest.MonkeyPatch, method: str, at: int, run: Any, **settings: Any
) -> None:
    """Run 'cut' until this round's call of a method of StageRun; there the server dies."""
    original = getattr(StageRun, method)

    def cut(self: StageRun, *args: Any) -> Any:
        if (args[0]["round"] if method == "_finish_round" else args[0]) == at:
            raise CutError
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, method, cut)
        with pytest.raises(CutError):
            run(2, run="cut", **settings)


def losing(monkeypatch: pytest.MonkeyPatch, lost: Any) -> None:
    """Training requests (round, node id) that ``lost`` holds for are answered by an exception."""
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Any) -> Any:
        plan = message.content.config_records.get("plan", {})
        if message.metadata.message_type == "train" and lost(
            plan["round"], message.metadata.dst_node_id
        ):
            message.metadata.__dict__["_dst_node_id"] = -1  # no such context: an error reply
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_handle", handle)
