"""The wire: everything that is sent arrives as it was, and a peer's faults are named."""

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from shared_model import messages
from shared_model.errors import NodeError
from shared_model.messages import NodeReport
from shared_model.metrics import MetricSums
from shared_model.plan import EvaluationPlan, LocalUpdate, RoundPlan
from tools.in_process import InProcessGrid

PLAN = RoundPlan(1, 7, 3, 0.1, 2, 0.3, "targets", 0.2, "app", "catalogue")
REPORT = NodeReport("a", 0, 2, 5, 50, 9, 1, "ff", "cat", "", "{}", "app")
ARRAYS = {"x.weight": torch.randn(3, 4), "y": torch.tensor([1.5])}


def wire(content: RecordDict) -> RecordDict:
    """Serialise and parse, as between processes."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    return recorddict_from_proto(recorddict_to_proto(content))


def test_everything_survives_the_wire() -> None:
    sent = wire(messages.plan_content(PLAN, messages.to_record(ARRAYS)))
    assert messages.read_plan(sent) == PLAN
    assert all((ARRAYS[n] == v).all() for n, v in messages.read_arrays(sent).items())
    update = LocalUpdate(ARRAYS, 2.5, 7.25, 4, 3)
    received = messages.read_update(wire(messages.update_content(update)))
    assert dataclasses.replace(received, arrays={}) == dataclasses.replace(update, arrays={})
    assert list(received.arrays) == list(ARRAYS)
    evaluation = EvaluationPlan(1, 7, 3, "test", "app", "catalogue")
    content = messages.evaluation_content(evaluation, messages.to_record(ARRAYS))
    assert messages.read_evaluation(wire(content)) == evaluation
    sums = MetricSums()
    sums.add("all", "full", np.array([3, 0, 40]))
    assert messages.read_metrics(wire(messages.metrics_content(sums))) == sums.sums
    assert messages.read_report(wire(messages.report_content(REPORT))) == REPORT


def test_bytes_are_those_of_the_arrays_and_little_more() -> None:
    content = messages.plan_content(PLAN, messages.to_record(ARRAYS))
    floats = sum(value.numel() * 4 for value in ARRAYS.values())
    assert floats < messages.content_bytes(content) < floats + 1000


def test_faults_are_errors_of_our_own() -> None:
    InProcessGrid([], {})  # gives this process an identity, which messages need
    request = Message(RecordDict(), 1, messages.TRAIN)
    request.metadata.__dict__["_message_id"] = "id"
    failed = Message(Error(2, "a\nlong \x1b[31mreason"), reply_to=request)
    with pytest.raises(NodeError, match="node failed with code 2"):
        messages.check_reply(failed)
    refused = Message(messages.error_content("no data; do: import it"), reply_to=request)
    with pytest.raises(NodeError, match="no data; do: import it"):
        messages.check_reply(refused)
    for read in (messages.read_plan, messages.read_update, messages.read_metrics):
        with pytest.raises(NodeError):
            read(RecordDict())
    strange = RecordDict({"plan": ConfigRecord({"stage": 1})})
    with pytest.raises(NodeError, match="plan"):
        messages.read_plan(strange)
    with pytest.raises(NodeError, match="plan"):
        messages.read_evaluation(strange)
