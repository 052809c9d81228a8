"""What stock FedAvg makes of a round with a bad node: computed, then put in words."""

import logging
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

Weights = dict[int, float]  # honest weight by node id
Arrays = dict[str, np.ndarray]


def honest_weights(replies: list[Message]) -> Weights:
    """The weight that each node of an undisturbed round sent."""
    return {
        reply.metadata.src_node_id: float(str(reply.content.metric_records["sums"]["weight"]))
        for reply in replies
    }


def aggregate(stock: list[Message]) -> Arrays:
    """``flwr.serverapp.strategy.FedAvg`` over stock replies; raises what it raises."""
    strategy = FedAvg(weighted_by_key="weight")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with np.errstate(all="ignore"):
        arrays, _ = strategy.aggregate_train(1, stock)
    return {name: array.numpy() for name, array in (arrays or ArrayRecord()).items()}


def as_stock(replies: list[Message], weights: Weights) -> list[Message]:
    """The replies as FedAvg takes them: it weights means itself, so sums are divided by the node's
    honest weight, and there is one MetricRecord; the weight in it is the one that was sent."""
    return [_as_stock(reply, weights) for reply in replies]


def _as_stock(reply: Message, weights: Weights) -> Message:
    if reply.has_error():
        return reply
    weight = weights[reply.metadata.src_node_id]
    means = {
        name: Array((array.numpy() / weight).astype(array.numpy().dtype))
        for name, array in reply.content.array_records["arrays"].items()
    }
    sums = {"weight": reply.content.metric_records["sums"]["weight"]}
    content = RecordDict({"arrays": ArrayRecord(means), "sums": MetricRecord(sums)})
    return Message(content, reply.metadata.src_node_id, "train")


def outcome(replies: list[Message], honest: list[Message]) -> dict[str, Any]:
    """``text``, and how far ``off`` the model's move is by its honest length (None: no number)."""
    weights = honest_weights(honest)
    reference, stock = aggregate(as_stock(honest, weights)), as_stock(replies, weights)
    try:
        found = aggregate(stock)
    except Exception as error:  # noqa: BLE001 (whatever FedAvg raises is the result)
        return {"text": _line(f"raises {type(error).__name__}: {error}"), "off": None}
    if other := [n for n in reference if n not in found or found[n].shape != reference[n].shape]:
        return {"text": f"another model: {', '.join(other)}", "off": None}
    broken = sum(int((~np.isfinite(array)).sum()) for array in found.values())
    if broken:
        size = sum(array.size for array in found.values())
        return {"text": f"{broken} of {size} parameters are not finite", "off": None}
    off = _norm({n: found[n] - reference[n] for n in reference}) / _norm(reference)
    changed = {str(found[n].dtype) for n in reference} - {str(reference[n].dtype) for n in found}
    text = f"moves {off:.2g} of a step off" if off < 1 else f"moves {off:.2g} steps off"
    return {"text": text + (f", as {', '.join(changed)}" if changed else ""), "off": off}


def _norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays.values())))


def _line(text: str, most: int = 90) -> str:
    short = " ".join(text.split())
    return short if len(short) <= most else short[: most - 3] + "..."
