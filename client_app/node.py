"""A node: the users it hosts, their dataset and one resident model, kept for the process's life."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from client_app.data.content import content_dims, open_content
from client_app.data.dataset import (
    Dataset,
    Rows,
    has_training,
    history_digest,
    input_lengths,
    open_dataset,
    partition_rows,
)
from client_app.data.demo import demo_dataset
from client_app.frozen import keep_frozen, read_frozen
from client_app.heap import give_back
from client_app.memory.cache import Recall
from client_app.memory.novelty import count_novelty, sample_share
from client_app.memory.on_device import recall_of
from client_app.secure import Promise, SecureSite, identity_files, session_path
from client_app.tables import HeldTable, held_table
from client_app.training.clipping import with_noise
from shared_model.device import take_device, torch_device
from shared_model.errors import ConfigError, NodeError
from shared_model.fingerprint import app_sha256, arrays_sha256
from shared_model.memory.memory import Ints, MemorySettings
from shared_model.model.recommender import (
    Arrays,
    ModelShape,
    Recommender,
    build,
    load_groups,
    read_groups,
)
from shared_model.protocol.config import Settings, Value, parse_settings
from shared_model.protocol.gaussian import keep_secret
from shared_model.protocol.lengths import count_lengths
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import EvaluationPlan, LocalUpdate, RoundPlan
from shared_model.protocol.rules import DEVICE
from shared_model.stages import Stage

_FEATURE_FACTS = ("visual_dim", "text_dim", "visual_coverage", "text_coverage", "encoders")
Pairs = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Placement:
    """Where a node's users come from: a share of one folder, or a folder of its own."""

    name: str
    partition: int  # -1 with a folder of its own
    num_partitions: int
    folder: Path
    identity: tuple[Path, Path] | None = None  # own key, pinned sites (secure.py)
    secure_only: bool = False  # nothing bare leaves


@dataclass(frozen=True)
class Node:
    """Everything a handler needs besides its message."""

    settings: Settings
    placement: Placement
    dataset: Dataset
    rows: Rows  # [N] users of the dataset that this node hosts

    @property
    def site(self) -> SecureSite:
        """The node as a site of secure aggregation."""
        name, settings = self.placement.name, self.settings
        return SecureSite(
            name,
            session_path(settings.home_folder, name, settings.run),
            self.placement.identity,
            self.placement.partition >= 0,
            self.placement.secure_only,
            settings.secure_against == "lying",
            Promise(settings.dp_clip_norm, settings.noise_std, self._noise_secret)
            if settings.shares_noise
            else None,
        )

    @property
    def _noise_secret(self) -> Path:
        """Where the secret is kept of which this node draws noise."""
        name = hashlib.sha256(self.placement.name.encode()).hexdigest()[:16]
        return self.settings.home_folder / "noise" / f"{name}.secret"

    def _dims(self) -> tuple[int, int]:
        return content_dims(self.dataset) if self.dataset.features_sha256 else (0, 0)

    def model(self, stage: Stage) -> Recommender:
        """The resident model of a stage: scratch, every message loads its arrays into it."""
        shape = self.settings.shape(self.dataset.num_items, *self._dims())
        return _resident_model(shape, self.settings.seed, torch_device(self.settings.device), stage)

    def model_around(self, stage: Stage, table: Tensor) -> Recommender:
        """The resident model of a stage around an item table that is kept apart from it."""
        device = torch_device(self.settings.device)
        model = _resident_model(self.settings.shape(0), self.settings.seed, device, stage)
        model.item_embedding.weight = nn.Parameter(table.to(device), requires_grad=False)
        return model

    def held_table(self) -> HeldTable:
        """The item table that this node holds, where rounds touch few rows of it."""
        return held_table(self.settings.home_folder)

    def load_frozen(self, model: Recommender, sha256: str, sent: Arrays | None) -> bool:
        """Load a stage's frozen groups, those sent or those kept; ``False`` if there are none."""
        home = self.settings.home_folder
        if sent is not None:
            keep_frozen(home, sha256, sent)
        arrays = sent or read_frozen(home, sha256)
        if arrays is None:
            return False
        model.frozen_sha256 = ""
        load_groups(model, arrays, model.stage.frozen)
        model.frozen_sha256 = sha256
        return True

    def recall(self, model: Recommender, told_apart: bool = False) -> Recall:
        """The memories of this node's users under a loaded model.

        ``told_apart``: from other models of the same backbone, too, whose catalogues differ.
        """
        recall = _recall(self.dataset, self.settings.modalities, torch_device(self.settings.device))
        stage = model.stage
        groups = [group for group in ("item_embedding", "backbone") if group in stage.trained]
        backbone = arrays_sha256(read_groups(model, groups))  # what is frozen has its own hash
        frozen = model.frozen_sha256
        whole = frozen + arrays_sha256(read_groups(model, stage.trained)) if told_apart else ""
        return recall.with_backbone(frozen + backbone, whole)

    def novelty(self, total_users: int) -> Ints:
        """Histogram of the novelty that a sample of this node's users meets."""
        memory = MemorySettings(
            short_term=self.settings.memory_short_term,
            long_term=self.settings.memory_long_term,
            novelty=0.0,
            surprise=float("inf"),
        )
        combined = _recall(self.dataset, self.settings.modalities, "cpu").content.combined
        share = sample_share(total_users)
        return count_novelty(self.dataset, combined, self.rows, share, memory)

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
            visual=self._dims()[0],
            text=self._dims()[1],
            app_sha256=app_sha256(),
            trainable=int(has_training(self.dataset, self.rows).sum()),
            lengths=count_lengths(input_lengths(self.dataset, self.rows, "test")),
        )

    def noised(self, update: LocalUpdate, plan: RoundPlan) -> LocalUpdate:
        """The update with this node's share of the round's noise, by a secret of its own."""
        return with_noise(update, plan, keep_secret(self._noise_secret), len(self.rows))

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
    settings = _on_own_device(parse_settings(dict(run_config)), dict(node_config))
    placement = _placement(dict(node_config), settings)
    dataset = _open_folder(placement.folder)
    partition, of = max(placement.partition, 0), placement.num_partitions
    take_device(torch_device(settings.device), placement.name)
    _check_pin(dict(node_config).get("features-sha256"), dataset, placement)
    return Node(settings, placement, dataset, partition_rows(dataset, partition, of))


@lru_cache(maxsize=2)
def _open_folder(folder: Path) -> Dataset:
    return open_dataset(folder)


_resident: dict[tuple[ModelShape, int, str, Stage], Recommender] = {}  # one at most


def _resident_model(shape: ModelShape, seed: int, device: str, stage: Stage) -> Recommender:
    """A stage's: of a large catalogue each has a table of its own, so the last one goes first, and
    what its stage left in pieces."""
    key = (shape, seed, device, stage)
    if key not in _resident:
        _resident.clear()
        give_back()
        _resident[key] = build(*key)
    return _resident[key]


@lru_cache(maxsize=2)
def _recall(dataset: Dataset, modalities: str, device: str) -> Recall:
    return recall_of(dataset, open_content(dataset, modalities, device))


def _on_own_device(settings: Settings, node_config: Mapping[str, Value]) -> Settings:
    """The settings with the device of the node's owner, who knows its machine, if it has one."""
    own = node_config.get("device", settings.device)
    if not isinstance(own, str) or not DEVICE.holds(own):
        raise ConfigError(
            "no device", where="node-config key 'device'", expected=DEVICE.expected, got=repr(own)
        )
    return replace(settings, device=own)


def _check_pin(pinned: Value | None, dataset: Dataset, placement: Placement) -> None:
    """Refuse features that are not those its owner has looked at: they steer what is sent."""
    if pinned is not None and pinned != dataset.features_sha256:
        raise ConfigError(
            "the features are not those that this node is pinned to",
            where=f"{placement.name}, node-config key 'features-sha256'",
            expected=f"{pinned!s:.12}",
            got=dataset.features_sha256[:12] or "no features",
            todo="look at the new features, then change or remove the key",
        )


def _placement(node_config: Mapping[str, Value], settings: Settings) -> Placement:
    """A node with ``data-dir`` hosts all users found there, others a partition of ``dataset``."""
    only = bool(node_config.get("secure-only", False))
    if "data-dir" in node_config:
        folder = Path(str(node_config["data-dir"]))
        name = str(node_config.get("name", folder.name))
        return Placement(name, -1, 1, folder, identity_files(name, node_config), only)
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
    name = str(node_config.get("name", f"partition-{partition}"))
    return Placement(name, partition, of, folder, identity_files(name, node_config), only)
