"""Files written whole or not at all: a temporary file beside them, then a rename.

Whoever calls turns ``OSError`` into an error of its own, which says what was being written.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, rivals: bool = False) -> Iterator[Path]:
    """A file beside ``path`` for the block to write, which takes its place when the block ends.

    If anything fails, ``path`` is as it was and nothing is left beside it. ``rivals`` are processes
    that may write the same file at the same time: each then has a temporary file of its own.
    Without them its name is always the same, so what a killed process left is written over.
    """
    number = f".{os.getpid()}" if rivals else ""
    temporary = path.with_name(f"{path.name}{number}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed: its mode may be another
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(
    path: Path, content: bytes, *, mode: int = 0o666, rivals: bool = False, durable: bool = True
) -> None:
    """Write ``content`` in place of ``path``, which is whole or as it was. ``OSError``.

    A ``mode`` such as 0o600 holds from the first byte on; the umask takes from it as always.
    ``rivals`` as in ``replacing``. What is ``durable`` is on the disk when this returns, so that a
    loss of power takes back neither the content nor the name; a cache needs no such promise.
    """
    with (
        replacing(path, rivals) as temporary,
        os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file,
    ):
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder's files on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
