"""The manifest: what a run is made of, which stages hold, and the order between them.

Written last and atomically; a checkpoint counts only once the manifest names it. Two processes
cannot write one run: its folder is locked while it is open (lock.py).
What the file looks like, and what of it is refused, is in manifest_file.py.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from server_app.record.artifact import remove, write_atomically
from server_app.record.lock import Writer, held
from server_app.record.manifest_file import Record as Record
from server_app.record.manifest_file import sealed, unsealed
from server_app.record.schema import (
    FORMAT,
    AppRecord,
    Config,
    DatasetRecord,
    FeaturesRecord,
    ManifestDocument,
    Part,
    StageRecord,
    SupersededStage,
)
from shared_model.errors import ManifestError
from shared_model.fingerprint import file_sha256
from shared_model.protocol.settings import fields_of
from shared_model.stages import Stage, stage_of

_CUT_OFF = ("running", "failed")


class Manifest:
    """One run's record. ``data`` is the JSON document of docs/manifest.md."""

    def __init__(self, folder: Path, data: ManifestDocument) -> None:
        self.folder = folder
        self.data = data

    @property
    def path(self) -> Path:
        """Where the manifest lies."""
        return self.folder / "manifest.json"

    def stage(self, number: int) -> StageRecord | None:
        """What the run recorded for a stage, or ``None``."""
        return self.data["stages"].get(str(number))

    def is_complete(self, number: int) -> bool:
        """Whether a stage is complete and not stale."""
        record = self.stage(number)
        return record is not None and record["status"] == "complete"

    def save(self) -> None:
        """Write the manifest, sealed anew, whole or not at all."""
        write_atomically(self.path, sealed(self.data))

    def remove_unnamed_checkpoints(self) -> None:
        """Delete the checkpoints that no record, superseded ones included, speaks of."""
        named = checkpoint_names(self.data)
        for path in self.folder.glob("*.safetensors*"):  # and temporary files of a killed process
            if path.name not in named:
                remove(path)

    def bind(self, app: AppRecord, dataset: DatasetRecord, features: FeaturesRecord) -> None:
        """Tie a new run to its data; refuse to go on with an old one on other data."""
        parts: dict[Part, DatasetRecord | FeaturesRecord]
        parts = {"dataset": dataset, "features": features}
        for name, value in parts.items():
            if self.data["stages"] and self.data[name]["sha256"] != value["sha256"]:
                raise ManifestError(
                    f"this run belongs to another {name}",
                    where=str(self.path),
                    expected=f"sha256 {self.data[name]['sha256'][:12] or 'none'}",
                    got=value["sha256"][:12] or "none",
                    todo="choose another name with run='NAME'",
                )
        self.data |= {"app": app, "dataset": dataset, "features": features}

    def require_order(self, stage: Stage, config: Config) -> None:
        """``ManifestError`` unless every stage before this one is complete (invariant 3), and was
        trained with the settings that all stages of a run share."""
        for number in range(1, stage.number):
            if not self.is_complete(number):
                record = self.stage(number)
                raise ManifestError(
                    f"stage {stage.number} needs a complete stage {number}",
                    where=str(self.path),
                    expected=f"stage {number} complete",
                    got=record["status"] if record else "not run",
                    todo=f"run stage={number} first, or stage=0 for all in order",
                )
            shared = fields_of("run", "mixture") if stage_of(number).mixes else fields_of("run")
            before = self.data["stages"][str(number)]["config"]
            changed = [key for key in shared if before.get(key) != config.get(key)]
            if changed:
                raise ManifestError(
                    f"stage {stage.number} has other settings than stage {number} of this run",
                    where=str(self.path),
                    expected=", ".join(f"{key}={before.get(key)}" for key in changed),
                    got=", ".join(f"{key}={config.get(key)}" for key in changed),
                    todo="restore them, or choose another name with run='NAME'",
                )

    def _is_whole(self, record: StageRecord) -> bool:
        """Whether the checkpoints that a stage would go on with are there, unchanged."""
        named = {record["checkpoint"]: record["sha256"]}
        last = record["last"]
        if "file" in last:
            named[last["file"]] = last["sha256"]
        paths = {self.folder / file: sha256 for file, sha256 in named.items() if file}
        return all(path.is_file() and file_sha256(path) == paths[path] for path in paths)

    def require_own_config(self, stage: Stage, config: Config, redo: bool) -> None:
        """``ManifestError`` if a stage that was cut off would go on with other settings."""
        old = self.stage(stage.number)
        if old is not None and old["status"] in _CUT_OFF and not redo:
            _require_same_config(old["config"], config, self.path)

    def begin(self, stage: Stage, config: Config, redo: bool, goes_on: bool = True) -> StageRecord:
        """The stage's record to go on with: a fresh one, or a cut-off one of the same config.

        A redone stage that was cut off resumes, too, unless that is what cannot be (its files are
        not as they were, or ``goes_on`` is false).
        """
        self.require_own_config(stage, config, redo)
        old = self.stage(stage.number)
        cut_off = old is not None and old["status"] in _CUT_OFF and old["config"] == config
        if old is not None and cut_off and (not redo or (goes_on and self._is_whole(old))):
            old["status"] = "running"
            return old
        if old is not None:
            redone = {"stage": stage.number, **old, "last": {}}
            self.data["superseded"].append(cast(SupersededStage, redone))
        parent = self.stage(stage.number - 1)
        record: StageRecord = {
            "status": "running",
            "app_sha256": self.data["app"]["sha256"],
            "parent_sha256": parent["sha256"] if parent else "",
            "checkpoint": "",
            "sha256": "",
            "last": {},
            "loaded": list(stage.loaded),
            "trained": list(stage.trained),
            "frozen": list(stage.frozen),
            "config": config,
            "seed": config["seed"],
            "best_round": 0,
            "rounds": [],
            "valid": {},
            "test": {},
            "test_dropped": [],
            "privacy": {},
        }
        self.data["stages"][str(stage.number)] = record
        for number, following in self.data["stages"].items():
            if int(number) > stage.number:
                following["status"] = "stale"
        return record


def checkpoint_names(data: ManifestDocument) -> set[str]:
    """The checkpoints that a run's records speak of, superseded ones included."""
    names = {record["checkpoint"] for record in [*data["stages"].values(), *data["superseded"]]}
    names |= {redone["last"].get("file", "") for redone in data["superseded"]}
    for record in data["stages"].values():
        last = record["last"]
        if "file" in last:
            names.add(last["file"])
    return names


@contextmanager
def open_manifest(home: Path, run: str, flower_run: str = "") -> Iterator[Manifest]:
    """The manifest of ``home/runs/run``, locked; a new one if the run is new.

    ``flower_run`` is what others are told of who holds it. ``ManifestError`` if another process
    holds the run, its folder cannot be written, or the file is not a manifest as it was saved. A
    run of which nothing was saved leaves no folder.
    """
    folder = run_folder(home, run)
    with held(folder, Writer(os.getpid(), flower_run)):
        yield read_manifest(home, run)


def read_manifest(home: Path, run: str) -> Manifest:
    """The same, to look at: neither locked nor made. ``ManifestError`` for a damaged one."""
    folder = run_folder(home, run)
    return Manifest(folder, _read(folder / "manifest.json", run))


def run_folder(home: Path, run: str) -> Path:
    """Where all of a run lies."""
    return home / "runs" / run


def _read(path: Path, run: str) -> ManifestDocument:
    try:
        return unsealed(path.read_bytes(), path)
    except FileNotFoundError:
        empty: Record = {"app": {}, "dataset": {}, "features": {}, "stages": {}, "superseded": []}
        # Not a document yet: the run is bound to its data, and sealed, before anything is saved.
        return cast(ManifestDocument, {"format": FORMAT, "run": run} | empty)
    except OSError as error:
        raise ManifestError("unreadable manifest", where=str(path), got=str(error)) from error


def _require_same_config(old: Config, new: Config, path: Path) -> None:
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        raise ManifestError(
            "a run that was cut off goes on with its own settings only",
            where=str(path),
            expected=", ".join(f"{key}={old.get(key)}" for key in changed),
            got=", ".join(f"{key}={new.get(key)}" for key in changed),
            todo="restore these settings, start over with redo=true, or choose another run='NAME'",
        )
