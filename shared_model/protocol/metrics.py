"""Ranking metrics as sums that merge: HR and NDCG at 5, 10, 20, and MRR."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

CUTOFFS = (5, 10, 20)
PROTOCOLS = ("uniform-100", "full", "full-unseen")
_KEY = re.compile(f"[a-z][a-z0-9-]{{0,40}}/({'|'.join(PROTOCOLS)})/[a-z0-9@]+")

SAMPLED = 100  # candidates of "uniform-100", where that many exist

Report = dict[str, dict[str, dict[str, float]]]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranks:
    """Where users' targets stand, and among how many others."""

    ranks: Ints  # [B], candidates not below the target, from 0
    candidates: Ints  # [B], without the target

    def of(self, members: npt.NDArray[np.bool_]) -> "Ranks":
        """Those of some users, [B] bool."""
        return Ranks(self.ranks[members], self.candidates[members])


def rank_sums(found: Ranks) -> dict[str, float]:
    """Sums over users of every metric, and of the candidates.

    One relevant item a user, so NDCG@k is 1 / log2(rank + 2) within the cutoff.
    """
    ranks = found.ranks
    gain = 1.0 / np.log2(ranks + 2.0)
    sums = {f"hr@{k}": float(np.sum(ranks < k)) for k in CUTOFFS}
    sums |= {f"ndcg@{k}": float(np.sum(gain[ranks < k])) for k in CUTOFFS}
    sums |= {"mrr": float(np.sum(1.0 / (ranks + 1.0))), "users": float(len(ranks))}
    return sums | {"candidates": float(np.sum(found.candidates))}


@dataclass
class MetricSums:
    """Sums of metrics by ``group/protocol/metric``; nodes add users, the server adds nodes."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, group: str, protocol: str, found: Ranks) -> None:
        """Add users; a group without users leaves no trace.

        Who has nothing to rank among would always be first: left out, as ``users`` tells.
        """
        ranked = found.of(found.candidates > 0)
        if len(ranked.ranks):
            for name, value in rank_sums(ranked).items():
                key = f"{group}/{protocol}/{name}"
                self.sums[key] = self.sums.get(key, 0.0) + value

    def report(self) -> Report:
        """Means by group, protocol and metric, with the number of users behind each.

        ``candidates`` is a mean, too: among how many others a target was ranked.
        """
        table: Report = {}
        for key, value in self.sums.items():
            group, protocol, name = key.split("/")
            users = self.sums[f"{group}/{protocol}/users"]
            cell = table.setdefault(group, {}).setdefault(protocol, {})
            cell[name] = value if name == "users" else value / users
        return table


def faulty_sums(sums: Mapping[str, float]) -> list[str]:
    """The keys that no set of users can have: not finite, negative, above the users, or absent.

    Whoever is ranked in a group is ranked among all its candidates ("full"), users and candidates
    are whole, and each user has candidates.
    """
    cells = {key.rpartition("/")[0] for key in sums}
    cells |= {f"{cell.partition('/')[0]}/full" for cell in cells}
    nobody = np.zeros(0, np.int64)
    expected = {f"{cell}/{name}" for cell in cells for name in rank_sums(Ranks(nobody, nobody))}
    faults = sorted(expected ^ set(sums))
    for key, value in sums.items():
        users = sums.get(key.rpartition("/")[0] + "/users", 0.0)
        if key.endswith("/candidates"):
            most = users * SAMPLED if "/uniform-100/" in key else math.inf
            holds = users <= value <= most and value % 1 == 0
        else:
            holds = 0 <= value <= users
        if not (_KEY.fullmatch(key) and holds and users % 1 == 0 < users):
            faults.append(f"{key}={value}")
    return faults


def merge(parts: Iterable[Mapping[str, float]]) -> MetricSums:
    """The sums of several nodes, added in the order given."""
    total: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return MetricSums(dict(sorted(total.items())))
