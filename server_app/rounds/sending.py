"""What nodes are sent of a round's arrays: in the format of the wire, and rows where they do."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, RecordDict

from server_app.rounds.sent_tables import SentTables
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.wire import Wire
from shared_model.stages import TABLE


class Sending:
    """One stage's way to the nodes."""

    def __init__(self, wire: Wire, in_rows: bool) -> None:
        """``in_rows``: of the item table, what changed since a node's version."""
        self.wire = wire
        self.tables = SentTables(wire) if in_rows else None

    def record(self, arrays: Arrays) -> ArrayRecord:
        """What all nodes are sent of a round's arrays; what of the table differs by node."""
        if self.tables is not None:
            self.tables.see(arrays[TABLE])
            arrays = {name: array for name, array in arrays.items() if name != TABLE}
        return messages.to_record(self.wire.encode(arrays))

    def seen(self, arrays: Arrays) -> Arrays:
        """A round's arrays as nodes see them: so they are evaluated, kept, and what follows."""
        if self.tables is None or self.wire.dtype == "float32":
            return self.wire.seen(arrays)
        self.tables.see(arrays[TABLE])
        others = {name: array for name, array in arrays.items() if name != TABLE}
        return self.wire.seen(others) | {TABLE: self.tables.table}

    def requests(
        self, content: RecordDict, nodes: Iterable[int], kind: str, more: Arrays
    ) -> list[Message]:
        """A request to each node, with what it lacks, and with the arrays ``more``."""
        if self.tables is None:
            return [Message(content, node, kind) for node in nodes]
        sent = []
        for node in nodes:
            version, part = self.tables.part(node)
            sent.append(Message(messages.with_table(content, version, part | more), node, kind))
        return sent

    def again(self, requests: Iterable[Message], frozen: Arrays) -> list[Message]:
        """Requests with all that the nodes said they lack: frozen groups, or the whole table."""
        record = messages.to_record(self.wire.encode(frozen))
        sent = []
        for request in requests:
            if self.tables is not None:
                content = messages.with_table(request.content, *self.tables.whole())
            else:
                content = messages.with_frozen(request.content, record)
            node, kind = request.metadata.dst_node_id, request.metadata.message_type
            sent.append(Message(content, node, kind))
        return sent

    def heard(self, replies: Iterable[Message]) -> None:
        """Who answered with a result holds the table that it was sent."""
        if self.tables is not None:
            for reply in replies:
                if not reply.has_error() and not messages.refuses(reply.content):
                    self.tables.held_by(reply.metadata.src_node_id)
