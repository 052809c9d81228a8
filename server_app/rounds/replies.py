"""What the nodes answered: read and checked one by one; who cannot be used is left out by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict

from server_app.nodes.census import Census
from server_app.record.schema import Clip, Drop
from server_app.rounds.result import Exchange
from shared_model.errors import FedDMMRError, NodeError, RoundError
from shared_model.protocol import messages
from shared_model.protocol.messages import NodeReport

_REASON = 400  # characters that a node can put into the manifest each round
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Answers(Generic[_Given]):
    """The usable answers in partition order, and who is not among them."""

    usable: list[tuple[NodeReport, _Given]]
    exchange: Exchange
    clipped: list[Clip] = field(default_factory=list)  # by ``Guard``

    def after(self, earlier: Exchange) -> "Answers[_Given]":
        """The same answers, with what was exchanged before them."""
        return replace(self, exchange=earlier + self.exchange)

    def read(self, reader: Callable[[_Given, NodeReport], _Result]) -> "Answers[_Result]":
        """What ``reader`` makes of each answer; whose answer it refuses is left out."""
        usable: list[tuple[NodeReport, _Result]] = []
        dropped: list[Drop] = []
        for node, given in self.usable:
            try:
                usable.append((node, reader(given, node)))
            except FedDMMRError as error:
                dropped.append(drop(node, str(error)))
        return Answers(usable, self.exchange + Exchange(dropped=dropped))


def usable_replies(census: Census, replies: Iterable[Message]) -> Answers[RecordDict]:
    """The contents of the nodes that answered and did not refuse.

    ``WorkerError`` if one of the replies says that a worker process died.
    """
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    usable: list[tuple[NodeReport, RecordDict]] = []
    dropped: list[Drop] = []
    bytes_up = 0
    for node_id, node in census.nodes.items():
        if node_id not in by_node:
            dropped.append(drop(node, "no reply before the deadline, or the node left"))
            continue
        try:
            content = readable(messages.check_reply, by_node[node_id])
        except NodeError as error:
            dropped.append(drop(node, str(error)))
            continue
        bytes_up += messages.content_bytes(content)
        if messages.needs_frozen(content):
            dropped.append(drop(node, "asks for the frozen groups that were just sent to it"))
            continue
        usable.append((node, content))
    return Answers(usable, Exchange(bytes_up=bytes_up, dropped=dropped))


def require_share(answers: Answers[Any], least: float, nodes: int) -> None:
    """``RoundError`` if fewer than this share of the nodes, or none, answered usably."""
    answered = len(answers.usable)
    if answered / nodes < least or not answered:
        first = answers.exchange.dropped[0]
        raise RoundError(
            "too few nodes answered",
            where=f"{first['node']}: {first['reason']}",
            expected=f"{least:.0%} of the nodes",
            got=f"{answered} of {nodes}",
            todo="mend the node and submit the same run again: it resumes",
        )


def readable(read: Callable[[_Given], _Result], given: _Given) -> _Result:
    """What ``read`` makes of a node's answer; ``NodeError`` whatever is wrong with its bytes."""
    try:
        return read(given)
    except FedDMMRError:
        raise
    except Exception as error:  # a damaged answer raises whatever numpy or a dict trips over
        raise NodeError("unreadable reply", got=repr(error)) from error


def check_counts(sums: dict[str, float], node: NodeReport) -> None:
    """``NodeError`` if a group has more users than the node hosts: they would outvote others. Or
    more candidates than the catalogue has."""
    for name, most in (("users", node.users), ("candidates", node.users * node.items)):
        given = max((value for key, value in sums.items() if key.endswith(f"/{name}")), default=0.0)
        if given > most:
            raise NodeError(
                f"more {name} than there are", expected=f"at most {most}", got=f"{given:g}"
            )


def drop(node: NodeReport, reason: str) -> Drop:
    short = reason if len(reason) <= _REASON else reason[: _REASON - 3] + "..."
    return {"node": node.name, "reason": short}
