"""Asking the nodes: a round's training or an evaluation, once more where that can help."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from server_app.nodes.presence import Presence
from server_app.nodes.waiting import replies_to
from server_app.record import report
from server_app.record.schema import Release
from server_app.rounds.replies import Answers, require_share
from server_app.rounds.result import EvaluationResult, Exchange, RoundResult
from server_app.rounds.secure import SecureSums
from server_app.rounds.strategy import Split, StageStrategy
from shared_model.errors import RoundError
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.plan import LocalUpdate

_Answer = TypeVar("_Answer")


class Asking:
    """A strategy's rounds and evaluations with the nodes that are there."""

    def __init__(self, grid: Grid, strategy: StageStrategy) -> None:
        self.presence = Presence(grid, strategy.census, strategy.settings)
        self._grid = grid
        self._strategy = strategy
        secure = strategy.settings.secure
        self._secure = SecureSums(grid, strategy, self.presence, self._replies) if secure else None

    def train(
        self,
        round_: int,
        arrays: Arrays,
        among: Sequence[str] = (),
        charge: Callable[[Release], None] | None = None,
    ) -> RoundResult:
        """One round from these arrays. ``RoundError`` if too few nodes answered, twice.

        Where a secure sum comes out with noise in it: of the nodes ``among``, if any are named, and
        ``charge`` is told of the release before anybody helps to open it.
        """
        self.presence.look()
        self.presence.silent.clear()
        record = self._strategy.sending.record(arrays)
        what, least = f"round {round_}", self._strategy.settings.least_trained
        if not self._secure:
            answers = self._twice(what, lambda: self._try_train(round_, arrays, record), least)
            return self._strategy.step(round_, arrays, answers)
        secure = self._secure
        masked = self._twice(what, lambda: secure.attempt(round_, arrays, record, among), least)
        if charge and (release := self._strategy.release(round_, masked)):
            charge(release)
        total, opening = secure.open(arrays, masked)
        return self._strategy.step(round_, arrays, masked.after(opening), total)

    def close(self) -> None:
        """No round comes any more: nodes forget what they kept for the next one."""
        if self._secure:
            try:
                self._secure.forget()
            except Exception as error:  # noqa: BLE001 (it is over, in whatever way: this is a note)
                report.say(f"note: nodes were not asked to forget their keys: {error}")

    def evaluate(self, round_: int, arrays: Arrays, split: Split) -> EvaluationResult:
        """Metrics over all users; nodes that fail are asked again, then they are left out.

        A node that was silent in this round's training is not waited for again, except for the
        test, which is opened once. ``RoundError`` if too few nodes answered, twice.
        """
        self.presence.look()
        if split == "test":
            self.presence.silent.clear()
        record = self._strategy.sending.record(arrays)
        answers = self._twice(
            "evaluation",
            lambda: self._try_evaluate(round_, record, split),
            self._strategy.settings.min_participation,
            self._failed,
        )
        return self._strategy.merged(answers)

    def _twice(
        self,
        what: str,
        attempt: Callable[[], Answers[_Answer]],
        least: float,
        failed: Callable[[Answers[_Answer]], str] = lambda _: "",
    ) -> Answers[_Answer]:
        """The answers to an attempt; to a second one if too few answered or some failed.

        They hold the traffic and the dropped nodes of both.
        """
        first = attempt()
        try:
            self._require(first, least)
            why = failed(first)
            if not why:
                return first
        except RoundError as error:
            why = str(error)
            self.presence.look()
            self.presence.silent.clear()
        report.say(f"stage {self._strategy.stage.number}: {what} is tried again: {why}")
        second = attempt()
        try:
            self._require(second, least)
        except RoundError as error:
            raise self._stop(what, error, second.exchange) from error
        return second.after(first.exchange)

    def _require(self, answers: Answers[Any], least: float) -> None:
        require_share(answers, least, len(self._strategy.census.nodes))

    def _stop(self, what: str, error: RoundError, exchange: Exchange) -> RoundError:
        return RoundError(
            f"{error.what}, twice",
            where=f"stage {self._strategy.stage.number}, {what}",
            expected=error.expected,
            got=", ".join(f"{drop['node']}: {drop['reason']}" for drop in exchange.dropped),
            todo=f"mend the nodes, then {report.resume_command(self._strategy.settings)}",
        )

    def _failed(self, answers: Answers[Any]) -> str:
        """Names of the nodes that were left out although they can answer."""
        dropped = {drop["node"] for drop in answers.exchange.dropped}
        return ", ".join(sorted(dropped - self.presence.away()))

    def _try_train(self, round_: int, arrays: Arrays, record: ArrayRecord) -> Answers[LocalUpdate]:
        config, before = ConfigRecord(), Exchange()
        if self._strategy.drawn:
            replies, sent = self._replies(self._strategy.items_requests(round_))
            items = self._strategy.items(replies)  # who is left out here refuses to train
            config["met"] = self._strategy.met(items)
            before = sent + Exchange(bytes_up=items.exchange.bytes_up)
        requests = self._strategy.configure_train(round_, record, config, self._grid)
        replies, sent = self._replies(requests)
        self._strategy.sending.heard(replies)
        return self._strategy.updates(arrays, replies).after(before + sent)

    def _try_evaluate(
        self, round_: int, record: ArrayRecord, split: Split
    ) -> Answers[dict[str, float]]:
        config = ConfigRecord({"split": split})
        requests = self._strategy.configure_evaluate(round_, record, config, self._grid)
        replies, sent = self._replies(requests)
        self._strategy.sending.heard(replies)
        return self._strategy.metrics(replies).after(sent)

    def _replies(self, requests: Sequence[Message]) -> tuple[list[Message], Exchange]:
        """What the nodes answer until the deadline, and what was sent to them.

        Requests go to the nodes that can answer, so the others cost no bytes; frozen groups go to
        those that lack them. Those have a deadline of their own: a silent node would have used up
        the first one.
        """
        timeout = self._strategy.settings.round_timeout
        asked = [r for r in requests if self.presence.can_answer(r.metadata.dst_node_id)]
        replies = replies_to(self._grid, asked, timeout)
        again = self._strategy.lacking(asked, replies)
        if again:
            lacking = {request.metadata.dst_node_id for request in again}
            replies = [reply for reply in replies if reply.metadata.src_node_id not in lacking]
            replies += replies_to(self._grid, again, timeout)
        answered = {reply.metadata.src_node_id for reply in replies}
        self.presence.silent |= {r.metadata.dst_node_id for r in asked} - answered
        sent = sum(messages.content_bytes(request.content) for request in (*asked, *again))
        return replies, Exchange(bytes_down=sent)
