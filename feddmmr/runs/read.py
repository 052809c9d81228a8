"""Runs on disk, read and never locked: one that goes on, or failed, can be looked at as well."""

import difflib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from feddmmr.launch.command import checked, own_app
from feddmmr.runs.notes import Note, read_note
from server_app.record.lock import Writer, writer_of
from server_app.record.manifest_file import unsealed
from server_app.record.results import TABLE_GROUPS
from server_app.record.schema import ManifestDocument, Split, StageRecord
from server_app.record.units import spoken
from shared_model.errors import ManifestError
from shared_model.protocol.lengths import length_groups
from shared_model.protocol.rules import RUN_NAME
from shared_model.stages import STAGES

_COUNTS = ("users", "items", "interactions", "cold_items")
Cost = Literal["seconds", "bytes_down", "bytes_up"]  # of a round
HEADLINE = ("all", "uniform-100")  # group and protocol of the figures that stand for a stage


@dataclass(frozen=True)
class Run:
    """A run's folder and its manifest's document, whose seal and shape hold."""

    folder: Path
    data: ManifestDocument

    @property
    def name(self) -> str:
        """The run's name, as its folder is called."""
        return self.folder.name

    @property
    def stages(self) -> list[tuple[int, StageRecord]]:
        """Number and record of the stages that were begun, in order."""
        return sorted((int(number), record) for number, record in self.data["stages"].items())

    @property
    def writer(self) -> Writer | None:
        """The process that writes the run now, if one does."""
        return writer_of(self.folder)

    def newest_complete(self) -> int:
        """The last stage that is complete, 0 if none is."""
        return max((n for n, record in self.stages if record["status"] == "complete"), default=0)

    @property
    def note(self) -> Note:
        """What somebody wrote about it."""
        return read_note(self.folder)

    @property
    def age(self) -> str:
        """How long ago the manifest was saved."""
        return f"{spoken(max(0.0, time.time() - self.saved.timestamp()))} ago"

    @property
    def saved(self) -> datetime:
        """When the manifest was saved, in UTC."""
        return datetime.fromtimestamp((self.folder / "manifest.json").stat().st_mtime, UTC)


def complete_stage(run: Run, stage: int = 0) -> tuple[int, StageRecord]:
    """Number and record of a complete stage; 0 is the newest one. ``ManifestError`` otherwise."""
    number = stage or run.newest_complete()
    record = run.data["stages"].get(str(number))
    if record is None or record["status"] != "complete":
        named = f"stage {stage}" if stage else "no stage"
        raise ManifestError(
            f"{named} of this run is{' not' if stage else ''} complete",
            where=str(run.folder),
            got=", ".join(f"stage {n} {r['status']}" for n, r in run.stages) or "no stage",
            todo="finish the run, or choose a complete stage with --stage",
        )
    return number, record


def home_folder(home: Path | None) -> Path:
    """The folder of the runs: the one given, or else the run-config's default."""
    given = str(home.expanduser().absolute()) if home is not None else None
    settings = checked(own_app(), {"home": given} if given else {})
    return Path(settings["home"]).expanduser()


def read_run(home: Path, name: str) -> Run:
    """A run by its name. ``ManifestError`` if there is none, or not as it was saved."""
    folder = home / "runs" / name
    path = folder / "manifest.json"
    try:
        if folder.parent != home / "runs":
            raise FileNotFoundError  # a name is one folder, not a path
        data = unsealed(path.read_bytes(), path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_such_run(home, name) from error
    except OSError as error:
        raise ManifestError("unreadable manifest", where=str(path), got=str(error)) from error
    _require_facts(data, path)
    return Run(folder, data)


def _require_facts(data: ManifestDocument, path: Path) -> None:
    """The facts that every tool shows: more than a run needs, so the shape has them not."""
    lost = [f"app/{key}" for key in ("name", "version", "packages") if key not in data["app"]]
    lost += [f"dataset/{key}" for key in _COUNTS if type(data["dataset"].get(key)) is not int]
    if lost:
        got = f"none or another type of {', '.join(lost)}"
        raise ManifestError("the manifest lacks facts", where=str(path), got=got)


def run_names(home: Path) -> list[str]:
    """Every folder below ``home/runs`` that a run may have, by name."""
    folder = home / "runs"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and RUN_NAME.holds(p.name))


def no_such_run(home: Path, name: str) -> ManifestError:
    names = run_names(home)
    if name in names:
        todo = "wait for its first round, or see the log of the run"
        if writer_of(home / "runs" / name) is None:  # a killed process: others leave no such folder
            todo = f"submit it again, or `feddmmr runs delete {name}`"
        return ManifestError(
            "this run has saved nothing yet", where=str(home / "runs" / name), todo=todo
        )
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:5]
    todo = (
        f"one of: {', '.join(near)}; all: feddmmr runs list"
        if near
        else "another --home, or feddmmr run"
    )
    return ManifestError("no such run", where=str(home / "runs"), got=ascii(name), todo=todo)


def rounds_of(number: int, record: StageRecord) -> int:
    """How many rounds a stage was to have."""
    if chosen := record.get("by_data"):
        return chosen["num_rounds"]
    return int(record["config"].get("num_rounds") or STAGES[number].few_rounds)  # of older runs


def cell(record: StageRecord, split: Split, group: str, protocol: str) -> dict[str, float] | None:
    """Metrics of a split, or ``None`` where the stage has none."""
    return record[split].get(group, {}).get(protocol)


def groups_of(records: Iterable[StageRecord]) -> list[str]:
    """Every group that a test of these records has: those of the closing table first, parts by
    length last."""
    found = {group for record in records for group in record["test"]}
    parts = length_groups(found)
    return [
        *(group for group in TABLE_GROUPS if group in found),
        *sorted(found - set(TABLE_GROUPS) - set(parts)),
        *parts,
    ]


def stale(record: StageRecord) -> str:
    """A mark for figures of a stage whose parent was trained again since."""
    return " (stale)" if record["status"] == "stale" else ""


def two(values: Mapping[str, float] | None) -> str:
    """HR@10 / NDCG@10."""
    return "-" if values is None else f"{values['hr@10']:.3f} / {values['ndcg@10']:.3f}"


def total(record: StageRecord, name: Cost) -> float:
    """Sum over a stage's rounds of one of their numbers."""
    return float(sum(entry[name] for entry in record["rounds"]))


def plain(value: Any) -> str:
    """A value of a config as one short text."""
    return f"{value:g}" if isinstance(value, float) else str(value)
