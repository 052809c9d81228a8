"""The novelty that a node's users meet: its part of the memory's threshold.

The threshold is a property of all users and of no topology: who is asked is a pure function of the
user, and what they tell is a histogram, which adds up over the nodes.
"""

from client_app.data.dataset import Dataset, Ints, Rows, split_view
from shared_model.memory.memory import FeatureTable, MemorySettings, novelty_counts
from shared_model.seeds import stable_hash, uniform

SAMPLED_USERS = 2000  # about as many tell the novelty: enough for a median, however many there are


def sample_share(total_users: int) -> float:
    """The share of users that tell the novelty, of as many as all nodes together have."""
    return min(1.0, SAMPLED_USERS / total_users)


def sampled_rows(dataset: Dataset, rows: Rows, share: float) -> Rows:
    """Those of `rows` that tell the novelty, chosen by hash of the user's key: int64 [<= B]."""
    chosen: Rows = rows[uniform(stable_hash("novelty"), dataset.user_keys[rows]) < share]
    return chosen


def count_novelty(
    dataset: Dataset,
    combined: FeatureTable,
    rows: Rows,
    share: float,
    settings: MemorySettings,
) -> Ints:
    """Novelty of the train histories of the sampled ones of `rows`: counts [NOVELTY_BINS].

    `combined` [I + 1, F] are the features, rows of norm 1 or 0. Of `settings` novelty, surprise and
    short_term have no say. Give the counts of all nodes, summed, to `threshold_of`.
    """
    chosen = sampled_rows(dataset, rows, share)
    histories = (split_view(dataset, int(row), "train")[0] for row in chosen)
    return novelty_counts(combined, histories, settings)
