"""A node: the users it hosts, their dataset and one resident model, kept for the process's life."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from client_app.data import Dataset, Rows, history_digest, open_dataset, partition_rows
from client_app.demo import demo_dataset
from shared_model.config import Settings, Value, parse_settings
from shared_model.errors import ConfigError, NodeError
from shared_model.fingerprint import app_sha256
from shared_model.messages import NodeReport
from shared_model.model import Recommender, build
from shared_model.plan import EvaluationPlan, RoundPlan

_FEATURE_FACTS = ("visual_dim", "text_dim", "visual_coverage", "text_coverage", "encoders")
Pairs = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Placement:
    """Where a node's users come from: a share of one folder, or a folder of its own."""

    name: str
    partition: int  # -1 with a folder of its own
    num_partitions: int
    folder: Path


@dataclass(frozen=True)
class Node:
    """Everything a handler needs besides its message."""

    settings: Settings
    placement: Placement
    dataset: Dataset
    rows: Rows  # [N] users of the dataset that this node hosts
    model: Recommender  # scratch: every message loads its arrays into it

    def report(self) -> NodeReport:
        """Counts and fingerprints of what this node hosts."""
        return NodeReport(
            name=self.placement.name,
            partition=self.placement.partition,
            num_partitions=self.placement.num_partitions,
            users=len(self.rows),
            interactions=int(self.dataset.lengths(self.rows).sum()),
            items=self.dataset.num_items,
            cold_items=int(self.dataset.cold.sum()),
            history_digest=f"{history_digest(self.dataset, self.rows):064x}",
            catalogue_sha256=self.dataset.catalogue_sha256,
            features_sha256=self.dataset.features_sha256,
            features=json.dumps({key: self.dataset.info.get(key) for key in _FEATURE_FACTS}),
            app_sha256=app_sha256(),
        )

    def check_plan(self, plan: RoundPlan | EvaluationPlan) -> None:
        """Refuse a plan made by other code or for another catalogue."""
        own = {"app_sha256": app_sha256(), "catalogue_sha256": self.dataset.catalogue_sha256}
        for name, value in own.items():
            if getattr(plan, name) != value:
                raise NodeError(
                    f"the round plan's {name} is not this node's",
                    where=self.placement.name,
                    expected=value[:12],
                    got=getattr(plan, name)[:12],
                    todo="give server and nodes the same app and catalogue; restart a SuperLink "
                    "that was started inside a project folder",
                )


def open_node(node_config: Mapping[str, Value], run_config: Mapping[str, Value]) -> Node:
    """The node of this configuration; opened once a process, since actors outlive messages."""
    return _open(tuple(sorted(node_config.items())), tuple(sorted(run_config.items())))


@lru_cache(maxsize=4)
def _open(node_config: Pairs, run_config: Pairs) -> Node:
    settings = parse_settings(dict(run_config))
    placement = _placement(dict(node_config), settings)
    dataset = _open_folder(placement.folder)
    partition, of = max(placement.partition, 0), placement.num_partitions
    rows = partition_rows(dataset, partition, of)
    model = _resident_model(settings, dataset.num_items)
    return Node(settings, placement, dataset, rows, model)


@lru_cache(maxsize=2)
def _open_folder(folder: Path) -> Dataset:
    return open_dataset(folder)


@lru_cache(maxsize=2)
def _resident_model(settings: Settings, num_items: int) -> Recommender:
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "no GPU on this node",
            where="run-config key 'device'",
            got=settings.device,
            todo="use device='cpu', or give the node a GPU (client-resources-num-gpus)",
        )
    return build(settings.shape(num_items), settings.seed, settings.device)


def _placement(node_config: Mapping[str, Value], settings: Settings) -> Placement:
    """A node with ``data-dir`` hosts all users found there, others a partition of ``dataset``."""
    if "data-dir" in node_config:
        folder = Path(str(node_config["data-dir"]))
        return Placement(str(node_config.get("name", folder.name)), -1, 1, folder)
    if "partition-id" not in node_config or "num-partitions" not in node_config:
        raise ConfigError(
            "the node does not know its users",
            where="node-config",
            expected="partition-id and num-partitions, or data-dir",
            got=", ".join(sorted(node_config)) or "nothing",
            todo="start the SuperNode with --node-config 'data-dir=\"/abs/folder\"'",
        )
    partition, of = int(node_config["partition-id"]), int(node_config["num-partitions"])
    folder = Path(settings.dataset) if settings.dataset else demo_dataset(settings.home_folder)
    return Placement(str(node_config.get("name", f"partition-{partition}")), partition, of, folder)
