"""Asking the nodes: a round's training or an evaluation, once more where that can help."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from server_app.nodes.presence import Presence
from server_app.record import report
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import RoundError
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.metrics import MetricSums, Report

_Result = TypeVar("_Result")


class Asking:
    """The strategy's four hooks over the nodes that are there.

    ``strategy.exchange`` afterwards holds the traffic and the dropped nodes of all attempts.
    """

    def __init__(self, grid: Grid, strategy: StageStrategy) -> None:
        self.presence = Presence(grid, strategy.census, strategy.settings)
        self._grid = grid
        self._strategy = strategy

    def train(self, round_: int, arrays: Arrays) -> tuple[Arrays, MetricRecord]:
        """One round's new arrays and sums."""
        self.presence.look()
        self.presence.silent.clear()
        return self._twice(f"round {round_}", lambda: self._try_train(round_, arrays))

    def evaluate(self, round_: int, arrays: Arrays, split: Literal["valid", "test"]) -> Report:
        """Metrics over all users; nodes that fail are asked again, then they are left out.

        A node that was silent in this round's training is not waited for again, except for the
        test, which is opened once.
        """
        self._strategy.split = split
        self.presence.look()
        if split == "test":
            self.presence.silent.clear()
        return self._twice("evaluation", lambda: self._try_evaluate(round_, arrays), self._failed)

    def _twice(
        self,
        what: str,
        attempt: Callable[[], _Result],
        failed: Callable[[], str] = lambda: "",
    ) -> _Result:
        """The result of an attempt; of a second one if too few answered or some failed."""
        try:
            result = attempt()
            why = failed()
            if not why:
                return result
        except RoundError as error:
            why = str(error)
            self.presence.look()
            self.presence.silent.clear()
        report.say(f"stage {self._strategy.stage.number}: {what} is tried again: {why}")
        first = self._strategy.exchange
        try:
            result = attempt()
        except RoundError as error:
            raise self._stop(what, error) from error
        self._strategy.exchange = first + self._strategy.exchange
        return result

    def _stop(self, what: str, error: RoundError) -> RoundError:
        dropped = self._strategy.exchange.dropped
        return RoundError(
            f"{error.what}, twice",
            where=f"stage {self._strategy.stage.number}, {what}",
            expected=error.expected,
            got=", ".join(f"{drop['node']}: {drop['reason']}" for drop in dropped),
            todo=f"mend the nodes, then {report.resume_command(self._strategy.settings)}",
        )

    def _failed(self) -> str:
        """Names of the nodes that were left out although they can answer."""
        dropped = {drop["node"] for drop in self._strategy.exchange.dropped}
        return ", ".join(sorted(dropped - self.presence.away()))

    def _try_train(self, round_: int, arrays: Arrays) -> tuple[Arrays, MetricRecord]:
        record = messages.to_record(arrays)
        requests = self._strategy.configure_train(round_, record, ConfigRecord(), self._grid)
        new, sums = self._strategy.aggregate_train(round_, self._replies(requests))
        return (arrays if new is None else messages.from_record(new)), sums or MetricRecord()

    def _try_evaluate(self, round_: int, arrays: Arrays) -> Report:
        record = messages.to_record(arrays)
        requests = self._strategy.configure_evaluate(round_, record, ConfigRecord(), self._grid)
        replies = self._replies(requests)
        sums = self._strategy.aggregate_evaluate(round_, replies) or MetricRecord()
        return MetricSums({key: scalar(sums, key) for key in sums}).report()

    def _replies(self, requests: Sequence[Message]) -> list[Message]:
        """What the nodes answer until the deadline; frozen groups go to those that lack them.

        Those have a deadline of their own: a silent node would have used up the first one.
        """
        timeout = self._strategy.settings.round_timeout
        asked = self._to_those_present(requests)
        replies = list(self._grid.send_and_receive(asked, timeout=timeout))
        if again := self._strategy.lacking(asked, replies):
            lacking = {request.metadata.dst_node_id for request in again}
            replies = [reply for reply in replies if reply.metadata.src_node_id not in lacking]
            replies += self._grid.send_and_receive(again, timeout=timeout)
        answered = {reply.metadata.src_node_id for reply in replies}
        self.presence.silent |= {r.metadata.dst_node_id for r in asked} - answered
        return replies

    def _to_those_present(self, requests: Sequence[Message]) -> list[Message]:
        """The requests that can be answered; the others are not sent, so they cost no bytes."""
        asked: list[Message] = []
        for request in requests:
            if self.presence.can_answer(request.metadata.dst_node_id):
                asked.append(request)
            else:
                self._strategy.exchange.bytes_down -= messages.content_bytes(request.content)
        return asked


def scalar(sums: MetricRecord, key: str) -> float:
    """A metric as a float."""
    value: Any = sums[key]
    return float(value)
