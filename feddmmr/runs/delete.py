"""Delete a run: whole or not at all, and never under a process that writes it."""

import os
import shutil
from pathlib import Path

from feddmmr.runs.read import no_such_run, read_run, run_names
from server_app.record.lock import Writer, held, require_free
from server_app.record.units import size
from shared_model.errors import ManifestError


def warning(home: Path, name: str) -> str:
    """What is lost with a run, in a line. ``ManifestError`` if there is none, or it is written."""
    folder = _folder(home, name)
    require_free(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    told = f"run '{name}' has {len(files)} files, {size(sum(f.stat().st_size for f in files))}."
    try:
        stages = read_run(home, name).stages
    except ManifestError:  # damaged, or nothing was saved: it can be deleted all the same
        return told
    if any(record["privacy"] for _, record in stages):
        told += " What it released under differential privacy is then recorded nowhere."
    return told


def delete_run(home: Path, name: str) -> None:
    """Delete a run's folder. ``ManifestError`` if there is none, or it is written or stays.

    The folder is renamed first, which happens or does not: no run is ever left by halves.
    """
    folder = _folder(home, name)
    gone = folder.with_name(f".deleted-{name}-{os.getpid()}")  # no name of a run
    with held(folder, Writer(os.getpid())):
        try:
            folder.rename(gone)
        except OSError as error:
            raise ManifestError(
                "cannot delete the run", where=str(folder), got=str(error), todo="it is as it was"
            ) from error
    try:
        shutil.rmtree(gone)
    except OSError as error:
        raise ManifestError(
            "the run is deleted, but not all of its files",
            where=str(gone),
            got=str(error),
            todo="delete that folder",
        ) from error


def _folder(home: Path, name: str) -> Path:
    if name not in run_names(home):
        raise no_such_run(home, name)
    return home / "runs" / name
