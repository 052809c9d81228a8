"""A run's ranks, user by user, as a table: for anyone's own figures, and for paired comparisons.

The best checkpoint of a complete stage is scored anew on the run's data, as nodes score it. Letter:
N rows of the table, one for each user, group and protocol.
"""

from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from client_app.data.content import open_content
from client_app.data.dataset import Dataset
from client_app.evaluation.evaluate import rank_users
from client_app.memory.cache import Recall, memory_settings
from feddmmr.runs.read import Run, complete_stage
from feddmmr.runs.verify import best_model
from server_app.record.schema import StageRecord
from shared_model.errors import DataError
from shared_model.protocol.metrics import Ranks, Report, rank_sums

# user: the 64-bit hash of its id as 16 hex digits. history: items in the input. rank: from 1.
COLUMNS = ("user", "split", "group", "protocol", "history", "rank", "candidates")
SAME = 1e-9  # the most that figures of the same ranks differ by, since sums have an order
ALIKE = 0.005  # and of another processor's ranks, whose scores have other last bits


def ranks_of(run: Run, dataset: Dataset, stage: int = 0, device: str = "cpu") -> pd.DataFrame:
    """The test ranks of a stage's best checkpoint, as ``COLUMNS`` [N]; 0 is the newest stage.

    ``ManifestError`` unless the stage is complete and its checkpoint whole. Who has nothing to rank
    among in a protocol has no row there, as in the figures of a run.
    """
    number, record = complete_stage(run, stage)
    model = best_model(run, number).to(device)
    mixing = None
    if model.mixture is not None:
        config, novelty = record["config"], record["memory_novelty"]
        assert novelty is not None  # noqa: S101 (for the type checker: a stage that mixes has one)
        sizes = (config["memory_short_term"], config["memory_long_term"])
        settings = memory_settings(dataset, *sizes, novelty, config["memory_surprise"])
        mixing = settings, Recall(dataset, open_content(dataset, config["modalities"], device))
    everyone = np.arange(dataset.num_users, dtype=np.int64)
    ranked = rank_users(model, dataset, everyone, "test", record["seed"], mixing)
    parts = [
        rank_table(dataset, found.rows, found.group, found.lengths, found.ranks) for found in ranked
    ]
    return in_order(pd.concat(parts))


def rank_table(
    dataset: Dataset, rows: Any, group: str, lengths: Any, ranks: dict[str, Ranks]
) -> pd.DataFrame:
    """Users ``rows`` [B] with inputs of these ``lengths`` [B] in one group, as ``COLUMNS``."""
    tables = []
    for protocol, found in ranks.items():
        columns = {
            "user": dataset.user_keys[rows],
            "split": "test",
            "group": group,
            "protocol": protocol,
            "history": np.asarray(lengths, np.int32),
            "rank": (found.ranks + 1).astype(np.int32),
            "candidates": found.candidates.astype(np.int32),
        }
        tables.append(pd.DataFrame(columns)[found.candidates > 0])
    return pd.concat(tables)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by group, protocol and user, whose hash becomes a text: no tool rounds it."""
    ordered = table.sort_values(["group", "protocol", "user"], ignore_index=True)
    ordered["user"] = [f"{key:016x}" for key in ordered["user"].tolist()]
    return ordered[list(COLUMNS)]


def figures_of(table: pd.DataFrame) -> Report:
    """HR, NDCG and MRR of a table of ranks: group -> protocol -> figures, as in a manifest."""
    report: Report = {}
    for (group, protocol), part in table.groupby(["group", "protocol"]):
        ranks = Ranks(part["rank"].to_numpy(np.int64) - 1, part["candidates"].to_numpy(np.int64))
        sums = rank_sums(ranks)
        means = {name: value / len(part) for name, value in sums.items() if name != "users"}
        report.setdefault(str(group), {})[str(protocol)] = means | {"users": sums["users"]}
    return report


def disagreement(table: pd.DataFrame, record: StageRecord) -> float:
    """The largest difference between a table's figures and the record's test.

    ``DataError`` beyond what another processor explains, and if users or groups are not the same.
    """
    found, told = figures_of(table), record["test"]
    worst = 0.0
    for group, protocols in found.items():
        for protocol, figures in protocols.items():
            known = told.get(group, {}).get(protocol, {"users": 0.0})
            if known["users"] != figures["users"]:
                raise _other(f"{known['users']:g} users", f"{figures['users']:g} in {group}")
            worst = max(
                worst,
                *(
                    abs(known[name] - value)
                    for name, value in figures.items()
                    if name in known and name != "candidates"
                ),
            )
    if worst > ALIKE:
        raise _other(f"figures within {ALIKE}", f"{worst:.4f} apart")
    return worst


def parquet(table: pd.DataFrame) -> bytes:
    """A table as a parquet file."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _other(expected: str, got: str) -> DataError:
    return DataError(
        "the ranks are not those of the run's test",
        expected=expected,
        got=got,
        todo="export with the version of the app that trained the run (`feddmmr runs show`), and "
        "see whether nodes are missing from its test (test_dropped in the manifest)",
    )
