"""Who writes a run: one process at a time, by a lock on its folder that dies with the process.

The lock's file names its holder, so that who waits knows for whom, and how to end it. Whoever only
looks at a run takes no lock for longer than an instant.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from shared_model.errors import ManifestError

_PATIENCE = 0.5  # seconds: somebody who only looks holds the lock for an instant
_FILE = "lock"


@dataclass(frozen=True)
class Writer:
    """A process that writes a run; ``flower_run`` is the id of Flower's run, empty without one."""

    pid: int = 0  # 0: it did not say
    flower_run: str = ""

    def __str__(self) -> str:
        process = f"process {self.pid}" if self.pid else "a process that did not say its name"
        return f"Flower run {self.flower_run} ({process})" if self.flower_run else process

    @property
    def ending(self) -> str:
        """What ends it: a command, or where to press Ctrl-C."""
        return f"`flwr stop {self.flower_run}`" if self.flower_run else "Ctrl-C where it runs"


def writer_of(folder: Path) -> Writer | None:
    """Who writes the run of this folder now; ``None`` if nobody does, or nobody can tell."""
    try:
        with (folder / _FILE).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_writer(lock)
    except OSError:  # no lock, no permission, or a file system without locks
        return None
    return None


def require_free(folder: Path) -> None:
    """``ManifestError`` if a process writes the run of this folder."""
    if (writer := writer_of(folder)) is not None:
        raise _taken(folder, writer)


@contextmanager
def held(folder: Path, writer: Writer) -> Iterator[None]:
    """The run's folder, made if it is not there, locked for ``writer`` while the block runs.

    ``ManifestError`` if another process holds it, or it cannot be written or locked. A folder in
    which nothing but the lock is left is removed: a refused run leaves nothing.
    """
    lock = _locked(folder)
    with lock:
        try:
            _name(lock, writer, folder)
            yield
        finally:
            _tidy(folder)


def _locked(folder: Path) -> TextIO:
    """The lock's file, held; opened anew if its last holder deleted it meanwhile."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        lock = _opened(folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(lock, folder):
                return lock
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                with lock:
                    raise _taken(folder, _read_writer(lock)) from error
            time.sleep(0.05)
        except OSError as error:
            lock.close()
            raise ManifestError(
                "the run's folder cannot be locked",
                where=str(folder),
                got=str(error),
                todo="choose a folder on a local file system with home='/abs/path'",
            ) from error
        lock.close()


def _opened(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / _FILE).open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _is_there(lock: TextIO, folder: Path) -> bool:
    """Whether the file that is locked is the one that others would open."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), (folder / _FILE).stat())
    except FileNotFoundError:
        return False


def _name(lock: TextIO, writer: Writer, folder: Path) -> None:
    try:
        os.ftruncate(lock.fileno(), 0)
        # Past the file's buffer, which would be written once more when it is closed.
        os.write(lock.fileno(), json.dumps(asdict(writer)).encode())
    except OSError as error:  # a full disk
        raise _unwritable(folder, error) from error


def _read_writer(lock: TextIO) -> Writer:
    """The holder that a lock's file names, or one that did not say."""
    with suppress(ValueError, AttributeError):
        lock.seek(0)
        found = json.loads(lock.read(1000))
        pid, flower_run = found.get("pid"), found.get("flower_run")
        if type(pid) is int and isinstance(flower_run, str):
            return Writer(pid, flower_run)
    return Writer()


def _tidy(folder: Path) -> None:
    """Remove a folder that holds nothing but the lock, which is still held."""
    with suppress(OSError):  # not there any more, or not to be written: then it stays
        if [path.name for path in folder.iterdir()] == [_FILE]:
            (folder / _FILE).unlink()
            folder.rmdir()


def _taken(folder: Path, writer: Writer) -> ManifestError:
    return ManifestError(
        "another process writes this run",
        where=str(folder),
        got=str(writer),
        todo=f"wait for it to end, end it with {writer.ending}, or choose another name with "
        "run='NAME'",
    )


def _unwritable(folder: Path, error: OSError) -> ManifestError:
    return ManifestError(
        "cannot write the run's folder",
        where=str(folder),
        got=str(error),
        todo="choose a writable folder with home='/abs/path'",
    )
