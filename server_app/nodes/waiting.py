"""Waiting for the nodes' replies, and looking for them often enough."""

import time
from collections.abc import Sequence
from functools import partial

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid
from flwr.superlink.grid.http_grid import HttpGrid

from shared_model.errors import NodeError
from shared_model.protocol.messages import error_content
from shared_model.transport.folding import fold, unfold
from shared_model.transport.packing import pack

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between two looks
_LATE = 0.15  # of the time that replies took, until they are seen

# A reply is there before its parts are. Flower asks for a part again after 1, 2, 4 s, up to 10.
http_grid.pull_objects = partial(  # type: ignore[attr-defined]
    pull_objects, initial_backoff=0.05, backoff_cap=0.25, max_tries_per_object=None
)


def replies_to(grid: Grid, requests: Sequence[Message], timeout: float) -> list[Message]:
    """Send requests; the replies once all are there, or those of ``timeout`` seconds.

    In a deployment Flower's own ``send_and_receive`` looks every 3 s, however short a round is, and
    each array and record costs the SuperLink requests of its own: there they travel as one.
    """
    if not isinstance(grid, HttpGrid):
        return list(grid.send_and_receive(requests, timeout=timeout))
    start = time.monotonic()
    deadline = start + timeout
    known: dict[int, ArrayRecord] = {}
    missing = set(grid.push_messages([_packed(request, known) for request in requests]))
    replies: list[Message] = []
    while missing and time.monotonic() < deadline:
        came = list(grid.pull_messages(missing))
        replies += [_opened(reply) for reply in came]
        missing -= {reply.metadata.reply_to_message_id for reply in came}
        if missing:
            late = _LATE * (time.monotonic() - start)
            time.sleep(min(max(late, _FIRST_PAUSE), _LONGEST_PAUSE))
    return replies


def _packed(request: Message, known: dict[int, ArrayRecord]) -> Message:
    """The same request with its arrays packed and its records folded."""
    told = request.metadata
    content = fold(pack(request.content, known))
    return Message(
        content, told.dst_node_id, told.message_type, ttl=told.ttl, group_id=told.group_id
    )


def _opened(reply: Message) -> Message:
    """The reply with its records; with the error of those that cannot be read."""
    if reply.has_content():
        try:
            reply.content = unfold(reply.content)
        except NodeError as error:
            reply.content = error_content(str(error))
    return reply
