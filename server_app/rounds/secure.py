"""Rounds whose sums are secure: keys once a stage, masked vectors, and shares that open their sum.

docs/security.md has the protocol, and who has to trust whom.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from secrets import token_hex

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from server_app.aggregation.secure_sum import read_sum
from server_app.nodes.presence import Presence
from server_app.nodes.waiting import replies_to
from server_app.privacy.shares import scale_of
from server_app.record import report
from server_app.record.schema import Drop
from server_app.rounds.replies import Answers, readable, usable_replies
from server_app.rounds.result import Exchange
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages, secure_messages
from shared_model.protocol.masked_update import length_of, sum_noise
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import LocalUpdate
from shared_model.protocol.secure_messages import SecureRequest
from shared_model.secure import opening
from shared_model.secure.identity import SignedKey, check_signed
from shared_model.secure.site import Masked
from shared_model.secure.use import Use, threshold_of

Send = Callable[[Sequence[Message]], tuple[list[Message], Exchange]]
_FORGET_SECONDS = 60.0


@dataclass(frozen=True)
class _Key:
    """A node's key, and the id under which it drew it: one that came back may have lost it."""

    node: int
    key: SignedKey


class SecureSums:
    """The session of one stage in one process: a server that resumes begins another one."""

    def __init__(self, grid: Grid, strategy: StageStrategy, presence: Presence, send: Send) -> None:
        self._grid, self._strategy, self._presence, self._send = grid, strategy, presence, send
        self._session = token_hex(16)
        self._keys: dict[str, _Key] = {}  # by name
        self._keyless: dict[str, str] = {}  # why a node has given none, by name
        self._request: SecureRequest | None = None  # of the last use
        self._uses = 0

    def attempt(
        self, round_: int, arrays: Arrays, record: ArrayRecord, among: Sequence[str] = ()
    ) -> Answers[Masked]:
        """The masked vectors of the nodes that sent one. It may be tried again: no sum is open.

        Of the nodes ``among`` these alone, if any are named.
        """
        asked = self._agree()
        request = self._next(round_, among)
        self._request = request
        if len(request.use.sites) < request.use.threshold:  # no site would take it
            none = usable_replies(self._strategy.census, [])
            return Answers([], self._explained(none.exchange)).after(asked)
        plain = self._strategy.configure_train(round_, record, ConfigRecord(), self._grid)
        replies, sent = self._send(
            [
                Message(
                    secure_messages.with_secure(message.content, request),
                    message.metadata.dst_node_id,
                    messages.TRAIN,
                )
                for message in plain
                if self._name(message.metadata.dst_node_id) in request.use.sites
            ]
        )
        answers = usable_replies(self._strategy.census, replies)
        masked = answers.read(_masked_reader(request, length_of(arrays)))
        explained = replace(masked, exchange=self._explained(masked.exchange))
        return explained.after(asked + sent)

    def open(self, arrays: Arrays, answers: Answers[Masked]) -> tuple[LocalUpdate, Exchange]:
        """The sum of these vectors as an update, and what it took to open it.

        ``RoundError`` if too few sites helped, or if the sum is nonsense: there is no second
        attempt, since sites may have given shares of this one.
        """
        request = self._request
        if request is None:
            raise NodeError("no masked vectors were asked for")
        came = {node.name: masked for node, masked in answers.usable}
        lost = opening.lost_sites(request.use, came)
        given: Mapping[str, opening.Shares] = {}
        exchange = Exchange()
        if not opening.is_open(request.use, lost):
            given, exchange = self._shares(request, came, lost)
        words = opening.opened_sum(request.use, came, lost, given)
        nodes, settings = [node for node, _ in answers.usable], self._strategy.settings
        noise = sum_noise(settings.noise_std, len(nodes), request.use.threshold)
        added = noise if settings.shares_noise else 0.0
        return read_sum(words, arrays, nodes, request.scale, settings, added), exchange

    def forget(self) -> None:
        """Have the nodes delete their keys, which nobody needs any more, as far as they answer."""
        content = secure_messages.session_request(self._session)
        requests = [
            Message(content, held.node, secure_messages.FORGET)
            for held in self._keys.values()
            if self._presence.can_answer(held.node)
        ]
        self._keys = {}
        if requests:
            replies_to(self._grid, requests, _FORGET_SECONDS)

    def _agree(self) -> Exchange:
        """Ask the nodes for keys whose keys are not known: once a stage, and those that come back.

        Who does not answer is asked again before the next attempt.
        """
        nodes = dict(self._strategy.census.nodes)
        self._keys = {n: held for n, held in self._keys.items() if held.node in nodes}
        content = secure_messages.session_request(self._session)
        requests = [
            Message(content, node, secure_messages.KEYS)
            for node, known in nodes.items()
            if known.name not in self._keys
        ]
        if not requests:
            self._keyless = {}
            return Exchange()
        awaited = {known.name for known in nodes.values()} - self._keys.keys()
        replies, sent = self._send(requests)
        answers = usable_replies(self._strategy.census, replies).read(self._read_key)
        ids = {known.name: node for node, known in nodes.items()}
        for known, key in answers.usable:
            self._keys[known.name] = _Key(ids[known.name], key)
        dropped = {drop["node"]: drop["reason"] for drop in answers.exchange.dropped}
        self._keyless = {name: f"no key: {dropped[name]}" for name in awaited & dropped.keys()}
        for name in sorted(self._keyless):
            report.say(f"{name}: {self._keyless[name]}")
        return Exchange(sent.bytes_down, answers.exchange.bytes_up)

    def _explained(self, exchange: Exchange) -> Exchange:
        """Who was not asked for a vector did not fail to answer: it has given no key."""
        dropped = exchange.dropped
        told: list[Drop] = [
            {**d, "reason": self._keyless.get(d["node"], d["reason"])} for d in dropped
        ]
        return replace(exchange, dropped=told)

    def _read_key(self, content: messages.RecordDict, node: NodeReport) -> SignedKey:
        """A node's key. One that is not signed would have all others refuse the round."""
        key = replace(readable(secure_messages.read_key, content), site=node.name)
        check_signed(self._session, key)
        return key

    def _next(self, round_: int, among: Sequence[str]) -> SecureRequest:
        self._uses += 1
        census, settings = self._strategy.census, self._strategy.settings
        there = (n for n, held in self._keys.items() if self._presence.can_answer(held.node))
        names = sorted(name for name in there if not among or name in among)
        use = Use(
            self._session,
            self._uses,
            round_,
            tuple(names),
            threshold_of(settings.secure_threshold, len(census.nodes)),
            settings.secure_against == "lying",
        )
        scale = scale_of(settings, census)
        return SecureRequest(use, [self._keys[name].key for name in names], scale)

    def _shares(
        self, request: SecureRequest, came: Mapping[str, Masked], lost: Sequence[str]
    ) -> tuple[dict[str, opening.Shares], Exchange]:
        """What the nodes that are in the sum give to open it."""
        requests = [
            Message(
                secure_messages.reveal_request(request, lost, opening.envelopes_for(name, came)),
                self._keys[name].node,
                secure_messages.REVEAL,
            )
            for name in came
        ]
        replies, sent = self._send(requests)

        def read(content: messages.RecordDict, node: NodeReport) -> opening.Shares:
            shares = readable(secure_messages.read_shares, content)
            opening.check_shares(request.use, node.name, shares, lost)
            return shares

        answers = usable_replies(self._strategy.census, replies).read(read)
        for drop in answers.exchange.dropped:
            if drop["node"] in came:
                report.say(f"no shares of {drop['node']}: {drop['reason']}")
        given = {node.name: shares for node, shares in answers.usable if node.name in came}
        return given, Exchange(sent.bytes_down, answers.exchange.bytes_up)

    def _name(self, node: int) -> str:
        return self._strategy.census.nodes[node].name


def _masked_reader(
    request: SecureRequest, length: int
) -> Callable[[messages.RecordDict, NodeReport], Masked]:
    def read(content: messages.RecordDict, node: NodeReport) -> Masked:
        masked = readable(secure_messages.read_masked, content)
        request.use.place(node.name)
        opening.check_masked(request.use, node.name, masked, length)
        return masked

    return read
