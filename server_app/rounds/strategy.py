"""The strategy: a stage's round plan out, its trained groups back, a server optimizer step."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from server_app.aggregation.aggregate import RoundUpdate, check_update, reduce_updates
from server_app.aggregation.optimizers import ServerOptimizer, scheduled_rate
from server_app.aggregation.rows import check_rows
from server_app.nodes.census import Census
from server_app.nodes.fitting import fit
from server_app.privacy.mechanism import Noising
from server_app.record.schema import Release
from server_app.rounds.guard import Guard
from server_app.rounds.logs import mixture_logs
from server_app.rounds.replies import Answers, check_counts, readable, require_share, usable_replies
from server_app.rounds.result import EvaluationResult, RoundResult
from server_app.rounds.sending import Sending
from shared_model.errors import ConfigError, NodeError
from shared_model.fingerprint import app_sha256
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.config import Settings
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.metrics import merge
from shared_model.protocol.plan import EvaluationPlan, LocalUpdate, MixturePlan, RoundPlan
from shared_model.protocol.wire import down, up
from shared_model.stages import TABLE, Stage

Split = Literal["valid", "test"]


class StageStrategy(Strategy):
    """Flower's four hooks for one stage, over the parts that a round is made of.

    ``updates`` and ``metrics`` read replies, ``step`` and ``merged`` make a result of them; each
    returns all that it found. The round loop asks by the ``configure`` hooks and takes results from
    the parts; the ``aggregate`` hooks are the same parts for Flower's own loop, in records. Kept
    between calls: the optimizer's state, the guard's, and what Flower does not hand on.
    """

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        census: Census,
        optimizer: ServerOptimizer,
        frozen: Arrays | None = None,
        mixing: MixturePlan | None = None,
        *,
        noising: Noising | None = None,
        num_rounds: int | None = None,
        dense: bool = False,
    ) -> None:
        """``dense``: all items compete and the item table travels whole, however large it is."""
        self.stage = stage
        self.settings = settings = fit(settings, stage, census)
        self.census = census
        self.optimizer = optimizer
        self.frozen: Arrays = frozen or {}
        self.mixing = mixing
        self.noising = noising  # with differential privacy
        self.guard = Guard(settings, stage)
        self.num_rounds = settings.num_rounds if num_rounds is None else num_rounds
        self._start = ArrayRecord()  # of the round that was configured last
        drawn = settings.drawn_candidates(stage.number, census.warm_items)
        self.drawn = 0 if dense else drawn  # candidates of a round; 0 = all items compete
        self.sending = Sending(down(settings), in_rows=self.drawn > 0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Sequence[Message]:
        """One plan for every node: who takes part is decided there, user by user."""
        self._start = arrays
        plan = self._plan(server_round)
        if not self.drawn:
            return self._to_all(plan, arrays, messages.TRAIN)
        met = config.get("met")
        if met is None:  # in Flower's own loop, whose config is the same in all rounds
            met = self.met(self.items(grid.send_and_receive(self.items_requests(server_round))))
        items = torch.tensor(met, dtype=torch.int32)
        return self._to_all(plan, arrays, messages.TRAIN, {messages.MET: items})

    def items_requests(self, round_: int) -> list[Message]:
        """Which items do your participants train on? Asked before a round that draws candidates."""
        content = messages.request_content(self._plan(round_), None, ArrayRecord())
        return [Message(content, node, messages.ITEMS) for node in self.census.nodes]

    def items(self, replies: Iterable[Message]) -> Answers[Tensor]:
        """The items that can be used, of each node."""

        def read(content: RecordDict, node: NodeReport) -> Tensor:
            met = readable(messages.read_arrays, content).get(messages.MET)
            check_rows(met, node.items + 1)
            if len(cast(Tensor, met)) > node.interactions:
                raise NodeError("more items than interactions", got=str(len(cast(Tensor, met))))
            return cast(Tensor, met)

        return usable_replies(self.census, replies).read(read)

    def met(self, answers: Answers[Tensor]) -> list[int]:
        """What all nodes' participants met, rising."""
        return sorted({item for _, items in answers.usable for item in items.tolist()})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new global arrays, and the round's sums. An empty round changes nothing."""
        require_bare(self.settings)
        start = messages.from_record(self._start)
        answers = self.updates(start, replies)
        require_share(answers, self.settings.least_trained, len(self.census.nodes))
        result = self.step(server_round, start, answers)
        sums = MetricRecord(
            {
                **({} if result.loss is None else {"loss": result.loss}),
                "participants": result.participants,
                "targets": result.targets,
                "nodes": result.nodes,
            }
        )
        return None if result.arrays is start else messages.to_record(result.arrays), sums

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Sequence[Message]:
        """All nodes score the arrays of this round on the config's "split", or on "valid".

        The test is of all users, and by the length of their histories, too.
        """
        split = cast(Split, config.get("split", "valid"))  # nodes refuse any other word
        plan = EvaluationPlan(
            stage=self.stage.number,
            round=server_round,
            seed=self.settings.seed,
            split=split,
            app_sha256=app_sha256(),
            catalogue_sha256=self.census.catalogue_sha256,
            share=1.0 if split == "test" else self._validated_share(),
            cuts=json.dumps(self.census.cuts()) if split == "test" else "",
        )
        return self._to_all(plan, arrays, messages.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Metric sums over all users of the nodes that answered."""
        answers = self.metrics(replies)
        require_share(answers, self.settings.min_participation, len(self.census.nodes))
        return MetricRecord(dict(self.merged(answers).sums.sums))

    def summary(self) -> None:
        """Nothing: the report prints what a run did."""

    def lacking(self, requests: Sequence[Message], replies: Iterable[Message]) -> list[Message]:
        """The requests again, with frozen groups or the whole table, for nodes that asked."""
        asking = {reply.metadata.src_node_id for reply in replies if _asks(reply)}
        if not asking:
            return []
        lack = [request for request in requests if request.metadata.dst_node_id in asking]
        return self.sending.again(lack, self.frozen)

    def updates(self, arrays: Arrays, replies: Iterable[Message]) -> Answers[LocalUpdate]:
        """The updates to ``arrays`` that can be used."""
        wire = up(self.settings, self.stage.number, 0, "")  # the rounding is the nodes'

        def read(content: RecordDict, node: NodeReport) -> LocalUpdate:
            update = readable(messages.read_update, content)
            update = replace(update, arrays=wire.decode(update.arrays))
            check_update(update, arrays, node, self.settings, self.drawn > 0)
            if self.noising is not None:
                self.noising.check(update, node)
            return update

        answers = usable_replies(self.census, replies).read(read)
        if self.noising:
            return answers
        return self.guard.bounded(answers, arrays, len(self.census.nodes))

    def step(
        self, round_: int, arrays: Arrays, answers: Answers[Any], total: LocalUpdate | None = None
    ) -> RoundResult:
        """The server optimizer's step from ``arrays``; none if nobody trained.

        ``answers`` are updates; or whatever they are, ``total`` is their secure sum.
        """
        mean, release = self._mean(round_, arrays, answers, total)
        result = RoundResult(
            arrays=arrays,
            participants=0,
            targets=0,
            loss=None,
            nodes=len(answers.usable),
            exchange=answers.exchange,
            clipped=answers.clipped,
            logs={},
            release=release,
        )
        if mean is None:
            return result
        rate = scheduled_rate(
            self.settings.server_schedule,
            self.settings.server_learning_rate or self.stage.default_rate,
            round_,
            self.num_rounds,
        )
        new = self.optimizer.step(arrays, mean.delta, rate, mean.rows)
        self.guard.moved(arrays, new, mean.rows)
        return replace(
            result,
            arrays=new,
            participants=mean.participants,
            targets=mean.targets,
            loss=None if self.noising or total else mean.loss,
            logs=mixture_logs(new, mean) if self.stage.mixes else {},
        )

    def release(self, round_: int, answers: Answers[Any]) -> Release | None:
        """What the ledger says of the sum of these answers; ``None`` without noise."""
        return self.noising.release(round_, self._absent(answers)) if self.noising else None

    def metrics(self, replies: Iterable[Message]) -> Answers[dict[str, float]]:
        """The metric sums that can be used."""

        def read(content: RecordDict, node: NodeReport) -> dict[str, float]:
            sums = readable(messages.read_metrics, content)
            check_counts(sums, node)
            return sums

        return usable_replies(self.census, replies).read(read)

    def merged(self, answers: Answers[dict[str, float]]) -> EvaluationResult:
        """The nodes' metric sums as one."""
        return EvaluationResult(merge([sums for _, sums in answers.usable]), answers.exchange)

    def _validated_share(self) -> float:
        """Each user's chance to be in the sample that is validated with."""
        wanted, users = self.settings.evaluate_users, self.census.dataset()["users"]
        return min(1.0, wanted / users) if wanted else 1.0

    def _plan(self, round_: int) -> RoundPlan:
        """What every node is told of a round."""
        plan = self.settings.round_plan(
            self.stage.number, round_, app_sha256(), self.census.catalogue_sha256
        )
        further = self.noising.plan(round_) if self.noising else {}
        return replace(plan, candidates=self.drawn, **further)

    def _to_all(
        self,
        plan: RoundPlan | EvaluationPlan,
        arrays: ArrayRecord,
        message_type: str,
        more: Arrays | None = None,
    ) -> list[Message]:
        if self.drawn and TABLE in arrays:  # in Flower's own loop, as a whole
            arrays = self.sending.record(messages.from_record(arrays))
        content = messages.request_content(plan, self.mixing, arrays)
        return self.sending.requests(content, self.census.nodes, message_type, more or {})

    def _mean(
        self, round_: int, arrays: Arrays, answers: Answers[Any], total: LocalUpdate | None
    ) -> tuple[RoundUpdate | None, Release | None]:
        """The nodes' updates as one, and its release; ``None`` if nobody trained, which noise would
        not tell."""
        settings = self.settings
        parts = [update for _, update in answers.usable] if total is None else [total]
        if self.noising is None:
            mean = reduce_updates(parts, arrays, settings.aggregation, settings.trim_share)
            return mean, None
        mean = self.noising.mean(parts, arrays, round_, self._absent(answers))
        return mean, self.release(round_, answers)

    def _absent(self, answers: Answers[Any]) -> list[NodeReport]:
        present = {node.name for node, _ in answers.usable}
        return [node for node in self.census.nodes.values() if node.name not in present]


def require_bare(settings: Settings) -> None:
    """``ConfigError`` in Flower's own loop, which has no message that opens a secure sum."""
    if settings.secure:
        raise ConfigError(
            "secure sums are opened by more than the four hooks",
            where="run-config key 'aggregation'",
            expected="the loop of server_app/rounds/loop.py",
            got="Strategy.start",
        )


def _asks(reply: Message) -> bool:
    return not reply.has_error() and messages.needs_frozen(reply.content)
