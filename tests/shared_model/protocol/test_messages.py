"""The wire: everything that is sent arrives as it was, and a peer's faults are named."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from client_app.data.content import open_content
from client_app.data.dataset import open_dataset
from feddmmr.launch.in_process import InProcessGrid
from shared_model.errors import NodeError
from shared_model.memory.memory import NOVELTY_BINS
from shared_model.protocol import messages
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.metrics import MetricSums, Ranks
from shared_model.protocol.plan import EvaluationPlan, LocalUpdate, MixturePlan, RoundPlan
from tests.support.secrets_of_users import secrets_of
from tests.support.staged import write_mixed

PLAN = RoundPlan(1, 7, 3, 0.1, 2, 0.3, "targets", 0.2, "app", "catalogue")
MIXING = MixturePlan("sha", 50, 200, 0.25, -1.0, 32, 256, 0.2, 0.5, 0.1, 0.07, 0.3, 0.01)
REPORT = NodeReport("a", 0, 2, 5, 50, 9, 1, "ff", "cat", "", "{}", 512, 384, "app", 5)
ARRAYS = {"x.weight": torch.randn(3, 4), "y": torch.tensor([1.5])}


def wire(content: RecordDict) -> RecordDict:
    """Serialise and parse, as between processes."""
    return recorddict_from_proto(recorddict_to_proto(content))


def test_everything_survives_the_wire() -> None:
    sent = wire(messages.request_content(PLAN, MIXING, messages.to_record(ARRAYS)))
    assert messages.read_plan(sent) == PLAN
    assert messages.read_mixing(sent) == MIXING
    assert all((ARRAYS[n] == v).all() for n, v in messages.read_arrays(sent).items())
    update = LocalUpdate(ARRAYS, 2.5, 7.25, 4, 3, {"alignment": 0.1, "memory_left": 12.0})
    received = messages.read_update(wire(messages.update_content(update)))
    assert dataclasses.replace(received, arrays={}) == dataclasses.replace(update, arrays={})
    assert list(received.arrays) == list(ARRAYS)
    evaluation = EvaluationPlan(1, 7, 3, "test", "app", "catalogue")
    content = messages.request_content(evaluation, None, messages.to_record(ARRAYS))
    assert messages.read_evaluation(wire(content)) == evaluation
    sums = MetricSums()
    sums.add("all", "full", Ranks(np.array([3, 0, 40]), np.full(3, 50)))
    assert messages.read_metrics(wire(messages.metrics_content(sums))) == sums.sums
    assert messages.read_report(wire(messages.report_content(REPORT))) == REPORT


def test_bytes_are_those_of_the_arrays_and_little_more() -> None:
    content = messages.request_content(PLAN, MIXING, messages.to_record(ARRAYS))
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
    reads = (messages.read_plan, messages.read_mixing, messages.read_update, messages.read_metrics)
    for read in (*reads, messages.read_novelty, messages.read_novelty_request):
        with pytest.raises(NodeError):
            read(RecordDict())
    strange = RecordDict({"plan": ConfigRecord({"stage": 1})})
    with pytest.raises(NodeError, match="plan"):
        messages.read_plan(strange)
    with pytest.raises(NodeError, match="plan"):
        messages.read_evaluation(strange)
    with pytest.raises(NodeError, match="mixing"):
        messages.read_mixing(RecordDict({"mixing": ConfigRecord({"novelty": 0.5})}))


def test_frozen_groups_travel_only_to_a_node_that_asks() -> None:
    request = messages.request_content(PLAN, MIXING, messages.to_record(ARRAYS))
    assert messages.read_frozen(wire(request)) is None
    asking = wire(messages.ask_for_frozen(MIXING.frozen_sha256))
    assert messages.needs_frozen(asking)
    update = messages.update_content(LocalUpdate(ARRAYS, 1.0, 1.0, 1, 1))
    for other in (update, messages.error_content("full"), RecordDict()):
        assert not messages.needs_frozen(other)
    frozen = {"z.weight": torch.randn(2, 5)}
    again = wire(messages.with_frozen(request, messages.to_record(frozen)))
    found = messages.read_frozen(again)
    assert found is not None
    assert found.keys() == frozen.keys()
    assert (found["z.weight"] == frozen["z.weight"]).all()
    assert (messages.read_plan(again), messages.read_mixing(again)) == (PLAN, MIXING)
    assert all((ARRAYS[n] == v).all() for n, v in messages.read_arrays(again).items())
    assert "frozen" not in request.array_records  # the request itself stays as it was
    grown = messages.content_bytes(again) - messages.content_bytes(request)
    assert 4 * 10 < grown < 4 * 10 + 200


def test_novelty_survives_the_wire_and_strange_histograms_are_refused() -> None:
    assert messages.read_novelty_request(wire(messages.novelty_request(6040))) == 6040
    counts = np.arange(NOVELTY_BINS)
    assert (messages.read_novelty(wire(messages.novelty_content(counts))) == counts).all()
    negative = np.where(counts == 9, -1, counts)
    for bad in (counts[1:], negative, counts.astype(float)):
        with pytest.raises(NodeError, match="unreadable histogram"):
            messages.read_novelty(messages.novelty_content(bad))


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    """What the deployment test looks for in all that nodes send is found where it is sent."""
    users = [f"somebody-{row:02d}" for row in range(24)]
    dataset = open_dataset(write_mixed(tmp_path / "dataset", users.__getitem__))
    history = np.asarray(dataset.items[: dataset.indptr[1]])
    memory = open_content(dataset, "both").text[1:].numpy()
    leaky = [
        ArrayRecord({"history": Array(history.astype(np.int64))}),
        ArrayRecord({"history": Array(history.astype(np.float32))}),
        ArrayRecord({"memory": Array(memory)}),
        ConfigRecord({"who": users[3]}),
        ConfigRecord({"key": int(dataset.user_keys[3]).to_bytes(8, "little")}),
        ConfigRecord({"items": ",".join(map(str, history))}),
    ]
    searched = {secret for _, secret in secrets_of(dataset, users)}
    for record in leaky:
        sent = recorddict_to_proto(RecordDict({"": record})).SerializeToString()
        assert any(secret in sent for secret in searched), record
    update = LocalUpdate(ARRAYS, 2.5, 7.25, 4, 3)
    sent = recorddict_to_proto(messages.update_content(update)).SerializeToString()
    assert not any(secret in sent for secret in searched)
