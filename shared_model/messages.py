"""The wire: round plans, updates and metric sums as Flower records. Only this file knows flwr.

Actions (Flower message types): ``query.prepare`` asks a node what it hosts, ``train`` runs a round
plan, ``evaluate`` scores arrays on a split. A reply holds either its result or an ``error`` line.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from shared_model.errors import NodeError, WorkerError
from shared_model.metrics import MetricSums, faulty_sums
from shared_model.model import Arrays
from shared_model.plan import EvaluationPlan, LocalUpdate, RoundPlan

_Kind = TypeVar("_Kind")

PREPARE, TRAIN, EVALUATE = "query.prepare", "train", "evaluate"


@dataclass(frozen=True)
class NodeReport:
    """What a node hosts, as it answers to ``query.prepare``. Counts and fingerprints only."""

    name: str
    partition: int  # -1: a node with a data folder of its own
    num_partitions: int
    users: int
    interactions: int
    items: int
    cold_items: int
    history_digest: str  # hex, adds up over nodes modulo 2**256
    catalogue_sha256: str
    features_sha256: str
    features: str  # JSON: dimensions, coverages and encoders
    app_sha256: str


def plan_content(plan: RoundPlan, arrays: ArrayRecord) -> RecordDict:
    """A round plan with the arrays it starts from."""
    return RecordDict({"plan": ConfigRecord(asdict(plan)), "arrays": arrays})


def read_plan(content: RecordDict) -> RoundPlan:
    """The round plan of a request."""
    return _as(RoundPlan, content, "plan")


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named tensors as Flower arrays (``.npy`` bytes, no pickle)."""
    return ArrayRecord({n: Array(t.detach().cpu().numpy()) for n, t in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower arrays as named tensors."""
    return {name: torch.from_numpy(record[name].numpy()) for name in record}


def read_arrays(content: RecordDict) -> Arrays:
    """The named tensors of a message."""
    if "arrays" not in content.array_records:
        raise NodeError("message without arrays", expected="an ArrayRecord named 'arrays'")
    return from_record(content.array_records["arrays"])


def update_content(update: LocalUpdate) -> RecordDict:
    """A node's summed update as a reply."""
    sums = MetricRecord(
        {
            "weight": update.weight,
            "loss": update.loss,
            "targets": update.targets,
            "participants": update.participants,
        }
    )
    return RecordDict({"arrays": to_record(update.arrays), "sums": sums})


def read_update(content: RecordDict) -> LocalUpdate:
    """The summed update of a reply; ``NodeError`` if a part is absent or of another type."""
    sums = _metrics(content, "sums")
    try:
        return LocalUpdate(
            arrays=read_arrays(content),
            weight=float(sums["weight"]),
            loss=float(sums["loss"]),
            targets=int(sums["targets"]),
            participants=int(sums["participants"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NodeError("unreadable update", where="reply to train", got=repr(error)) from error


def evaluation_content(plan: EvaluationPlan, arrays: ArrayRecord) -> RecordDict:
    """A request to score arrays on a split."""
    return RecordDict({"plan": ConfigRecord(asdict(plan)), "arrays": arrays})


def read_evaluation(content: RecordDict) -> EvaluationPlan:
    """The plan of an evaluation request."""
    return _as(EvaluationPlan, content, "plan")


def metrics_content(sums: MetricSums) -> RecordDict:
    """Metric sums as a reply."""
    return RecordDict({"metrics": MetricRecord(dict(sums.sums))})


def read_metrics(content: RecordDict) -> dict[str, float]:
    """The metric sums of a reply; ``NodeError`` unless each is what users can add up to."""
    try:
        sums = {key: float(value) for key, value in _metrics(content, "metrics").items()}
    except (TypeError, ValueError) as error:
        raise NodeError("unreadable metrics", where="reply to evaluate", got=repr(error)) from error
    if faults := faulty_sums(sums):
        raise NodeError("unusable metric sums", expected="0 to users", got=", ".join(faults[:3]))
    return sums


def report_content(report: NodeReport) -> RecordDict:
    """A node's report as a reply."""
    return RecordDict({"report": ConfigRecord(asdict(report))})


def read_report(content: RecordDict) -> NodeReport:
    """The node report of a reply."""
    return _as(NodeReport, content, "report")


def error_content(line: str) -> RecordDict:
    """A refusal: the one line that says what is wrong on the node."""
    return RecordDict({"error": ConfigRecord({"line": line})})


def check_reply(message: Message) -> RecordDict:
    """The reply's content; ``NodeError`` if the node failed or refused.

    ``WorkerError`` if a Ray actor died: the dead one goes back into its pool, where it answers at
    once and eats ever more messages, so the run has to stop.
    """
    if message.has_error():
        reason = " ".join((message.error.reason or "").split())
        if message.error.code == 0 and "ActorDiedError" in reason:
            raise WorkerError(
                "a worker process of the simulation died",
                got=reason[-300:],
                todo="free memory or lower users-per-batch, then submit the same run: it resumes",
            )
        raise NodeError(f"node failed with code {message.error.code}", got=reason[-600:])
    if "error" in message.content.config_records:
        raise NodeError(str(message.content.config_records["error"]["line"]))
    return message.content


def content_bytes(content: RecordDict) -> int:
    """Payload bytes of a message: its arrays, and its other records as text."""
    total = 0
    for record in content.array_records.values():
        total += sum(len(array.data) for array in record.values())
    for config in content.config_records.values():
        total += sum(len(key) + len(str(value)) for key, value in config.items())
    for metrics in content.metric_records.values():
        total += sum(len(key) + len(str(value)) for key, value in metrics.items())
    return total


def _as(kind: type[_Kind], content: RecordDict, name: str) -> _Kind:
    """A config record as the dataclass that it was made from."""
    if name not in content.config_records:
        raise NodeError("message without its config", expected=f"a ConfigRecord named '{name}'")
    try:
        return kind(**content.config_records[name])
    except TypeError as error:
        raise NodeError(
            f"the {name} of a message has other fields",
            got=str(error),
            todo="run the same version of the app on server and nodes",
        ) from error


def _metrics(content: RecordDict, name: str) -> Mapping[str, Any]:
    if name not in content.metric_records:
        raise NodeError("reply without its sums", expected=f"a MetricRecord named '{name}'")
    return dict(content.metric_records[name])
