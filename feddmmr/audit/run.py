"""What an audit starts from: a finished run, its data, and twins of it under other defences.

A twin is a run of the same settings and seed with a few run-config keys changed, trained in process
below ``home/audits/RUN`` and kept there: its name has a hash of all that it depends on.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from client_app.data.dataset import Dataset
from client_app.node import Node, open_node
from feddmmr.launch.command import own_app
from feddmmr.launch.in_process import InProcessGrid
from feddmmr.progress import Progress
from feddmmr.runs.read import read_run
from server_app.app import app_record, federate
from server_app.nodes.census import Census
from server_app.privacy.ledger import made_by
from server_app.record.checkpoint import load_checkpoint
from server_app.record.schema import Config, ManifestDocument, StageRecord
from shared_model.device import torch_device
from shared_model.errors import DataError, ManifestError
from shared_model.fingerprint import canonical, text_sha256
from shared_model.model.recommender import Arrays, Recommender, build, load_groups
from shared_model.protocol.config import Settings, Value, default_config, key_of, parse_settings
from shared_model.protocol.gaussian import derive
from shared_model.stages import STAGES

STAGE = STAGES[1]  # which twins train; the items attack reads the later stages, too
Overrides = dict[str, Value]


@dataclass(frozen=True)
class Trained:
    """The best checkpoint of a run's Stage 1 and what the manifest says of it."""

    arrays: Arrays
    record: StageRecord

    @property
    def hit_rate(self) -> float:
        """Validation HR@10 (uniform-100, "all") of the best round."""
        found = self.record["valid"]["all"].get("uniform-100")
        if found is None:
            raise DataError("every user has met the whole catalogue: nothing to rank among")
        return float(found["hr@10"])


@dataclass(frozen=True)
class AuditedRun:
    """A finished Stage 1, as the server that ran it holds it, and the data that it may not see."""

    name: str
    config: Overrides  # the run-config that it was trained with, on the audit's device
    node: Node  # a node that hosts every user
    folder: Path
    document: ManifestDocument  # the manifest's
    released: Trained
    progress: Progress = field(default_factory=lambda: Progress("audit"))
    secure: bool = False  # nobody saw a node's update: twins' sums are bare, which come to the same

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.node.settings

    @property
    def dataset(self) -> Dataset:
        """Every user of the run."""
        return self.node.dataset

    @property
    def data_sha256(self) -> str:
        """Of its catalogue and histories."""
        return str(self.document["dataset"]["sha256"])

    def settings_of(self, record: StageRecord) -> Settings:
        """The settings of one of the run's stages, on the audit's device."""
        return parse_settings(_bare(_recorded(record)) | _here(self.config))

    @property
    def work(self) -> Path:
        """Where the audit keeps twins and what attackers make up."""
        return self.settings.home_folder / "audits" / self.name

    def model(self, arrays: Arrays | None = None) -> Recommender:
        """A model of its own on the audit's device: with these arrays, or as the run began."""
        shape = self.settings.shape(self.dataset.num_items)
        model = build(shape, self.settings.seed, torch_device(self.settings.device), STAGE)
        if arrays is not None:
            load_groups(model, arrays, STAGE.trained)
        return model

    def twin(self, name: str, overrides: Overrides, folder: Path | None = None) -> Trained:
        """The same run under ``overrides``, on its own users or on those of a dataset ``folder``.

        The run itself where nothing would change.
        """
        if folder is None and self.is_like(overrides):
            return self.released
        where = {"dataset": str(folder or self.dataset.folder), "home": str(self.work)}
        config = self.config | overrides | where
        named = config | {"device": "", "data": self.data_sha256, **made_by(app_record())}
        config["run"] = f"{name.replace(' + ', '-')}-{text_sha256(canonical(named))[:12]}"
        own = self.work / "runs" / str(config["run"])
        nodes: list[Overrides] = [{"partition-id": 0, "num-partitions": 1}]
        with self.log(twin_task(name)):
            grid, settings = InProcessGrid(nodes, config), parse_settings(config)
            document = federate(grid, settings, self.noise_key)
        self.progress.end(twin_task(name))  # of one that an earlier audit has trained, all is done
        return _trained(own, document)

    def is_like(self, overrides: Overrides) -> bool:
        """Whether the run has these keys already."""
        return all(self.config[key] == value for key, value in overrides.items())

    def expect_twin(self, name: str) -> None:
        """Say that a twin will be trained, for as many rounds as the run, and about as fast."""
        rounds = [entry for entry in self.released.record["rounds"] if entry["round"]]
        seconds = sum(entry["seconds"] for entry in rounds) / max(1, len(rounds))
        self.progress.expect(twin_task(name), "round", len(rounds), seconds)

    @property
    def noise_key(self) -> bytes:
        """What the noise of everything that the audit trains is drawn from: the same every time.

        Nothing of it is released, so it need not be secret.
        """
        return derive(b"audit", self.settings.seed)

    @contextlib.contextmanager
    def log(self, task: str = "") -> Iterator[None]:
        """Send what a run prints to ``audits/RUN/log.txt``; each round is a step of a ``task``."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (
            (self.work / "log.txt").open("ab") as file,
            _Counted(file, self.progress, task) as counted,
            contextlib.redirect_stdout(counted),
        ):
            yield


class _Counted(io.TextIOWrapper):
    """A log that takes notice of the rounds that are said in it: each is a step of a task."""

    def __init__(self, file: BinaryIO, progress: Progress, task: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._progress, self._task = progress, task

    def write(self, text: str) -> int:
        """As any file."""
        if text.startswith(f"stage {STAGE.number} round ") and " 0/" not in text:
            self._progress.step(self._task)
        return super().write(text)


def twin_task(name: str) -> str:
    """What the progress of an audit calls a training."""
    return f"training, {name}"


def open_run(home: Path, name: str, dataset: Path | None, device: str) -> AuditedRun:
    """Open a run whose Stage 1 is complete, with the dataset it was trained on; ``None``: the demo.

    ``ManifestError`` if there is no such run, its Stage 1 is not complete, or the data are others;
    ``DataError`` if the dataset cannot be opened.
    """
    run = read_run(home, name)
    folder, document = run.folder, run.data
    record = document["stages"].get(str(STAGE.number))
    if record is None or record["status"] != "complete":
        raise ManifestError(
            f"an audit needs a complete stage {STAGE.number}",
            where=str(folder),
            expected="complete",
            got=record["status"] if record else "not run",
            todo=f"finish it with `feddmmr run --run {name} --stage {STAGE.number}`",
        )
    own: Overrides = {"run": name, "home": str(home), "stage": STAGE.number, "device": device}
    own |= {"dataset": str(dataset) if dataset else ""}
    config = _bare(_recorded(record)) | own
    node = open_node({"partition-id": 0, "num-partitions": 1}, config)
    _require_same_data(node, document, folder)
    trained = _trained(folder, document)
    secure = record["config"]["aggregation"] == "secure"
    return AuditedRun(name, config, node, folder, document, trained, secure=secure)


def _recorded(record: StageRecord) -> Overrides:
    """The run-config that a stage was trained with, but for where it ran; nothing left open."""
    recorded = record["config"] | cast(Config, record.get("by_data", {}))
    own = {key_of(field): value for field, value in recorded.items()}
    return default_config(own_app() / "pyproject.toml") | own


def _bare(config: Overrides) -> Overrides:
    """The same run-config with bare sums in place of secure ones, which one node has none of."""
    if config["aggregation"] != "secure":
        return config
    shared = config["dp-noise-on"] == "secure"
    return config | {"aggregation": "mean"} | ({"dp-noise-on": "server"} if shared else {})


def _here(config: Overrides) -> Overrides:
    return {key: config[key] for key in ("run", "home", "device", "dataset")}


def _require_same_data(node: Node, document: ManifestDocument, folder: Path) -> None:
    found = Census({0: node.report()}).dataset()["sha256"]
    if found != document["dataset"]["sha256"]:
        raise ManifestError(
            "the run was trained on another dataset",
            where=str(folder),
            expected=f"sha256 {document['dataset']['sha256'][:12]}",
            got=f"{found[:12]} of {node.dataset.folder}",
            todo="name the dataset with --dataset",
        )


def _trained(folder: Path, document: ManifestDocument) -> Trained:
    record = document["stages"][str(STAGE.number)]
    return Trained(load_checkpoint(folder / record["checkpoint"], record["sha256"]), record)
