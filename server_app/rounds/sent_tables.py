"""Which item table each node holds, so that it gets the rows alone that changed since.

A cache of what was sent: whatever of it is lost, at a restart say, costs bytes and changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from shared_model.fingerprint import rows_sum
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.plan import TableVersion
from shared_model.stages import TABLE

_MOST = 4  # versions that rows can lead on from; a node with an older one gets the whole table


@dataclass
class SentTables:
    """The versions of one stage's item table, by content hash; the last one is what is sent now."""

    _tables: dict[str, Tensor] = field(default_factory=dict)
    _held: dict[int, str] = field(default_factory=dict)  # by node, the version it answered to
    _parts: dict[str, Arrays] = field(default_factory=dict)  # by base
    _total: int = 0

    def see(self, table: Tensor) -> None:
        """From now on this one is sent."""
        last = self._tables.get(self._sha256)
        if last is None:
            self._total = rows_sum(range(len(table)), table)
        else:
            rows = _changed(last, table)
            before, after = (rows_sum(rows.tolist(), one[rows]) for one in (last, table))
            self._total = (self._total - before + after) % 2**256
        self._tables.pop(self._sha256, None)
        self._tables[self._sha256] = table  # as the last one
        for old in list(self._tables)[:-_MOST]:
            del self._tables[old]
        self._parts = {}

    def part(self, node: int) -> tuple[TableVersion, Arrays]:
        """What this node has to be sent: rows, or the whole table where they are no less."""
        base = self._held.get(node, "")
        if base not in self._tables:
            return self.whole()
        if base not in self._parts:
            table = self._tables[self._sha256]
            rows = _changed(self._tables[base], table)
            if len(rows) * (table.shape[1] + 1) >= table.numel():
                return self.whole()
            self._parts[base] = {TABLE: table[rows], messages.ROWS: rows.int()}
        return TableVersion(self._sha256, base), self._parts[base]

    def whole(self) -> tuple[TableVersion, Arrays]:
        """What a node is sent that lacks everything."""
        part = self._parts.setdefault("", {TABLE: self._tables[self._sha256]})
        return TableVersion(self._sha256, ""), part

    def requests(
        self, content: RecordDict, nodes: Iterable[int], kind: str, more: Arrays
    ) -> list[Message]:
        """A request to each node, with what it has to be sent, and with the arrays ``more``."""
        sent = []
        for node in nodes:
            version, part = self.part(node)
            sent.append(Message(messages.with_table(content, version, part | more), node, kind))
        return sent

    def heard(self, replies: Iterable[Message]) -> None:
        """Who answered with a result holds what it was sent."""
        for reply in replies:
            if not reply.has_error() and not messages.refuses(reply.content):
                self._held[reply.metadata.src_node_id] = self._sha256

    @property
    def _sha256(self) -> str:
        return f"{self._total:064x}"


def _changed(old: Tensor, new: Tensor) -> Tensor:
    """The rows that differ: int64 [U]."""
    if old is new:
        return torch.empty(0, dtype=torch.int64)
    return (old != new).any(1).nonzero().squeeze(1)
