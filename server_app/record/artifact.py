"""Files of a run, written whole or not at all, and deleted; what fails says why in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared_model.errors import ManifestError
from shared_model.files import write_whole

_RESUBMIT = "free disk space or choose another 'home', then submit the same run again"


def write_atomically(path: Path, content: bytes, todo: str = _RESUBMIT) -> None:
    """Write a file of a run whole, or leave it as it was.

    ``ManifestError`` if the disk is full or the folder cannot be written; nothing is left behind.
    ``todo`` is its advice.
    """
    with _explained("cannot write an artifact", path, todo):
        write_whole(path, content)


def remove(path: Path) -> None:
    """Delete an artifact that nobody needs. ``ManifestError`` if the folder cannot be written."""
    with _explained("cannot delete an old artifact", path, _RESUBMIT):
        path.unlink(missing_ok=True)


@contextmanager
def _explained(what: str, path: Path, todo: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ManifestError(what, where=str(path), got=str(error), todo=todo) from error
