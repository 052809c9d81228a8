"""Packed arrays are the arrays that were packed, and damaged ones are an error."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from shared_model.errors import NodeError
from shared_model.transport.packing import is_packed, pack, unpack

ARRAYS = ArrayRecord(
    {
        "table": Array(np.arange(12, dtype=np.float32).reshape(3, 4)),
        "rows": Array(np.array([5, 7], dtype=np.int32)),
        "gate": Array(np.array(2.5, dtype=np.float32)),
        "none": Array(np.zeros((0, 8), dtype=np.float32)),
    }
)


def damaged(data: bytes) -> RecordDict:
    record = ArrayRecord({"packed": Array("uint8", (len(data),), "feddmmr.packed", data)})
    return RecordDict({"arrays": record})


def with_header(header: Any, rest: bytes = b"") -> bytes:
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + rest


def test_what_is_unpacked_is_what_was_packed() -> None:
    plan = ConfigRecord({"round": 3})
    content = RecordDict({"plan": plan, "arrays": ARRAYS, "frozen": ArrayRecord()})
    packed = pack(content)
    assert is_packed(packed)
    assert not is_packed(content)
    assert len(packed.array_records["arrays"]) == 1
    again = unpack(packed)
    assert again.config_records["plan"] == plan
    assert list(again.array_records) == ["arrays", "frozen"]
    for name, array in ARRAYS.items():
        assert again.array_records["arrays"][name] == array
        np.testing.assert_array_equal(again.array_records["arrays"][name].numpy(), array.numpy())


def test_content_without_packed_arrays_stays_as_it_is() -> None:
    content = RecordDict({"plan": ConfigRecord({"round": 3}), "arrays": ARRAYS})
    assert unpack(content) == content


def test_a_record_that_goes_to_many_nodes_is_packed_once() -> None:
    known: dict[int, ArrayRecord] = {}
    one, two = (pack(RecordDict({"arrays": ARRAYS}), known) for _ in range(2))
    assert one.array_records["arrays"] is two.array_records["arrays"]


ENTRY = ["a", "float32", [1], "numpy.ndarray", 4]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**63) + b"[]",
        with_header({}),
        with_header([ENTRY]),
        with_header([ENTRY], b"12345"),
        with_header([[*ENTRY[:4], -4], [*ENTRY[:4], 8]], b"1234"),
        with_header([ENTRY, ENTRY], b"12345678"),
        with_header([["a", "float32", [True], "numpy.ndarray", 4]], b"1234"),
        with_header([ENTRY[:4]], b"1234"),
        with_header([["a", 1, [1], "numpy.ndarray", 4]], b"1234"),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 4) + b"\xff\xfe[]",
    ],
)
def test_bytes_that_nobody_packed_are_an_error(data: bytes) -> None:
    with pytest.raises(NodeError, match="unreadable packed arrays"):
        unpack(damaged(data))


def test_a_cut_message_is_an_error() -> None:
    data = pack(RecordDict({"arrays": ARRAYS})).array_records["arrays"]["packed"].data
    for end in range(0, len(data), 7):
        with pytest.raises(NodeError):
            unpack(damaged(data[:end]))
