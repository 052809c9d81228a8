"""The strategy: a stage's round plan out, its trained groups back, a server optimizer step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server_app.aggregation.aggregate import RoundUpdate, check_update, reduce_updates
from server_app.aggregation.optimizers import ServerOptimizer, scheduled_rate
from server_app.aggregation.robust import HARD_LIMIT, limit, scaled, times_usual
from server_app.nodes.census import Census
from server_app.privacy.mechanism import Noising
from server_app.record.schema import Drop, Release
from server_app.rounds.logs import mixture_logs
from shared_model.errors import FedDMMRError, NodeError, RoundError
from shared_model.fingerprint import app_sha256
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.config import Settings
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.metrics import merge
from shared_model.protocol.plan import EvaluationPlan, LocalUpdate, MixturePlan, RoundPlan
from shared_model.stages import Stage

_REASON = 400  # characters that a node can put into the manifest each round
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


@dataclass
class Exchange:
    """What one request to all nodes cost, and who was left out of it."""

    bytes_down: int = 0
    bytes_up: int = 0
    dropped: list[Drop] = field(default_factory=list)

    def __add__(self, other: "Exchange") -> "Exchange":
        return Exchange(
            self.bytes_down + other.bytes_down,
            self.bytes_up + other.bytes_up,
            self.dropped + other.dropped,
        )


class StageStrategy(Strategy):
    """Flower's four hooks for one stage. The round loop reads ``exchange`` after each pair."""

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        census: Census,
        optimizer: ServerOptimizer,
        frozen: Arrays | None = None,
        mixing: MixturePlan | None = None,
    ) -> None:
        self.stage = stage
        self.settings = settings
        self.census = census
        self.optimizer = optimizer
        self.frozen: Arrays = frozen or {}
        self.mixing = mixing
        self.noising: Noising | None = None  # with differential privacy
        self.release = cast(Release, {})  # of the last round's noised sum, for the ledger
        self.num_rounds = settings.num_rounds or stage.default_rounds
        self.split: Literal["valid", "test"] = "valid"
        self.exchange = Exchange()
        self.logs: dict[str, Any] = {}  # what the last round of Stage 2 or 3 logged
        self.clipped: list[dict[str, Any]] = []  # whose update the last round scaled down
        self._arrays: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Sequence[Message]:
        """One plan for every node: who takes part is decided there, user by user."""
        self._arrays = messages.from_record(arrays)
        plan = self.settings.round_plan(
            self.stage.number, server_round, app_sha256(), self.census.catalogue_sha256
        )
        if self.noising:
            plan = replace(plan, **self.noising.plan(server_round))
        return self._to_all(plan, arrays, messages.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new global arrays, and the round's sums. An empty round changes nothing."""
        updates = self._updates(replies)
        if self.noising is None:
            updates = self._bounded(updates)
        self._require(len(updates), self.settings.least_trained)
        self.logs = {}
        mean = self._mean(server_round, updates)
        if mean is None:
            return None, MetricRecord({"participants": 0, "targets": 0, "nodes": len(updates)})
        rate = scheduled_rate(
            self.settings.server_schedule,
            self.settings.server_learning_rate or self.stage.default_rate,
            server_round,
            self.num_rounds,
        )
        arrays = self.optimizer.step(self._arrays, mean.delta, rate)
        if self.stage.mixes:
            self.logs = mixture_logs(arrays, mean)
        sums = MetricRecord(
            {
                **({} if self.noising else {"loss": mean.loss}),
                "participants": mean.participants,
                "targets": mean.targets,
                "nodes": len(updates),
            }
        )
        return messages.to_record(arrays), sums

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Sequence[Message]:
        """All nodes score the arrays of this round on ``self.split``."""
        plan = EvaluationPlan(
            stage=self.stage.number,
            round=server_round,
            seed=self.settings.seed,
            split=self.split,
            app_sha256=app_sha256(),
            catalogue_sha256=self.census.catalogue_sha256,
        )
        return self._to_all(plan, arrays, messages.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Metric sums over all users of the nodes that answered."""
        parts: list[dict[str, float]] = []
        for node, content in self._usable(replies):
            try:
                sums = _read(messages.read_metrics, content)
                _check_counts(sums, node)
                parts.append(sums)
            except FedDMMRError as error:
                self._drop(node.name, str(error))
        self._require(len(parts), self.settings.min_participation)
        return MetricRecord(dict(merge(parts).sums))

    def summary(self) -> None:
        """Nothing: the report prints what a run did."""

    def lacking(self, requests: Sequence[Message], replies: Iterable[Message]) -> list[Message]:
        """The requests again, with the frozen groups, for the nodes that asked for them."""
        asking = {reply.metadata.src_node_id for reply in replies if _asks(reply)}
        if not asking:
            return []
        frozen = messages.to_record(self.frozen)
        again = [
            Message(
                messages.with_frozen(request.content, frozen),
                request.metadata.dst_node_id,
                request.metadata.message_type,
            )
            for request in requests
            if request.metadata.dst_node_id in asking
        ]
        self.exchange.bytes_down += sum(messages.content_bytes(m.content) for m in again)
        return again

    def _to_all(
        self, plan: RoundPlan | EvaluationPlan, arrays: ArrayRecord, message_type: str
    ) -> list[Message]:
        content = messages.request_content(plan, self.mixing, arrays)
        size = messages.content_bytes(content)
        self.exchange = Exchange(bytes_down=size * len(self.census.nodes))
        return [Message(content, node, message_type) for node in self.census.nodes]

    def _usable(self, replies: Iterable[Message]) -> list[tuple[NodeReport, RecordDict]]:
        """Each node that answered, with its content, in partition order; the rest is dropped."""
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        usable = []
        for node_id, node in self.census.nodes.items():
            if node_id not in by_node:
                self._drop(node.name, "no reply before the deadline, or the node left")
                continue
            try:
                content = _read(messages.check_reply, by_node[node_id])
            except NodeError as error:
                self._drop(node.name, str(error))
                continue
            self.exchange.bytes_up += messages.content_bytes(content)
            if messages.needs_frozen(content):
                self._drop(node.name, "asks for the frozen groups that were just sent to it")
                continue
            usable.append((node, content))
        return usable

    def _updates(self, replies: Iterable[Message]) -> dict[str, LocalUpdate]:
        """The updates that can be used, by node, in partition order; the rest is dropped."""
        updates: dict[str, LocalUpdate] = {}
        for node, content in self._usable(replies):
            try:
                update = _read(messages.read_update, content)
                check_update(update, self._arrays, node, self.settings)
                if self.noising is not None:
                    self.noising.check(update, node)
                updates[node.name] = update
            except FedDMMRError as error:
                self._drop(node.name, str(error))
        return updates

    def _bounded(self, updates: dict[str, LocalUpdate]) -> dict[str, LocalUpdate]:
        """Without updates far beyond the norm limit; "clipped" makes the others beyond it usual.

        Not only as small as the limit: who is beyond it has no claim to the room that it leaves.
        """
        self.clipped, kept = [], {}
        norms = times_usual(list(updates.values())).tolist()
        for (name, update), times in zip(updates.items(), norms, strict=True):
            most = limit(update.participants)
            if times > HARD_LIMIT * most:
                self._drop(name, f"update norm {times:.3g} times the usual one, limit {most:.3g}")
                continue
            if times > most and self.settings.aggregation == "clipped":
                self.clipped.append({"node": name, "factor": 1 / times})
                update = scaled(update, 1 / times)
            kept[name] = update
        return kept

    def _mean(self, round_: int, updates: dict[str, LocalUpdate]) -> RoundUpdate | None:
        """The nodes' updates as one; ``None`` if nobody trained, which noise would not tell."""
        parts, settings = list(updates.values()), self.settings
        if self.noising is not None:
            absent = [node for node in self.census.nodes.values() if node.name not in updates]
            self.release = self.noising.release(round_, absent)
            return self.noising.mean(parts, self._arrays, round_, absent)
        return reduce_updates(parts, self._arrays, settings.aggregation, settings.trim_share)

    def _drop(self, name: str, reason: str) -> None:
        short = reason if len(reason) <= _REASON else reason[: _REASON - 3] + "..."
        self.exchange.dropped.append({"node": name, "reason": short})

    def _require(self, answered: int, least: float) -> None:
        """``RoundError`` if fewer than this share of the nodes answered usably."""
        share = answered / len(self.census.nodes)
        if share < least or not answered:
            first = self.exchange.dropped[0]
            raise RoundError(
                "too few nodes answered",
                where=f"{first['node']}: {first['reason']}",
                expected=f"{least:.0%} of the nodes",
                got=f"{answered} of {len(self.census.nodes)}",
                todo="mend the node and submit the same run again: it resumes",
            )


def _asks(reply: Message) -> bool:
    return not reply.has_error() and messages.needs_frozen(reply.content)


def _check_counts(sums: dict[str, float], node: NodeReport) -> None:
    """``NodeError`` if a group has more users than the node hosts: they would outvote others. Or
    more candidates than the catalogue has."""
    for name, most in (("users", node.users), ("candidates", node.users * node.items)):
        given = max((value for key, value in sums.items() if key.endswith(f"/{name}")), default=0.0)
        if given > most:
            raise NodeError(
                f"more {name} than there are", expected=f"at most {most}", got=f"{given:g}"
            )


def _read(read: Callable[[_Given], _Result], given: _Given) -> _Result:
    """What ``read`` makes of a node's answer; ``NodeError`` whatever is wrong with its bytes."""
    try:
        return read(given)
    except FedDMMRError:
        raise
    except Exception as error:  # a damaged answer raises whatever numpy or a dict trips over
        raise NodeError("unreadable reply", got=repr(error)) from error
