"""Figures of rows over seeds: means, standard errors, and differences of the same users.

Letters: S seeds, U users. Two errors are told of a difference: over users (each user's difference,
averaged over the seeds) and over seeds (each seed's mean difference; needs two).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from feddmmr.runs.ranks import Standing, Table, figures_of
from shared_model.errors import DataError
from shared_model.protocol.metrics import CUTOFFS, PROTOCOLS

Floats = npt.NDArray[np.float64]
Cell = tuple[str, str]  # group and protocol

GROUPS = ("all", "all-with-cold", "cold", "cold-only")
METRICS = ("hr@10", "ndcg@10")  # that differences are told of


@dataclass(frozen=True)
class Rows:
    """Rank tables by row of the result and seed: baselines, stages and control."""

    tables: dict[str, dict[int, Table]] = field(default_factory=dict)

    def add(self, row: str, seed: int, table: Table) -> None:
        """A row's ranks of one seed."""
        self.tables.setdefault(row, {})[seed] = table

    @property
    def names(self) -> list[str]:
        """In the order they were added."""
        return list(self.tables)

    def value(self, row: str, group: str, protocol: str, metric: str) -> float | None:
        """The mean over seeds; ``None`` for a row, or a cell of it, that is not there."""
        values = self._by_seed(row, group, protocol, metric)
        return None if not values else sum(values) / len(values)

    def chance(self, row: str, group: str, protocol: str, metric: str) -> float | None:
        """The HR at its cutoff of a target that is anywhere among its candidates alike."""
        found = [table.get((group, protocol)) for table in self.tables.get(row, {}).values()]
        sizes = [one.candidates for one in found if one is not None and len(one.candidates)]
        if not sizes or not metric.startswith("hr@"):
            return None
        cutoff = int(metric.removeprefix("hr@"))
        return float(np.mean([np.minimum(1.0, cutoff / (1.0 + size)).mean() for size in sizes]))

    def error(self, row: str, group: str, protocol: str, metric: str) -> float | None:
        """The standard error of the mean over seeds; ``None`` with fewer than two."""
        return standard_error(np.array(self._by_seed(row, group, protocol, metric)))

    def difference(
        self, row: str, other: str, group: str, protocol: str, metric: str
    ) -> dict[str, float | None] | None:
        """What a row has more than another, with the same users and seeds; ``None`` without any."""
        pairs = [
            _paired(self.tables[row][seed][group, protocol], theirs[group, protocol], metric)
            for seed, theirs in self.tables.get(other, {}).items()
            if (group, protocol) in self.tables.get(row, {}).get(seed, {})
            and (group, protocol) in theirs
        ]
        if not pairs or not len(pairs[0]):
            return None
        apart = np.stack(pairs)  # [S, U]
        base = self.value(other, group, protocol, metric) or math.nan
        mean = float(apart.mean())
        return {
            "difference": mean,
            "relative": mean / base if base == base else None,
            "error_users": standard_error(apart.mean(0)),
            "error_seeds": standard_error(apart.mean(1)),
        }

    def beyond(
        self, row: str, other: str, group: str, protocol: str, metric: str
    ) -> tuple[float, float] | None:
        """A difference, and the larger of its errors."""
        found = self.difference(row, other, group, protocol, metric)
        if found is None or found["difference"] is None:
            return None
        errors = [found["error_users"], found["error_seeds"]]
        return found["difference"], max((e for e in errors if e is not None), default=0.0)

    def _by_seed(self, row: str, group: str, protocol: str, metric: str) -> list[float]:
        tables = self.tables.get(row, {}).values()
        cells = (table.get((group, protocol)) for table in tables)
        reports = [figures_of({(group, protocol): one}) for one in cells if one is not None]
        return [report[group][protocol][metric] for report in reports if report]


def standard_error(values: Floats) -> float | None:
    """Of the mean of values [N]; ``None`` with fewer than two."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def gains(standing: Standing, metric: str) -> Floats:
    """Each user's part of a metric: their mean is the figure. [U]."""
    name, _, cutoff = metric.partition("@")
    ranks = standing.ranks.astype(np.float64)
    if name == "mrr":
        return 1.0 / (ranks + 1.0)
    inside = ranks < int(cutoff)
    return inside.astype(np.float64) if name == "hr" else inside / np.log2(ranks + 2.0)


def _paired(own: Standing, other: Standing, metric: str) -> Floats:
    """Each user's difference. [U]. ``DataError`` if they are not the same users."""
    if not np.array_equal(own.users, other.users):
        raise DataError(
            "two rows have other users", todo="run the benchmark again with another --work"
        )
    return gains(own, metric) - gains(other, metric)


def cells_of(rows: Rows) -> Iterator[Cell]:
    """Group and protocol of everything that at least one row was tested on."""
    found = {cell for seeds in rows.tables.values() for table in seeds.values() for cell in table}
    for group in GROUPS:
        for protocol in PROTOCOLS:
            if (group, protocol) in found:
                yield group, protocol


def summary(rows: Rows, own: list[str]) -> dict[str, Any]:
    """Means with errors of every row, and what the rows ``own`` have more than each other row."""
    names = [f"{kind}@{k}" for kind in ("hr", "ndcg") for k in CUTOFFS] + ["mrr"]
    means, differences = [], []
    for group, protocol in cells_of(rows):
        cell = {"group": group, "protocol": protocol}
        for row in rows.names:
            if rows.value(row, group, protocol, "mrr") is None:
                continue
            figures = {
                name: {
                    "mean": rows.value(row, group, protocol, name),
                    "error_seeds": rows.error(row, group, protocol, name),
                }
                for name in names
            }
            means.append({"row": row, "seeds": sorted(rows.tables[row]), **cell, **figures})
        for row in own:
            for other in rows.names:
                for metric in METRICS:
                    found = rows.difference(row, other, group, protocol, metric)
                    if other != row and found is not None:
                        differences.append(
                            {"row": row, "against": other, **cell, "metric": metric, **found}
                        )
    return {"rows": means, "differences": differences}
