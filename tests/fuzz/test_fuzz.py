"""Drawn replies of nodes: used as they are, or refused in one line (see fuzzing.py)."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.aggregate import check_update, reduce_updates
from shared_model.memory.memory import NOVELTY_BINS
from shared_model.protocol import messages
from shared_model.protocol.config import default_config, parse_settings
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.metrics import PROTOCOLS, MetricSums, Ranks, merge
from shared_model.protocol.plan import LocalUpdate
from tests.support.fuzzing import FLOATS, INTS, STRANGE, assert_both, cases, outcome, tally
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

DEFAULTS = default_config(ROOT / "pyproject.toml")
SETTINGS = parse_settings(DEFAULTS | {"fraction-train": 0.9, "max-length": 20})
REPORT = NodeReport("a", 0, 1, 5, 50, 9, 1, "ff" * 32, "cat", "", "{}", 512, 384, "app", 5)
ARRAYS = {"backbone.x": torch.zeros(2, 3), "item_embedding.y": torch.zeros(4)}
HONEST = LocalUpdate({name: value + 0.5 for name, value in ARRAYS.items()}, 9.0, 20.0, 9, 2)


NUMBERS = INTS | FLOATS | st.lists(st.integers(0, 3), max_size=2) | st.lists(FLOATS, max_size=2)
NAMES = st.sampled_from(["weight", "loss", "targets", "participants", "arrays", "sums", "\ud800"])
NAMES |= st.text(max_size=6)
DTYPES = ["<f4", "<f4", "<f8", "<f2", ">f4", "<i4", "<i8", "?", "S3", "U2", "<c8", "<u2", "M8[s]"]
SHAPES = st.sampled_from([(2, 3), (4,), (), (0,), (3, 2), (1, 2, 3), (2, 3, 1)])


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """An array of any type and shape, with its bytes, its header or its description damaged."""
    values = np.zeros(draw(SHAPES), np.dtype(draw(st.sampled_from(DTYPES))))
    if values.dtype.kind == "f":
        values += draw(st.sampled_from([0.0, 1.0, -2.5, math.nan, math.inf]))
    array = Array(values)
    data = bytearray(array.data)
    damage = draw(st.sampled_from(["none", "none", "flip", "cut", "more", "other", "told"]))
    if damage == "flip":
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "more":
        data += draw(st.binary(min_size=1, max_size=9))
    elif damage == "other":
        data = bytearray(draw(st.binary(max_size=40) | st.sampled_from(STRANGE)))
    elif damage == "told":
        return Array(
            draw(st.text(max_size=5)), draw(SHAPES), draw(st.text(max_size=5)), bytes(data)
        )
    return Array(array.dtype, array.shape, array.stype, bytes(data))


def any_record() -> st.SearchStrategy[Any]:
    """A record of any kind and content that Flower lets through."""
    plain = st.text(max_size=5) | st.binary(max_size=5) | st.booleans() | INTS | FLOATS
    return (
        st.dictionaries(NAMES, NUMBERS, max_size=5).map(MetricRecord)
        | st.dictionaries(NAMES, plain, max_size=5).map(ConfigRecord)
        | st.dictionaries(st.sampled_from(list(ARRAYS)) | NAMES, arrays(), max_size=3).map(
            ArrayRecord
        )
    )


@st.composite
def edited(draw: st.DrawFn, honest: RecordDict, values: st.SearchStrategy[Any]) -> RecordDict:
    """An honest reply with up to three values changed, added or left out; or any records at all."""
    records = {name: type(record)(dict(record)) for name, record in honest.items()}
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(list(records)))
        record = records[name]
        key = draw(st.sampled_from([*record, ""]) | NAMES)
        change = draw(st.sampled_from(["value", "value", "value", "less", "record"]))
        if change == "less":
            record.pop(key, None)
        elif change == "record":
            records[draw(st.sampled_from(list(records)) | NAMES)] = draw(any_record())
        elif isinstance(record, ArrayRecord):
            record[key] = draw(arrays())
        else:
            record[key] = draw(NUMBERS if isinstance(record, MetricRecord) else values)
    return RecordDict(records)


def test_updates() -> None:
    """Wrong: arrays of other names, types, shapes or values; counts that are none, or too many."""
    seen: Counter[str] = Counter()

    @cases(3500)
    @given(edited(messages.update_content(HONEST), NUMBERS))
    def check(content: RecordDict) -> None:
        def use() -> LocalUpdate:
            update = messages.read_update(content)
            check_update(update, ARRAYS, REPORT, SETTINGS)
            return update

        update = outcome(use)
        tally(seen, update is not None)
        if update is None:
            return
        assert update.arrays.keys() == ARRAYS.keys()
        for name, value in update.arrays.items():
            assert (value.dtype, value.shape) == (torch.float32, ARRAYS[name].shape)
            assert torch.isfinite(value).all()
        assert (type(update.participants), type(update.targets)) == (int, int)
        assert 0 <= update.participants <= 5
        assert 0 <= update.targets <= update.weight <= 50
        assert math.isfinite(update.loss)
        mean = reduce_updates([update], ARRAYS, "mean", 0.2)
        assert mean is None or all(torch.isfinite(value).all() for value in mean.delta.values())

    check()
    assert_both(seen)


def honest_sums() -> MetricSums:
    sums = MetricSums()
    for group in ("all", "as-cold"):
        for protocol in PROTOCOLS:
            sums.add(group, protocol, Ranks(np.array([0, 3, 8, 30, 2]), np.full(5, 60)))
    return sums


def test_metrics() -> None:
    """Wrong: what is no table of means over users: a group without its ranks among all, say."""
    seen: Counter[str] = Counter()
    honest = honest_sums().sums
    values = st.sampled_from([0, 0.0, 1.0, 4.0, 5.0, 5, 6.0, 2.5]) | NUMBERS

    @cases(1200)
    @given(edited(messages.metrics_content(honest_sums()), values), st.sampled_from(list(honest)))
    def check(content: RecordDict, left_out: str) -> None:
        sums = outcome(lambda: messages.read_metrics(content))
        tally(seen, sums is not None)
        if sums is None:
            return
        report = merge([sums, honest]).report()
        for cells in report.values():
            assert cells.keys() <= set(PROTOCOLS)
            for cell in cells.values():
                means = cell.keys() - {"users", "candidates"}
                assert all(0 <= cell[name] <= 1 for name in means)
                assert cell["candidates"] >= 1
                assert cell["users"] % 1 == 0
                assert cell.keys() == report["all"]["full"].keys()
            assert "full" in cells
        short = {key: value for key, value in sums.items() if key != left_out}
        assert len(short) == len(sums) or not outcome(
            lambda: messages.read_metrics(messages.metrics_content(MetricSums(short)))
        )

    check()
    assert_both(seen)


CONFIGS = st.text(max_size=5) | INTS | FLOATS | st.booleans() | st.binary(max_size=3)
CONFIGS |= st.sampled_from(["{}", "[]", '{"a": NaN}', '{"a": 1e999}', "[" * 9000, "0" * 64, "a\nb"])


def test_reports() -> None:
    """Wrong: a field of another type, a count that is none, a fingerprint that cannot be added."""
    seen: Counter[str] = Counter()

    @cases(800)
    @given(edited(messages.report_content(REPORT), CONFIGS))
    def check(content: RecordDict) -> None:
        report = outcome(lambda: messages.read_report(content))
        tally(seen, report is not None)
        if report is None:
            return
        for field, honest in vars(REPORT).items():
            assert type(getattr(report, field)) is type(honest)
        counts = (report.users, report.interactions, report.items, report.num_partitions)
        assert all(1 <= count < 2**53 for count in counts)
        assert report.partition >= -1
        assert 0 <= int(report.history_digest, 16) < 2**256
        json.dumps({**json.loads(report.features)}, allow_nan=False)

    check()
    assert_both(seen)


def test_novelty_and_refusals() -> None:
    """Wrong: a histogram of other bins; a refusal that is taken for an answer."""
    seen: Counter[str] = Counter()
    InProcessGrid([], {})  # gives this process an identity, which messages need
    counts = st.lists(INTS, max_size=3).map(lambda few: few + [1] * (NOVELTY_BINS - len(few)))
    request = Message(RecordDict(), 1, messages.NOVELTY)
    request.metadata.__dict__["_message_id"] = "id"

    @cases(500)
    @given(edited(messages.novelty_content(np.ones(NOVELTY_BINS, np.int64)), counts | CONFIGS))
    def check(content: RecordDict) -> None:
        reply = Message(content, reply_to=request)
        found = outcome(lambda: messages.read_novelty(messages.check_reply(reply)))
        tally(seen, found is not None)
        if found is not None:
            assert (found.dtype, found.shape) == (np.int64, (NOVELTY_BINS,))
            assert (found >= 0).all()
            assert found.astype(object).sum() == found.sum()
            assert "error" not in content.config_records

    check()
    assert_both(seen)


def test_refusals_without_a_line_are_refusals() -> None:
    InProcessGrid([], {})
    request = Message(RecordDict(), 1, messages.TRAIN)
    request.metadata.__dict__["_message_id"] = "id"
    for said in ({}, {"line": ""}, {"line": 7}, {"line": "a\nb" * 9999}, {"text": "x"}):
        reply = Message(RecordDict({"error": ConfigRecord(said)}), reply_to=request)
        assert outcome(lambda reply=reply: messages.check_reply(reply)) is None
