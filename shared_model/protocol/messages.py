"""The wire: round plans, updates and metric sums as Flower records (masked: secure_messages.py).

Actions (Flower message types): ``query.prepare`` asks a node what it hosts, ``query.novelty`` what
its users' memories meet, ``query.items`` which items a round's participants met, ``train`` runs a
round plan, ``evaluate`` scores arrays on a split. A reply holds its result, an ``error`` line, or
``needs``: the frozen groups, or the version of the item table, that the node does not hold.
"""

import operator
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.app import RecordDict as RecordDict

from shared_model.errors import NodeError, WorkerError
from shared_model.memory.memory import NOVELTY_BINS, Ints
from shared_model.model.recommender import Arrays
from shared_model.protocol.metrics import MetricSums, faulty_sums
from shared_model.protocol.node_report import MOST, check_report
from shared_model.protocol.node_report import NodeReport as NodeReport
from shared_model.protocol.plan import (
    EvaluationPlan,
    LocalUpdate,
    MixturePlan,
    RoundPlan,
    TableVersion,
)
from shared_model.protocol.wire import ROWS as ROWS
from shared_model.stages import TABLE
from shared_model.transport.npy import from_record as from_record
from shared_model.transport.npy import to_record as to_record
from shared_model.transport.packing import unpack

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Kind = TypeVar("_Kind", bound="DataclassInstance")

MET = "met"  # int32, rising: items that a round's participants trained on
PREPARE, NOVELTY, ITEMS = "query.prepare", "query.novelty", "query.items"
TRAIN, EVALUATE = "train", "evaluate"


def request_content(
    plan: RoundPlan | EvaluationPlan, mixing: MixturePlan | None, arrays: ArrayRecord
) -> RecordDict:
    """A plan with the arrays that it starts from or scores."""
    content = RecordDict({"plan": ConfigRecord(asdict(plan)), "arrays": arrays})
    if mixing is not None:
        content["mixing"] = ConfigRecord(asdict(mixing))
    return content


def read_plan(content: RecordDict) -> RoundPlan:
    """The round plan of a request."""
    return _as(RoundPlan, content, "plan")


def read_mixing(content: RecordDict) -> MixturePlan:
    """The mixture's part of a request of Stage 2 or 3."""
    return _as(MixturePlan, content, "mixing")


def with_frozen(content: RecordDict, frozen: ArrayRecord) -> RecordDict:
    """The same request with the stage's frozen groups, for a node that asked for them."""
    return RecordDict({**content, "frozen": frozen})


def read_frozen(content: RecordDict) -> Arrays | None:
    """The frozen groups of a request, if it brings them."""
    record = content.array_records.get("frozen")
    return None if record is None else from_record(record)


def with_table(content: RecordDict, version: TableVersion, part: Arrays) -> RecordDict:
    """The same request with ``part`` in place of its item table: this one, or its rows."""
    sent = content.array_records["arrays"].items()
    others = {name: array for name, array in sent if name.split("/")[0] != TABLE}
    arrays = ArrayRecord(others | dict(to_record(part)))
    return RecordDict({**content, "arrays": arrays, "table": ConfigRecord(asdict(version))})


def read_table(content: RecordDict) -> TableVersion | None:
    """Which table a request brings, whole or in rows; ``None`` for one that is as all arrays."""
    return _as(TableVersion, content, "table") if "table" in content.config_records else None


def read_met(content: RecordDict) -> Ints:
    """The items of a request or a reply, which the participants of its round met: int64 [M]."""
    record = content.array_records["arrays"]
    return record[MET].numpy().astype(np.int64) if MET in record else np.empty(0, np.int64)


def ask_for_table(content: RecordDict) -> RecordDict:
    """A node's answer when it lacks the item table that the rows of a request change."""
    return RecordDict({"needs": content.config_records["table"]})


def ask_for_frozen(sha256: str) -> RecordDict:
    """A node's answer when it does not hold the frozen groups of a request."""
    return RecordDict({"needs": ConfigRecord({"frozen_sha256": sha256})})


def needs_frozen(content: RecordDict) -> bool:
    """Whether a reply asks for the frozen groups, or for the whole item table."""
    return "needs" in content.config_records


def arrays_content(arrays: Arrays) -> RecordDict:
    """Named tensors as a reply."""
    return RecordDict({"arrays": to_record(arrays)})


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
    arrays = update.arrays if update.rows is None else update.arrays | {ROWS: update.rows}
    return RecordDict(
        {"arrays": to_record(arrays), "sums": sums, "logs": MetricRecord(dict(update.logs))}
    )


def read_update(content: RecordDict) -> LocalUpdate:
    """The summed update of a reply; ``NodeError`` if a part is absent or of another type."""
    sums, arrays = _metrics(content, "sums"), read_arrays(content)
    rows = arrays.pop(ROWS, None)
    try:
        return LocalUpdate(
            arrays=arrays,
            weight=float(sums["weight"]),
            loss=float(sums["loss"]),
            targets=operator.index(sums["targets"]),
            participants=operator.index(sums["participants"]),
            logs={name: float(value) for name, value in _metrics(content, "logs").items()},
            rows=rows,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NodeError("unreadable update", where="reply to train", got=repr(error)) from error


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
    except (TypeError, ValueError, OverflowError) as error:
        raise NodeError("unreadable metrics", where="reply to evaluate", got=repr(error)) from error
    if faults := faulty_sums(sums):
        got = ", ".join(ascii(fault)[:80] for fault in faults[:3])
        raise NodeError("unusable metric sums", expected="0 to users", got=got)
    return sums


def report_content(report: NodeReport) -> RecordDict:
    """A node's report as a reply."""
    return RecordDict({"report": ConfigRecord(asdict(report))})


def read_report(content: RecordDict) -> NodeReport:
    """The node report of a reply; ``NodeError`` if a count or a fingerprint cannot be one."""
    report = _as(NodeReport, content, "report")
    check_report(report)
    return report


def novelty_request(total_users: int) -> RecordDict:
    """Ask for the novelty of a sample of all users."""
    return RecordDict({"ask": ConfigRecord({"total_users": total_users})})


def read_novelty_request(content: RecordDict) -> int:
    """How many users all nodes together have."""
    record = content.config_records.get("ask")
    if record is None or type(record.get("total_users")) is not int:
        raise NodeError("unreadable request", where="query.novelty", expected="total_users")
    return int(str(record["total_users"]))


def novelty_content(counts: Ints) -> RecordDict:
    """A node's histogram of novelty as a reply."""
    return RecordDict({"novelty": ConfigRecord({"counts": counts.tolist()})})


def read_novelty(content: RecordDict) -> Ints:
    """The histogram of a reply; ``NodeError`` unless it has the bins of ``novelty_counts``."""
    given: Any = content.config_records.get("novelty", ConfigRecord()).get("counts")
    counts = given if isinstance(given, list) else []
    if len(counts) != NOVELTY_BINS or not all(type(n) is int and 0 <= n < MOST for n in counts):
        raise NodeError(
            "unreadable histogram", where="query.novelty", expected=f"{NOVELTY_BINS} counts"
        )
    return np.array(counts, dtype=np.int64)


def refuses(content: RecordDict) -> bool:
    """Whether a reply holds no result: an error, or that something is needed."""
    return bool(content.config_records.keys() & {"error", "needs"})


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
        line = message.content.config_records["error"].get("line")
        raise NodeError(str(line)[-600:] or "a node refused and did not say why")
    return unpack(message.content)


def content_bytes(content: RecordDict) -> int:
    """Payload bytes of a message: its arrays, and its other records as text."""
    total = 0
    for record in content.array_records.values():
        total += sum(len(array.data) for array in record.values())
    for config in content.config_records.values():
        total += sum(len(key) + _size(value) for key, value in config.items())
    for metrics in content.metric_records.values():
        total += sum(len(key) + len(str(value)) for key, value in metrics.items())
    return total


def _size(value: object) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return sum(map(len, value))
    return len(str(value))


def _as(kind: type[_Kind], content: RecordDict, name: str) -> _Kind:
    """A config record as the dataclass that it was made from."""
    if name not in content.config_records:
        raise NodeError("message without its config", expected=f"a ConfigRecord named '{name}'")
    given = dict(content.config_records[name])
    wanted = {field.name: field.type for field in fields(kind)}
    faults = sorted(given.keys() ^ wanted.keys())
    faults += sorted(
        key for key in given.keys() & wanted.keys() if not _is(given[key], wanted[key])
    )
    if faults:
        raise NodeError(
            f"the {name} of a message has other fields",
            got=", ".join(ascii(fault)[:80] for fault in faults[:10]),
            todo="run the same version of the app on server and nodes",
        )
    return kind(**given)


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of a dataclass field's type: a plain one, or a ``Literal``."""
    return value in get_args(kind) if get_args(kind) else type(value) is kind


def _metrics(content: RecordDict, name: str) -> Mapping[str, Any]:
    if name not in content.metric_records:
        raise NodeError("reply without its sums", expected=f"a MetricRecord named '{name}'")
    return dict(content.metric_records[name])
