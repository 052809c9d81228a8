"""Many arrays as one: Flower moves each array of a message in requests of its own, some 20 ms each.

A packed record has one array, whose bytes are a length, a header in JSON (name, dtype, shape and
size of each array that is in it) and their bytes. Nothing of an array is changed.
"""

import json
import struct
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict

from shared_model.errors import NodeError

_ONE = "packed"  # the name of the only array in a packed record
_STYPE = "feddmmr.packed"
_LENGTH = struct.Struct("<Q")


def pack(content: RecordDict, known: dict[int, ArrayRecord] | None = None) -> RecordDict:
    """The same content with each record of arrays packed.

    ``known`` remembers packed records by identity: a round sends one record to all nodes.
    """
    known = {} if known is None else known
    records = dict(content.items())
    for name, record in content.array_records.items():
        if id(record) not in known:
            known[id(record)] = _packed(record)
        records[name] = known[id(record)]
    return RecordDict(records)


def is_packed(content: RecordDict) -> bool:
    """Whether a record of it is packed."""
    return any(_is_packed(record) for record in content.array_records.values())


def unpack(content: RecordDict) -> RecordDict:
    """What was packed; other content as it is. ``NodeError`` for bytes that nobody packed."""
    records = dict(content.items())
    for name, record in content.array_records.items():
        if _is_packed(record):
            records[name] = _unpacked(record[_ONE].data)
    return RecordDict(records)


def _is_packed(record: ArrayRecord) -> bool:
    return list(record) == [_ONE] and record[_ONE].stype == _STYPE


def _packed(record: ArrayRecord) -> ArrayRecord:
    header = [[n, a.dtype, list(a.shape), a.stype, len(a.data)] for n, a in record.items()]
    told = json.dumps(header).encode()
    data = b"".join([_LENGTH.pack(len(told)), told, *(array.data for array in record.values())])
    return ArrayRecord({_ONE: Array("uint8", (len(data),), _STYPE, data)})


def _unpacked(data: bytes) -> ArrayRecord:
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        header = _checked(json.loads(data[_LENGTH.size : start]), len(data) - start)
    except (struct.error, ValueError, RecursionError) as error:
        raise NodeError("unreadable packed arrays", got=f"{error}"[:200]) from error
    arrays = {}
    for name, dtype, shape, stype, size in header:
        arrays[name] = Array(dtype, tuple(shape), stype, data[start : start + size])
        start += size
    return ArrayRecord(arrays)


def _checked(header: Any, size: int) -> Iterable[tuple[str, str, list[int], str, int]]:
    """A header of the right types, whose sizes are all that there is. ``ValueError`` otherwise."""
    if not isinstance(header, list) or not all(_is_entry(entry) for entry in header):
        raise ValueError("a header of another form")
    if sum(entry[-1] for entry in header) != size:
        raise ValueError(f"{size} bytes of arrays, others than the header says")
    if len({entry[0] for entry in header}) != len(header):
        raise ValueError("a name twice")
    return [tuple(entry) for entry in header]


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or [type(part) for part in entry] != [str, str, list, str, int]:
        return False
    return entry[-1] >= 0 and all(type(side) is int and side >= 0 for side in entry[2])
