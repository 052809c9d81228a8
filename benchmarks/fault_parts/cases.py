"""What the bad node of the fault benchmark does, and the grid that lets it do so.

The node trains as the others do; what it sends is a real reply, changed on its way. Nothing of the
app is replaced.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from feddmmr.launch.in_process import InProcessGrid
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.config import Value, parse_settings
from shared_model.protocol.wire import Wire

Change = Callable[[RecordDict, Wire], None]  # of a reply to "train" in a format, in place


@dataclass(frozen=True)
class Fault:
    """One line of the table. It lasts ``rounds`` rounds; 0 = to the end of the run."""

    name: str
    change: Change | None = None
    behaviour: Literal["answers", "raises", "is silent", "leaves"] = "answers"
    rounds: int = 0


def _numbers(change: Callable[[Arrays], Arrays]) -> Change:
    """The update's numbers changed, in whatever format they travel."""

    def apply(content: RecordDict, wire: Wire) -> None:
        arrays = wire.decode(messages.from_record(content.array_records["arrays"]))
        content.array_records["arrays"] = messages.to_record(wire.encode(change(arrays)))

    return apply


def _scaled(factor: float) -> Change:
    """The update times a number."""
    return _numbers(
        lambda arrays: {n: a * factor if a.is_floating_point() else a for n, a in arrays.items()}
    )


def _arrays(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Every array that travels changed."""

    def apply(content: RecordDict, wire: Wire) -> None:
        record = content.array_records["arrays"]
        for name in list(record):
            record[name] = Array(change(record[name].numpy()))

    return apply


def _first(change: Callable[[ArrayRecord, str], None]) -> Change:
    """The first array that travels changed."""

    def apply(content: RecordDict, wire: Wire) -> None:
        record = content.array_records["arrays"]
        change(record, next(iter(record)))

    return apply


def _entry(value: float) -> Change:
    """One number of the update replaced."""

    def replace(arrays: Arrays) -> Arrays:
        name = next(name for name, array in arrays.items() if array.is_floating_point())
        first = arrays[name].clone()
        first.view(-1)[0] = value
        return arrays | {name: first}

    return _numbers(replace)


def _weight(change: Callable[[float], float]) -> Change:
    def apply(content: RecordDict, wire: Wire) -> None:
        sums = content.metric_records["sums"]
        sums["weight"] = change(float(str(sums["weight"])))

    return apply


def _cut_row(record: ArrayRecord, name: str) -> None:
    record[name] = Array(record[name].numpy()[:-1])


def _one_row(record: ArrayRecord, name: str) -> None:
    record[name] = Array(record[name].numpy()[:1])


def _rename(record: ArrayRecord, name: str) -> None:
    record[name + ".other"] = record.pop(name)


def _remove(record: ArrayRecord, name: str) -> None:
    del record[name]


UNDISTURBED = Fault("undisturbed")
_AWHILE = 10  # rounds
FAULTS = (
    Fault("NaN", _entry(float("nan"))),
    Fault("inf", _entry(float("inf"))),
    Fault("wrong shape", _first(_cut_row)),
    Fault("wrong shape that broadcasts", _first(_one_row)),
    Fault("wrong dtype", _arrays(lambda array: array.astype(np.float64))),
    Fault("wrong name", _first(_rename)),
    Fault("missing array", _first(_remove)),
    Fault("huge weight", _weight(lambda _: 1e12)),
    Fault("zero weight", _weight(lambda _: 0.0)),
    Fault("negative weight", _weight(lambda weight: -weight)),
    Fault("NaN weight", _weight(lambda _: float("nan"))),
    Fault("update x 1e6", _scaled(1e6)),
    Fault("update x 10", _scaled(10.0)),
    Fault("update x -1", _scaled(-1.0)),
    Fault("update x -10", _scaled(-10.0)),
    Fault("exception", behaviour="raises"),
    Fault("silence past the deadline", behaviour="is silent"),
    Fault("silent for 10 rounds", behaviour="is silent", rounds=_AWHILE),
    Fault("leaves mid-round", behaviour="leaves"),
    Fault("leaves, back 10 rounds later", behaviour="leaves", rounds=_AWHILE),
)


class FaultyGrid(InProcessGrid):
    """Nodes of one process, of which one goes wrong from a round on.

    ``replies`` are what the server got in that round, ``last`` the latest validation request.
    """

    def __init__(
        self,
        node_configs: list[dict[str, Value]],
        run_config: dict[str, Value],
        fault: Fault,
        bad: int,
        start: int,
    ) -> None:
        super().__init__(node_configs, run_config)
        self.replies: list[Message] = []
        self.last: Message | None = None
        self._fault, self._start, self._round = fault, start, 0
        self._wire = Wire(parse_settings(run_config).wire_dtype, seed=0)
        self._bad = list(self.contexts)[bad]
        self._absent = None if fault.behaviour != "leaves" else self.contexts[self._bad]

    def get_node_ids(self) -> Iterable[int]:
        """Who is online; a node that comes back has another id, as a restarted SuperNode has."""
        over = self._fault.rounds and self._round >= self._start + self._fault.rounds - 1
        if self._absent is not None and over:
            self._bad += len(self.contexts) + 1
            self.contexts[self._bad], self._absent = self._absent, None
        return super().get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies of the others, and what the bad node makes of its own."""
        requests = list(messages)
        if requests and requests[0].metadata.message_type == "train":
            return self._train(requests)
        for request in requests:
            self._note_validation(request)
        return super().send_and_receive(requests)

    def _train(self, requests: list[Message]) -> list[Message]:
        self._round = messages.read_plan(requests[0].content).round
        end = self._start + self._fault.rounds if self._fault.rounds else np.inf
        if not self._start <= self._round < end:
            return list(super().send_and_receive(requests))
        if self._fault.behaviour == "raises":
            return self._noted(self._raising(requests))
        if self._fault.behaviour == "leaves":
            self.contexts.pop(self._bad, None)
        if self._fault.behaviour in ("leaves", "is silent"):
            requests = [r for r in requests if r.metadata.dst_node_id != self._bad]
        replies = list(super().send_and_receive(requests))
        for reply in replies:
            if reply.metadata.src_node_id == self._bad and self._fault.change is not None:
                self._fault.change(reply.content, self._wire)
        return self._noted(replies)

    def _noted(self, replies: list[Message]) -> list[Message]:
        if self._round == self._start:
            self.replies = replies
        return replies

    def _raising(self, requests: list[Message]) -> list[Message]:
        """The bad node without its run-config, over which its handler stumbles."""
        context = self.contexts[self._bad]
        given, context.run_config = context.run_config, None  # type: ignore[assignment]
        replies = list(super().send_and_receive(requests))
        context.run_config = given
        return replies

    def _note_validation(self, request: Message) -> None:
        if request.metadata.message_type != "evaluate":
            return
        if messages.read_evaluation(request.content).split == "valid":
            self.last = request
