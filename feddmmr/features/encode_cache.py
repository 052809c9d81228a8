"""Finished vectors kept beside the output, so that an interrupted encoding goes on.

The file: one line of JSON that says what made the vectors, then records of (sha256 of the content,
vector). A chunk is appended and synced at once; a record that a crash cut off is dropped.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from feddmmr.features.output import disk_faults
from shared_model.errors import DataError

Vectors = npt.NDArray[np.float16]
KEPT = ": the finished items are kept"


def content_key(content: bytes) -> bytes:
    """What a vector is filed under: its content alone, since it depends on nothing else."""
    return hashlib.sha256(content).digest()


class Partial:
    """The vectors of one modality that are finished, in memory and on disk.

    Raises DataError if another process has the file open, if another encoder made it, or if the
    disk is full.
    """

    def __init__(self, path: Path, identity: dict[str, Any], dim: int) -> None:
        self.path, self.dim = path, dim
        self.record = np.dtype([("key", "V32"), ("vector", "<f2", (dim,))])
        self.known: dict[bytes, Vectors] = {}
        with disk_faults(path, KEPT):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = path.open("a+b")
        try:
            self._lock()
            self._recover((json.dumps(identity, sort_keys=True) + "\n").encode())
        except BaseException:
            self.close()
            raise

    def append(self, keys: list[bytes], vectors: Vectors) -> None:
        """Keep a finished chunk: vectors float16 [B, dim], zero for what cannot be encoded."""
        records = np.empty(len(keys), dtype=self.record)
        records["key"] = np.frombuffer(b"".join(keys), dtype="V32")
        records["vector"] = vectors
        with disk_faults(self.path, KEPT):
            self.file.write(records.tobytes())
            self.file.flush()
            os.fsync(self.file.fileno())
        self.known.update(zip(keys, vectors, strict=True))

    def close(self) -> None:
        """Close the file; it stays for the next run."""
        try:
            self.file.close()
        except OSError:  # what a full disk refused before is refused again; it was reported then
            return

    def delete(self) -> None:
        """Remove the file: the output is written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                "another process is encoding to the same output", where=str(self.path)
            ) from error

    def _recover(self, header: bytes) -> None:
        """Take the records that are there, and cut off what is not a whole one."""
        self.file.seek(0)
        content = self.file.read()
        end = content.find(b"\n") + 1
        if end and content[:end] != header:
            raise DataError(
                "the partial file was made with another encoder or other settings",
                where=str(self.path),
                expected=header.decode(),
                got=content[:end].decode(errors="replace"),
                todo="run the command with the same settings, or delete the partial file",
            )
        count = (len(content) - end) // self.record.itemsize if end else 0
        records = np.frombuffer(content, dtype=self.record, count=count, offset=end)
        norms = np.linalg.norm(records["vector"].astype(np.float32), axis=1)
        sound = (norms == 0) | (np.abs(norms - 1) < 0.01)
        for record in records[sound]:
            self.known[record["key"].tobytes()] = record["vector"].copy()
        with disk_faults(self.path, KEPT):
            self.file.truncate(end + count * self.record.itemsize)
            if not end:
                self.file.write(header)
            self.file.flush()
