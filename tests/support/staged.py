"""Datasets with content and runs of all stages, small."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from client_app.data.compile import write_dataset
from feddmmr.launch.in_process import InProcessGrid, run_in_process
from server_app.record.manifest import open_manifest
from server_app.rounds.loop import StageRun
from shared_model.model.recommender import Arrays, ModelShape
from shared_model.protocol import messages

ITEMS, COLD, NODES = 40, {4, 9, 17, 40}, 3
SHAPE = ModelShape(ITEMS, hidden=16, heads=2, blocks=1, max_length=10, visual=12, text=8)
SETTINGS: dict[str, Any] = {
    "num_rounds": 3,
    "evaluate_every": 1,
    "fraction_train": 0.6,
    "hidden_size": SHAPE.hidden,
    "num_blocks": SHAPE.blocks,
    "max_length": SHAPE.max_length,
    "dropout": 0.0,
    "users_per_batch": 8,
    "targets_per_user": 6,
    "negatives": 15,
    "memory_short_term": 4,  # so that the long-term memory is used
    "memory_long_term": 5,
}


@dataclass
class Seen:
    """Every round's arrays, frozen ones included, and every message that carries arrays."""

    arrays: dict[tuple[int, int], Arrays] = field(default_factory=dict)  # by stage and round
    sent: list[tuple[int, Any]] = field(default_factory=list)  # node, request
    replies: list[tuple[int, Any]] = field(default_factory=list)  # stage, content

    def frozen_sent(self, stage: int) -> list[int]:
        """The nodes that the frozen groups went to, one entry a time."""
        asked = ((node, request) for node, request in self.sent if plan(request).stage == stage)
        return [node for node, request in asked if "frozen" in request.content.array_records]


def plan(request: Any) -> Any:
    train = request.metadata.message_type == messages.TRAIN
    return (messages.read_plan if train else messages.read_evaluation)(request.content)


@contextmanager
def watching(at: tuple[int, int] = (0, 0), do: Any = None) -> Iterator[Seen]:
    """Collects what a run does; ``do`` is called when round ``at`` (stage, round) is finished."""
    seen, finish, handle = Seen(), StageRun._finish_round, InProcessGrid._handle

    def finished(self: StageRun, entry: Any, started: float, save: Any) -> None:
        finish(self, entry, started, save)
        now = (self.stage, entry["round"])
        seen.arrays[now] = {n: v.clone() for n, v in (self.strategy.frozen | save).items()}
        if do is not None and now == at:
            do()

    def handled(self: InProcessGrid, message: Any) -> Any:
        reply = handle(self, message)
        if message.metadata.message_type in (messages.TRAIN, messages.EVALUATE):
            seen.sent.append((message.metadata.dst_node_id, message))
            seen.replies.append((plan(message).stage, reply.content))
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "_finish_round", finished)
        patch.setattr(InProcessGrid, "_handle", handled)
        yield seen


@dataclass(frozen=True)
class Whole:
    """An undisturbed run of all stages, and a copy of its home after Stage 1."""

    dataset: Path
    first: Path
    home: Path
    manifest: dict[str, Any]
    seen: Seen

    def go(self, home: Path, nodes: int = NODES, **overrides: Any) -> dict[str, Any]:
        given = {"home": str(home), "dataset": str(self.dataset)}
        return run_in_process(nodes, **(SETTINGS | given | overrides))

    def copy(self, tmp_path: Path, *, first: bool) -> Path:
        source = self.first if first else self.home
        return Path(shutil.copytree(source, tmp_path / "home"))

    def stage(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = self.manifest["stages"][str(number)]
        return record

    def best(self, number: int) -> Arrays:
        named = load_file(self.home / "runs/default" / self.stage(number)["checkpoint"])
        return {name.removeprefix("model/"): value for name, value in named.items()}


def write_mixed(folder: Path, user_id: Callable[[int], int | str] = int) -> Path:
    """24 users with 8 to 31 items; cold items among them, some pictures and texts missing."""
    random = np.random.default_rng(5)
    rows = [
        (user_id(user), item, time)
        for user in range(24)
        for time, item in enumerate(random.permutation(ITEMS)[: 8 + user] + 1)
    ]
    items = pd.DataFrame({"item_id": range(1, ITEMS + 1)})
    items["cold"] = items["item_id"].isin(list(COLD)).astype(int)
    features = {}
    for name, size in (("visual", SHAPE.visual), ("text", SHAPE.text)):
        values = random.standard_normal((ITEMS, size))
        values /= np.linalg.norm(values, axis=1)[:, None]
        values[random.random(ITEMS) < 0.15] = 0
        features[name] = values.astype("f2")
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    write_dataset(folder, interactions, items, features, "mixed")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("stages")
    started = Whole(write_mixed(folder / "dataset"), folder / "first", folder / "home", {}, Seen())
    with watching() as seen:
        started.go(started.home, stage=1)
        shutil.copytree(started.home, started.first)
        manifest = started.go(started.home, stage=0)
    return Whole(started.dataset, started.first, started.home, manifest, seen)


def edit_manifest(home: Path, stage: int, **changes: Any) -> dict[str, Any]:
    """A record edited and sealed anew: damage that the seal does not show."""
    with open_manifest(home, "default") as manifest:
        record: dict[str, Any] = manifest.data["stages"][str(stage)]
        record.update(changes)
        manifest.save()
    return record
