"""Who is there: nodes that leave, come back, or ask to join while a run goes on.

A SuperNode that restarts has a new random id (unless it authenticates), so a node is known by what
it reports. The grid is asked who is online, which costs no message; only an id that was not there
before is asked what it hosts, and its answer is not waited for where nobody needs it.
"""

import time

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server_app.nodes.census import Census, different_fields
from server_app.record import report
from shared_model.errors import NodeError, RoundError
from shared_model.protocol import messages
from shared_model.protocol.config import Settings
from shared_model.protocol.messages import NodeReport

_POLL_SECONDS = 0.2
# How long a round waits for the answer of a newcomer while a place is free: a report takes 6 to 8 s
# in a deployment, where a round without the node loses all that its users would have taught.
_GRACE_SECONDS = 20.0
_NAME_LENGTH = 100  # of a stranger's name in the log


class Presence:
    """The nodes of a census that can be asked now. ``look`` brings it up to date.

    ``silent`` are those that let the last deadline pass: still online for Flower, but not worth
    waiting for a second time in the same round.
    """

    def __init__(self, grid: Grid, census: Census, settings: Settings) -> None:
        self.silent: set[int] = set()
        self._grid = grid
        self._census = census
        self._settings = settings
        self._present = set(census.nodes)
        self._asked: dict[str, int] = {}  # message id -> newcomer that has not answered yet
        self._candidates: dict[int, NodeReport] = {}  # fit a place that may still be taken
        self._refused: set[int] = set()
        self._events: dict[str, list[object]] = {}

    def can_answer(self, node: int) -> bool:
        """Whether it makes sense to send this node a message."""
        return node in self._present and node not in self.silent

    def away(self) -> set[str]:
        """Names of the nodes that cannot answer."""
        return {r.name for node, r in self._census.nodes.items() if not self.can_answer(node)}

    def take_events(self) -> dict[str, list[object]]:
        """Who "left", "joined" and was "refused" since the last call; no key where nobody did."""
        events, self._events = self._events, {}
        return events

    def look(self) -> None:
        """Note who left and who is back; wait ``node-timeout`` seconds if too few are there.

        ``RoundError`` if they are still too few then. A stranger can neither stop nor hold up the
        run: it is refused by name, and has ``_GRACE_SECONDS`` where a place is free.
        """
        start, before = time.monotonic(), set(self._asked)
        self._refresh()
        if self._too_few():
            report.say(f"waiting for {', '.join(sorted(self.away()))}")
        while self._too_few() or self._may_fill_a_place(before, start):
            if time.monotonic() - start > self._settings.node_timeout:
                raise self._nobody_came_back()
            time.sleep(_POLL_SECONDS)
            self._refresh()

    def _refresh(self) -> None:
        online = set(self._grid.get_node_ids())
        for node in [node for node in self._census.nodes if node in self._present - online]:
            self._leave(node)
        self._asked = {id_: node for id_, node in self._asked.items() if node in online}
        self._candidates = {n: r for n, r in self._candidates.items() if n in online}
        self._refused &= online
        known = self._present | self._candidates.keys() | self._refused | set(self._asked.values())
        self._ask(sorted(online - known))
        self._read_answers()
        for node, candidate in list(self._candidates.items()):
            self._admit(node, candidate)

    def _ask(self, newcomers: list[int]) -> None:
        if not newcomers:
            return
        requests = [Message(RecordDict(), node, messages.PREPARE) for node in newcomers]
        sent = zip(self._grid.push_messages(requests), newcomers, strict=True)
        self._asked |= {id_: node for id_, node in sent if id_}  # no id: it has left already

    def _read_answers(self) -> None:
        if not self._asked:
            return
        for reply in self._grid.pull_messages(list(self._asked)):
            node = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if node is None:  # not an answer to anything that was asked
                continue
            try:
                newcomer = messages.read_report(messages.check_reply(reply))
            except NodeError as error:
                self._refuse(node, f"node {node}", str(error))
                continue
            self._judge(node, newcomer)

    def _judge(self, node: int, newcomer: NodeReport) -> None:
        """A newcomer may take the place of the node that it was, with the same data, and no other:
        the run's manifest speaks of that data."""
        place = self._place_of(newcomer)
        name = " ".join(str(newcomer.name).split())[:_NAME_LENGTH]
        if place is None:
            self._refuse(node, name, "no node of this run has its name")
        elif different := different_fields(self._census.nodes[place], newcomer):
            self._refuse(node, name, f"not the node of this name: other {', '.join(different)}")
        else:
            self._candidates[node] = newcomer

    def _admit(self, node: int, candidate: NodeReport) -> None:
        """Give a candidate its place, or let it stand by while the place is taken."""
        place = self._place_of(candidate)
        if place is None or (self.can_answer(place) and place != node):
            self._refuse(node, candidate.name, "the node of this name is online; standing by")
            return
        if place in self._present:  # silent: Flower has not noticed yet that it is gone
            self._leave(place)
        self._census.replace(place, node)
        self._present.add(node)
        self._candidates.pop(node)
        self._refused.discard(node)
        self._note("joined", candidate.name, f"node {candidate.name} is back")

    def _leave(self, node: int) -> None:
        name = self._census.nodes[node].name
        self._present.discard(node)
        self.silent.discard(node)
        self._note("left", name, f"node {name} left")

    def _refuse(self, node: int, name: str, reason: str) -> None:
        if node not in self._refused:
            self._refused.add(node)
            what = {"node": name, "reason": reason}
            self._note("refused", what, f"newcomer {name} is refused: {reason}")

    def _note(self, kind: str, what: object, line: str) -> None:
        self._events.setdefault(kind, []).append(what)
        report.say(line)

    def _place_of(self, newcomer: NodeReport) -> int | None:
        known = self._census.nodes.items()
        return next((node for node, report in known if report.name == newcomer.name), None)

    def _may_fill_a_place(self, asked_before: set[str], start: float) -> bool:
        """Whether a newcomer of this look has yet to answer while a node is away."""
        awaited = self._asked.keys() - asked_before
        return bool(awaited and self.away()) and time.monotonic() - start < _GRACE_SECONDS

    def _too_few(self) -> bool:
        share = len(self._present) / len(self._census.nodes)
        return not self._present or share < self._settings.least_trained

    def _nobody_came_back(self) -> RoundError:
        nodes = len(self._census.nodes)
        return RoundError(
            "too few nodes are online",
            where=f"after {self._settings.node_timeout:g} s (run-config key 'node-timeout')",
            expected=f"{self._settings.least_trained:.0%} of the nodes",
            got=f"{len(self._present)} of {nodes}, without {', '.join(sorted(self.away()))}",
            todo=f"start the missing SuperNodes, then {report.resume_command(self._settings)}",
        )
