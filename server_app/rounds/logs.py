"""What a round of Stages 2 and 3 says about the mixture: gate, router, losses and memory."""

from typing import Any

from server_app.aggregation.aggregate import RoundUpdate
from shared_model.model.recommender import Arrays


def mixture_logs(arrays: Arrays, update: RoundUpdate) -> dict[str, Any]:
    """Means over the round's participants, and the gate after it.

    ``write_rate`` is the share of the interactions leaving the short-term memories that were
    written to the long-term ones.
    """
    gate = {"gate": float(arrays["mixture.gate"])}
    if not update.logs:
        return gate  # with differential privacy, nodes tell nothing that is not noised
    users = max(1, update.participants)
    mean = {name: value / users for name, value in update.logs.items()}
    left = update.logs["memory_left"]
    return gate | {
        "router": {name: mean[f"router_{name}"] for name in ("visual", "text", "entropy")},
        "losses": {name: mean[name] for name in ("alignment", "load_balance")},
        "memory": {
            "write_rate": update.logs["memory_written"] / left if left else 0.0,
            "short_term": mean["memory_short"],
            "long_term": mean["memory_long"],
        },
    }
