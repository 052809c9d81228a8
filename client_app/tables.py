"""The item table that a node holds on its disk, by content hash, where rounds touch few rows of it.

A request then brings the rows that changed since a version that the node answered to. A version is
a file below ``home``: rows and the version that they change, or now and then a whole table, since
in a real deployment a message can be a new process. What is missing, cut or changed there counts as
lost: the node asks for the whole table. A process that goes on keeps its table in memory, too, and
neither reads nor hashes more than the rows that come.
"""

import os
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from client_app.frozen import keep_newest
from shared_model.errors import NodeError
from shared_model.files import write_whole
from shared_model.fingerprint import rows_sum
from shared_model.protocol.plan import TableVersion

_LINKS = 8  # files of rows behind one whole table, at most
_MOST = 3 * (_LINKS + 1)  # files below a home, which several runs may share


class HeldTable:
    """One home's item table in memory, and its versions on the disk."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "tables"
        self.table = torch.empty(0, 0)
        self._total = 0
        self._links = 0  # files of rows since the last whole one

    @property
    def sha256(self) -> str:
        """The version in memory; of nothing at first."""
        return f"{self._total:064x}"

    def bring(self, version: TableVersion, rows: Tensor | None, part: Tensor) -> bool:
        """Be at this version, by the whole table ``part`` or by its ``rows`` [K], which change the
        base; ``False`` if the base is lost. ``NodeError`` if that is not the version's content."""
        if version.sha256 == self.sha256:
            return True
        if version.base and self.sha256 != version.base and not self._read(version.base):
            return False
        if version.base:
            self._change(version, rows, part)
        else:
            self._replace(version, part)
        self._write(version, rows, part)
        return True

    def _replace(self, version: TableVersion, table: Tensor) -> None:
        total = rows_sum(range(len(table)), table)
        _require(version, total)
        self.table, self._total, self._links = table, total, 0

    def _change(self, version: TableVersion, rows: Tensor | None, part: Tensor) -> None:
        """The rows in place: whoever looks at the table sees the new ones."""
        if rows is None or part.shape != (len(rows), self.table.shape[1]):
            raise NodeError("rows that do not fit the item table", got=str(list(part.shape)))
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.table):
            raise NodeError("no such rows of the item table", got=str(int(rows.max())))
        numbers = rows.tolist()
        before, after = rows_sum(numbers, self.table[rows.long()]), rows_sum(numbers, part)
        total = (self._total - before + after) % 2**256
        _require(version, total)
        self.table[rows.long()] = part
        self._total, self._links = total, self._links + 1

    def _read(self, sha256: str) -> bool:
        """The version from the disk: a whole table, and the rows that lead on from there."""
        changes: list[dict[str, Tensor]] = []
        try:
            name = sha256
            while "table" not in (found := load_file(path := self._path(name))):
                os.utime(path)  # used now
                changes.append(found)
                with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
                    name = file.metadata()["base"]
                if len(changes) > _LINKS:
                    return False
            os.utime(path)
            table = found["table"]
            for change in reversed(changes):
                table[change["rows"].long()] = change["values"]
            total = rows_sum(range(len(table)), table)
        except (
            OSError,
            SafetensorError,
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            RuntimeError,
        ):
            return False
        if f"{total:064x}" != sha256:
            return False
        self.table, self._total, self._links = table, total, len(changes)
        return True

    def _write(self, version: TableVersion, rows: Tensor | None, part: Tensor) -> None:
        path = self._path(version.sha256)
        if rows is None or self._links > _LINKS:
            self._links, metadata, named = 0, None, {"table": self.table}
        else:
            metadata = {"base": version.base}
            named = {"rows": rows.contiguous(), "values": part.contiguous()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # or another node of this machine wrote it
                write_whole(path, save(named, metadata), rivals=True, durable=False)
            keep_newest(path, _MOST)
        except OSError as error:
            raise NodeError(
                "cannot keep the item table",
                where=str(path),
                got=str(error),
                todo="free disk space, or choose a writable 'home'",
            ) from error

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"


@lru_cache(maxsize=1)
def held_table(home: Path) -> HeldTable:
    """The table of this process, for all nodes that it hosts under one home."""
    return HeldTable(home)


def _require(version: TableVersion, total: int) -> None:
    if f"{total:064x}" != version.sha256:
        raise NodeError(
            "the item table is not that of the plan",
            expected=f"sha256 {version.sha256[:12]}",
            got=f"{total:064x}"[:12],
            todo="submit the same run again: it resumes",
        )
