"""Many records as one: Flower moves each record of a message in requests of its own, too.

A round's request of four records goes as six objects, each with a request of some 15 ms processor
time on every of its ways (server, SuperLink, SuperNode, ClientApp); folded it goes as three.
"""

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from shared_model.errors import NodeError

MOST = 8 * 2**20  # bytes; Flower copies a record for each hash of it, and arrays in pieces of 5 MB
_ONE = "folded"  # the name of the only record, and of what it has


def fold(content: RecordDict) -> RecordDict:
    """The same content in one record, unless it is large."""
    arrays = [array for record in content.array_records.values() for array in record.values()]
    if sum(len(array.data) for array in arrays) > MOST:
        return content
    return RecordDict(
        {_ONE: ConfigRecord({_ONE: recorddict_to_proto(content).SerializeToString()})}
    )


def is_folded(content: RecordDict) -> bool:
    """Whether that is what it is."""
    return list(content) == [_ONE] and list(content[_ONE]) == [_ONE]


def unfold(content: RecordDict) -> RecordDict:
    """What was folded; other content as it is. ``NodeError`` for bytes that nobody folded."""
    if not is_folded(content):
        return content
    data = content[_ONE][_ONE]
    if not isinstance(data, bytes):
        raise NodeError("unreadable folded records", expected="bytes", got=type(data).__name__)
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(data))
    except Exception as error:  # of protobuf or of Flower's records, whatever they trip over
        raise NodeError("unreadable folded records", got=repr(error)[:200]) from error
