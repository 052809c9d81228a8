"""A secure sum as the round's update: read, and held against what clipping leaves.

Of masked parts nothing can be checked, so the sum is. One site that sends nonsense makes nonsense
of it, and nobody can tell which one it was.
"""

from collections.abc import Sequence

from server_app.aggregation.aggregate import IMPOSSIBLE, noise_norm
from server_app.aggregation.chernoff import participation_nats
from server_app.aggregation.robust import update_norm
from shared_model.errors import FedDMMRError, NodeError, RoundError
from shared_model.model.recommender import Arrays
from shared_model.protocol.config import Settings
from shared_model.protocol.masked_update import ROUNDING, length_of, unpacked
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import LocalUpdate
from shared_model.secure.masks import Words


def read_sum(
    words: Words,
    arrays: Arrays,
    nodes: Sequence[NodeReport],
    scale: float,
    settings: Settings,
    noise_std: float = 0.0,
) -> LocalUpdate:
    """The sum of these nodes' updates to ``arrays``, with noise of that much in every number.

    ``RoundError`` with all of their names if it is none that their users can make, each clipped.
    """
    try:
        total = unpacked(words, arrays, scale)
        numbers = length_of(arrays)
        added = _rounding(numbers, len(nodes), scale) + noise_norm(noise_std, numbers)
        _check(total, nodes, settings, added)
    except FedDMMRError as error:
        raise RoundError(
            "the secure sum is nonsense, so one of its sites sent it",
            where=f"one of {', '.join(node.name for node in nodes)}"[:400],
            expected=error.expected,
            got=str(error)[:200],
            todo="let the sites' owners look at their nodes; submit the run again without one of "
            "them in turn, it resumes (docs/security.md says what that tells)",
        ) from error
    return total


def _check(
    total: LocalUpdate, nodes: Sequence[NodeReport], settings: Settings, added: float
) -> None:
    users, people = sum(node.users for node in nodes), total.participants
    if people > users or participation_nats(people, users, settings.fraction_train) > IMPOSSIBLE:
        expected = f"about {settings.fraction_train * users:.0f} of {users} users"
        raise NodeError("impossibly many participants", expected=expected, got=str(people))
    most = people * settings.dp_clip_norm * (1 + ROUNDING) + added
    if (norm := update_norm(total.arrays)) > most:
        raise NodeError("norm beyond clipping", expected=f"{most:.6g}", got=f"{norm:.6g}")


def _rounding(numbers: int, sites: int, scale: float) -> float:
    """The norm of what rounding to integers adds at most: half a unit a number and site."""
    return float(numbers**0.5 * sites / scale / 2)
