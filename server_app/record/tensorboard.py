"""A run's rounds as TensorBoard event files, written while it goes on: `tensorboard=true`.

Each stage is a TensorBoard run of its own, ``home/runs/RUN/tensorboard/stage-N``, with the round as
the step. Nothing else reads these files: what a run is worth is in its manifest.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from server_app.record.schema import RoundRecord
from shared_model.errors import ConfigError, ManifestError
from shared_model.protocol.config import Settings

FOLDER = "tensorboard"
_METRICS = ("hr@10", "ndcg@10")  # of all in the manifest: a chart for each would be hundreds
_COSTS = ("seconds", "bytes_down", "bytes_up")


def require_writer(settings: Settings) -> None:
    """``ConfigError`` if event files are asked for and there is nothing to write them with."""
    if settings.tensorboard and find_spec("tensorboardX") is None:
        raise ConfigError(
            "event files need the package tensorboardX",
            where="run-config key 'tensorboard'",
            got="true, in an environment without it",
            todo="pip install tensorboardX where the ServerApp runs, or set tensorboard=false",
        )


class Events:
    """The event file of one stage, or nothing at all if none is asked for.

    ``first`` is the round that comes next: TensorBoard forgets what an earlier process of this run
    said of it and of later ones, so that a resumed run has no point twice. ``ManifestError`` if
    the files cannot be written.
    """

    def __init__(self, folder: Path, stage: int, first: int, *, wanted: bool) -> None:
        self._folder = folder / FOLDER / f"stage-{stage}"
        self._writer: Any = None
        if wanted:
            try:
                self._open(first)
            except OSError as error:
                raise self._unwritable(error) from error

    def add(self, entry: RoundRecord) -> None:
        """A finished round, at once on disk."""
        if self._writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        values = [Summary.Value(tag=t, simple_value=value) for t, value in points(entry).items()]
        event = Event(wall_time=time.time(), step=entry["round"], summary=Summary(value=values))
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file. What was added is on disk already, or ``add`` has said why not."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def _open(self, first: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files by name; the package's own part of it knows whole seconds only.
        name = str(self._folder / "events")
        self._writer = EventsWriter(name, filename_suffix=f".{time.time_ns():020d}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=start))
        self._writer.flush()

    def _unwritable(self, error: OSError) -> ManifestError:
        return ManifestError(
            "cannot write the event files",
            where=str(self._folder),
            got=str(error),
            todo="free disk space, or set tensorboard=false, then submit the same run again",
        )


def points(entry: Mapping[str, Any]) -> dict[str, float]:
    """A round's numbers by tag: losses, validation, costs, and what the mixture logs."""
    found = {"train/participants": entry["participants"], "train/dropped": len(entry["dropped"])}
    for name, value in entry.items():
        if name in _COSTS:
            found[f"cost/{name}"] = value
        elif name == "epsilon":
            found[f"privacy/{name}"] = value
        elif name == "valid":
            found |= figures(value, "valid")
        elif _is_number(value) and name not in ("round", "participants"):
            found[f"train/{name}"] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}/{key}": one for key, one in value.items() if _is_number(one)}
    return {tag: float(value) for tag, value in found.items()}


def figures(report: Mapping[str, Any], split: str) -> dict[str, float]:
    """The figures of a split by tag: a group of charts for each protocol."""
    return {
        f"{split}_{protocol}/{group}/{metric}": float(cell[metric])
        for group, protocols in report.items()
        for protocol, cell in protocols.items()
        for metric in _METRICS
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
