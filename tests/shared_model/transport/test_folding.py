"""Folded records are the records that were folded, and damaged ones are an error."""

from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from shared_model.errors import NodeError
from shared_model.transport.folding import MOST, fold, is_folded, unfold

CONTENT = RecordDict(
    {
        "plan": ConfigRecord({"round": 3, "draw": "", "rate": 0.1, "on": True, "key": b"\0\xff"}),
        "arrays": ArrayRecord({"table": Array(np.arange(12, dtype=np.float32).reshape(3, 4))}),
        "sums": MetricRecord({"loss": 0.1 + 0.2, "users": 2**53, "nan": float("inf")}),
        "none": ArrayRecord(),
    }
)


def folded(data: object) -> RecordDict:
    return RecordDict({"folded": ConfigRecord({"folded": data})})  # type: ignore[dict-item]


def test_what_is_unfolded_is_what_was_folded() -> None:
    one = fold(CONTENT)
    assert is_folded(one)
    assert not is_folded(CONTENT)
    assert len(one) == 1
    again = unfold(one)
    assert list(again) == list(CONTENT)
    assert again == CONTENT
    assert type(again["sums"]["users"]) is int
    assert unfold(CONTENT) is CONTENT
    assert unfold(fold(RecordDict())) == RecordDict()


def test_the_same_content_is_the_same_object_to_flower() -> None:
    assert fold(CONTENT).object_id == fold(CONTENT).object_id


def test_large_content_stays_as_it_is() -> None:
    large = RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros(MOST + 1, dtype=np.uint8))})})
    assert fold(large) is large


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", "text", 7, [b"a", b"b"], b"\x0a\x00"])
def test_what_nobody_folded_is_an_error(data: object) -> None:
    with pytest.raises(NodeError, match="unreadable folded records"):
        unfold(folded(data))


def test_a_cut_message_is_an_error_or_lacks_records() -> None:
    data = fold(CONTENT)["folded"]["folded"]
    assert isinstance(data, bytes)
    for end in range(0, len(data), 7):
        with suppress(NodeError):
            assert len(unfold(folded(data[:end]))) < len(CONTENT)
