"""Which updates can be used at all, and what they say together."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from server_app.aggregation.chernoff import participation_nats
from server_app.aggregation.robust import combined, update_norm
from server_app.aggregation.rows import aligned, check_rows
from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays, check_arrays
from shared_model.protocol.config import Settings
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import MIXTURE_LOGS, LocalUpdate
from shared_model.stages import TABLE

_ROUNDING = 1e-3  # of float32 sums over a node's users
_TAIL = 10.0  # stds: the norm of noise is as far beyond sqrt(numbers) once in 10^21
IMPOSSIBLE = 40.0  # nats: an honest node has such a round once in 10^17


@dataclass(frozen=True)
class RoundUpdate:
    """What the usable nodes of a round say together."""

    delta: Arrays  # the nodes' updates as one, float32
    loss: float  # mean over targets, nats
    targets: int
    participants: int
    logs: dict[str, float]  # sums over participants
    rows: Tensor | None = None  # of the item table, rising: those that ``delta`` has; None = all


def check_update(
    update: LocalUpdate,
    arrays: Arrays,
    node: NodeReport,
    settings: Settings,
    in_rows: bool = False,
) -> None:
    """``NodeError`` or ``ModelError`` unless an honest node could have sent this.

    Names, shapes and dtypes are those of ``arrays``, numbers are finite, and the counts fit one
    another, what the node reported of itself and the round's sampling. Norms are compared between
    nodes, so they come later (``robust.times_usual``), but for the one that clipping promises.
    ``in_rows``: it has to say of which rows of the item table it speaks.
    """
    check_rows(update.rows, len(arrays[TABLE]) if in_rows else 0)
    if update.rows is not None:
        arrays = arrays | {TABLE: arrays[TABLE][: len(update.rows)]}
    check_arrays(arrays, update.arrays)
    _check_counts(update, node, settings, mixes="mixture.gate" in arrays)
    if not math.isfinite(update.loss):
        raise NodeError("unusable loss", expected="a finite number", got=str(update.loss))
    logs = "mixture.gate" in arrays and update.participants and not settings.private
    expected = set(MIXTURE_LOGS if logs else ())
    if set(update.logs) != expected or not all(map(math.isfinite, update.logs.values())):
        raise NodeError("unusable logs", expected="a finite number each", got=str(update.logs))
    broken = [name for name, value in update.arrays.items() if not _is_finite(value)]
    if broken:
        raise NodeError("update is not finite", where=", ".join(broken))
    noised = settings.private and settings.dp_noise_on == "nodes"  # whoever took part
    if not (update.weight or noised) and any(value.any() for value in update.arrays.values()):
        raise NodeError("an update without weight", expected="zeros", got="other numbers")
    if settings.dp_clip_norm and not settings.private:  # with noise, ``Noising.check``
        require_norm(update, update.weight * settings.dp_clip_norm)


def _is_finite(value: Tensor) -> bool:
    # By numpy: to wake torch's threads for each of many small arrays takes longer.
    return bool(np.isfinite(value.numpy()).all())


def require_norm(update: LocalUpdate, most: float, noise: float = 0.0) -> None:
    """``NodeError`` if a sum is more than the users that it counts can make it, each clipped."""
    most, norm = most * (1 + _ROUNDING) + noise, update_norm(update.arrays)
    if norm > most:
        raise NodeError("update norm beyond clipping", expected=f"{most:.6g}", got=f"{norm:.6g}")


def noise_norm(std: float, numbers: int) -> float:
    """The norm of so many numbers of noise, or more: it is beyond once in 10^21."""
    return std * (math.sqrt(numbers) + _TAIL)


def _check_counts(update: LocalUpdate, node: NodeReport, settings: Settings, mixes: bool) -> None:
    """Participants, then the targets they can have, then the weight that follows from both."""
    people, most = update.participants, node.interactions
    _require("participants", people, 0, node.users)
    if participation_nats(people, node.users, settings.fraction_train) > IMPOSSIBLE:
        expected = f"about {settings.fraction_train * node.users:.0f} of {node.users} users"
        raise NodeError("implausibly many participants", expected=expected, got=str(people))
    each = settings.targets_per_user if mixes else settings.max_length
    each = 0 if settings.private else each  # not told
    _require("targets", update.targets, 0, min(most, people * each))
    low, high = float(update.targets), float(update.targets)
    if settings.weighting == "uniform":
        low = high = float(people)
    elif mixes:  # a user counts by all its targets, of which some are trained
        high = float(min(most, people * settings.max_length))
    _require("weight", update.weight, low, high)


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # true for NaN, too
        expected = f"{low:g} to {high:g}" if low < high else f"{low:g}"
        raise NodeError(f"unusable {name}", expected=expected, got=str(value))


def reduce_updates(
    updates: Sequence[LocalUpdate],
    arrays: Arrays,
    aggregation: str = "mean",
    trim_share: float = 0.0,
) -> RoundUpdate | None:
    """The nodes' sums, in their order, as the round's; ``None`` if nobody trained."""
    if not any(update.weight for update in updates):
        return None
    logs: dict[str, float] = defaultdict(float)
    for update in updates:
        for name, value in update.logs.items():
            logs[name] += value
    targets = sum(update.targets for update in updates)
    updates, arrays, rows = aligned(updates, arrays)
    return RoundUpdate(
        combined(updates, arrays, aggregation, trim_share),
        sum(update.loss for update in updates) / max(1, targets),
        targets,
        sum(update.participants for update in updates),
        dict(logs),
        rows,
    )
