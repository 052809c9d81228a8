"""The memory's novelty threshold, agreed upon by all nodes."""

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from server_app.nodes.census import Census
from server_app.nodes.waiting import replies_to
from shared_model.errors import NodeError
from shared_model.memory.memory import threshold_of
from shared_model.protocol import messages
from shared_model.protocol.config import Settings


def novelty_threshold(grid: Grid, census: Census, settings: Settings) -> float:
    """``memory-novelty``, or the median of what the users' memories meet if that is left open.

    The nodes' histograms add up to the same one however users are spread over them. ``NodeError``
    if a node does not answer: another sample would be another threshold.
    """
    if settings.memory_novelty >= 0:
        return settings.memory_novelty
    request = messages.novelty_request(census.dataset()["users"])
    requests = [Message(request, node, messages.NOVELTY) for node in census.nodes]
    replies = {
        reply.metadata.src_node_id: reply
        for reply in replies_to(grid, requests, settings.round_timeout)
    }
    absent = [report.name for node, report in census.nodes.items() if node not in replies]
    if absent:
        raise NodeError(
            "no answer about the novelty that memories meet",
            where=", ".join(absent),
            todo="restart the node and submit the run again, or set memory-novelty",
        )
    counts = [messages.read_novelty(messages.check_reply(reply)) for reply in replies.values()]
    return threshold_of(np.sum(counts, axis=0))
