"""Which item table each node holds, so that it gets the rows alone that changed since.

A cache of what was sent: whatever of it is lost, at a restart say, costs bytes and changes nothing.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared_model.fingerprint import rows_sum
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import TableVersion
from shared_model.protocol.wire import ROWS, Wire
from shared_model.stages import TABLE

_MOST = 4  # versions that rows can lead on from; a node with an older one gets the whole table


@dataclass
class SentTables:
    """The versions of one stage's item table, by content hash; the last one is what is sent now."""

    wire: Wire
    _given: Tensor | None = None  # what was seen last, before rounding
    _tables: dict[str, Tensor] = field(default_factory=dict)
    _held: dict[int, str] = field(default_factory=dict)  # by node, the version it answered to
    _parts: dict[str, Arrays] = field(default_factory=dict)  # by base
    _total: int = 0

    def see(self, table: Tensor) -> None:
        """From now on this one is sent."""
        last, given = self._tables.get(self._sha256), self._given
        self._given = table
        if last is None or given is None:
            table = self.wire.seen({TABLE: table})[TABLE]
            self._total = rows_sum(range(len(table)), table)
        else:
            rows = _changed(given, table)
            table = self._rounded(last, table, rows)
            before, after = (rows_sum(rows.tolist(), one[rows]) for one in (last, table))
            self._total = (self._total - before + after) % 2**256
        self._tables.pop(self._sha256, None)
        self._tables[self._sha256] = table  # as the last one
        for old in list(self._tables)[:-_MOST]:
            del self._tables[old]
        self._parts = {}

    @property
    def table(self) -> Tensor:
        """What is sent, as nodes see it."""
        return self._tables[self._sha256]

    def _rounded(self, last: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        """A table as nodes see it; all but ``rows`` are as in the ``last`` one that they saw."""
        if self.wire.dtype == "float32":
            return table
        some = self.wire.seen({TABLE: table[rows], ROWS: rows.int()})
        seen = last.clone()
        seen[rows] = some[TABLE]
        return seen

    def part(self, node: int) -> tuple[TableVersion, Arrays]:
        """What this node has to be sent: rows, or the whole table where they are no less."""
        base = self._held.get(node, "")
        if base not in self._tables:
            return self.whole()
        if base not in self._parts:
            rows = _changed(self._tables[base], self.table)
            if len(rows) * (self.table.shape[1] + 1) >= self.table.numel():
                return self.whole()
            some = {TABLE: self.table[rows], ROWS: rows.int()}
            self._parts[base] = self.wire.encode(some)
        return TableVersion(self._sha256, base), self._parts[base]

    def whole(self) -> tuple[TableVersion, Arrays]:
        """What a node is sent that lacks everything."""
        if "" not in self._parts:
            self._parts[""] = self.wire.encode({TABLE: self.table})
        return TableVersion(self._sha256, ""), self._parts[""]

    def held_by(self, node: int) -> None:
        """The node answered, so that it holds what it was sent."""
        self._held[node] = self._sha256

    @property
    def _sha256(self) -> str:
        return f"{self._total:064x}"


def _changed(old: Tensor, new: Tensor) -> Tensor:
    """The rows that differ: int64 [U]."""
    if old is new:
        return torch.empty(0, dtype=torch.int64)
    return (old != new).any(1).nonzero().squeeze(1)
