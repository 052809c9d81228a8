"""The ranks behind a stage's test, user by user: made from its best checkpoint, checked, kept.

Letters: N users of one group and protocol.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client_app.data.content import open_content
from client_app.data.dataset import Dataset
from client_app.evaluation.evaluate import Ranked, rank_users
from client_app.memory.cache import Recall, memory_settings
from feddmmr.runs.read import Run, complete_stage
from feddmmr.runs.verify import best_model
from server_app.record.schema import StageRecord
from shared_model.errors import DataError
from shared_model.protocol.metrics import Ranks, Report, rank_sums

SAME = 1e-9  # the most that figures of the same ranks differ by, since sums have an order
ALIKE = 0.005  # and of another processor's ranks, whose scores have other last bits
_COLUMNS = ("users", "history", "ranks", "candidates")


@dataclass(frozen=True)
class Standing:
    """Where users stand in one group by one protocol, by key. Who is not ranked is not there."""

    users: npt.NDArray[np.uint64]  # [N] hashes of their ids, ascending
    history: npt.NDArray[np.int32]  # [N] items in the input
    ranks: npt.NDArray[np.int32]  # [N] from 0
    candidates: npt.NDArray[np.int32]  # [N] without the target

    def found(self) -> Ranks:
        """As figures are made of it."""
        return Ranks(self.ranks.astype(np.int64), self.candidates.astype(np.int64))


Table = dict[tuple[str, str], Standing]  # by group and protocol


def stage_ranks(run: Run, dataset: Dataset, stage: int = 0, device: str = "cpu") -> Table:
    """The test ranks of a stage's best checkpoint on the run's data; 0 is the newest stage.

    ``ManifestError`` unless the stage is complete and its checkpoint whole; ``DataError`` if the
    figures are not the manifest's.
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
    return gathered(dataset, rank_users(model, dataset, everyone, "test", record["seed"], mixing))


def gathered(dataset: Dataset, ranked: Iterable[Ranked]) -> Table:
    """The batches of an evaluation as one table."""
    parts: dict[tuple[str, str], list[Any]] = {}
    for found in ranked:
        for protocol, ranks in found.ranks.items():
            kept = ranks.candidates > 0
            users, lengths = dataset.user_keys[found.rows], found.lengths.astype(np.int32)
            columns: list[Any] = [users, lengths, ranks.ranks, ranks.candidates]
            cell = parts.setdefault((found.group, protocol), [])
            cell.append([column[kept] for column in columns])
    return {name: _standing(cell) for name, cell in sorted(parts.items())}


def _standing(parts: list[list[Any]]) -> Standing:
    users, history, ranks, candidates = (np.concatenate(c) for c in zip(*parts, strict=True))
    order = np.argsort(users, kind="stable")
    return Standing(
        users[order],
        history[order],
        ranks[order].astype(np.int32),
        candidates[order].astype(np.int32),
    )


def figures_of(table: Table) -> Report:
    """HR, NDCG and MRR: group -> protocol -> figures, as in a manifest."""
    report: Report = {}
    for (group, protocol), standing in table.items():
        sums = rank_sums(standing.found())
        users = sums.pop("users")
        means = {name: value / users for name, value in sums.items()} if users else {}
        if means:
            report.setdefault(group, {})[protocol] = means | {"users": users}
    return report


def disagreement(table: Table, record: StageRecord) -> float:
    """The largest difference between a table's figures and those of the record's test.

    ``DataError`` beyond what another processor explains, and if the users are not as many.
    """
    worst = 0.0
    for group, protocols in figures_of(table).items():
        for protocol, figures in protocols.items():
            told = record["test"].get(group, {}).get(protocol, {"users": 0.0})
            if told["users"] != figures["users"]:
                raise _other(f"{told['users']:g} users", f"{figures['users']:g} in {group}")
            names = told.keys() & figures.keys() - {"candidates"}
            worst = max(worst, *(abs(told[name] - figures[name]) for name in names))
    if worst > ALIKE:
        raise _other(f"figures within {ALIKE}", f"{worst:.4f} apart")
    return worst


def packed(table: Table) -> bytes:
    """A table as numpy's .npz, to be kept."""
    arrays = {
        f"{group}/{protocol}/{column}": getattr(standing, column)
        for (group, protocol), standing in table.items()
        for column in _COLUMNS
    }
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpacked(path: Path) -> Table:
    """A table that was kept."""
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted({tuple(name.split("/")[:2]) for name in arrays.files})
        return {
            (group, protocol): Standing(*(arrays[f"{group}/{protocol}/{c}"] for c in _COLUMNS))
            for group, protocol in names
        }


def _other(expected: str, got: str) -> DataError:
    return DataError(
        "the ranks are not those of the run's test",
        expected=expected,
        got=got,
        todo="export with the version of the app that trained the run (`feddmmr runs show`), and "
        "see whether nodes are missing from its test (test_dropped in the manifest)",
    )
