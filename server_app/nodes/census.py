"""Who takes part: waiting for nodes, and checking that they belong together."""

import hashlib
import json
import time
from dataclasses import dataclass, fields
from typing import cast

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from server_app.nodes.waiting import replies_to
from server_app.record.schema import DatasetRecord, FeaturesRecord
from shared_model.errors import NodeError
from shared_model.fingerprint import app_sha256
from shared_model.protocol import messages
from shared_model.protocol.config import Settings
from shared_model.protocol.lengths import cuts_of, read_lengths
from shared_model.protocol.messages import NodeReport

_POLL_SECONDS = 0.2


@dataclass
class Census:
    """The nodes of a run by Flower's (random) node id, in partition order.

    One census serves all stages: a node that comes back under another id takes its old place.
    """

    nodes: dict[int, NodeReport]

    @property
    def num_items(self) -> int:
        """Catalogue size, the same on every node."""
        return self._any.items

    @property
    def warm_items(self) -> int:
        """Items that can be trained on."""
        return self._any.items - self._any.cold_items

    @property
    def catalogue_sha256(self) -> str:
        """Hash of the catalogue, the same on every node."""
        return self._any.catalogue_sha256

    def dataset(self) -> DatasetRecord:
        """The manifest's ``dataset``: counts, and a fingerprint that no topology changes."""
        histories = sum(int(node.history_digest, 16) for node in self.nodes.values()) % 2**256
        both = f"{self.catalogue_sha256}:{histories:064x}"
        return {
            "users": sum(node.users for node in self.nodes.values()),
            "items": self.num_items,
            "interactions": sum(node.interactions for node in self.nodes.values()),
            "cold_items": self._any.cold_items,
            "catalogue_sha256": self.catalogue_sha256,
            "sha256": hashlib.sha256(both.encode()).hexdigest(),
        }

    def features(self) -> FeaturesRecord:
        """The manifest's ``features``: dimensions, coverage, encoders and file hash."""
        described = json.loads(self._any.features)
        return cast(FeaturesRecord, described | {"sha256": self._any.features_sha256})

    def cuts(self) -> list[int]:
        """Where the users are cut into tenths by the length of their histories, over all nodes."""
        told = self.lengths()
        return cuts_of(told) if told else []

    def lengths(self) -> list[dict[int, int]]:
        """How many histories are how long, on each node that tells it."""
        return [read_lengths(node.lengths) for node in self.nodes.values() if node.lengths]

    @property
    def dims(self) -> tuple[int, int]:
        """Dimensions of visual and text features; zeros where the dataset has no features."""
        return self._any.visual, self._any.text

    def replace(self, old: int, new: int) -> None:
        """Give the place of one node id to another."""
        self.nodes = {new if id_ == old else id_: node for id_, node in self.nodes.items()}

    @property
    def _any(self) -> NodeReport:
        return next(iter(self.nodes.values()))


def take_census(grid: Grid, settings: Settings) -> Census:
    """Wait until ``min-nodes`` nodes, and every partition they speak of, are there; check them.

    Nodes are named by partition or site, since their ids are random. ``NodeError`` names the first
    node that cannot open its data, runs other code or holds another catalogue, and says what is
    missing when ``node-timeout`` seconds are over.
    """
    reports: dict[int, NodeReport] = {}
    deadline = time.monotonic() + settings.node_timeout
    while True:
        online = set(grid.get_node_ids())
        reports = {node: report for node, report in reports.items() if node in online}
        reports |= _ask(grid, sorted(online - reports.keys()), settings)
        missing = _missing(reports, settings.min_nodes)
        if not missing:
            break
        if time.monotonic() > deadline:
            raise NodeError(
                "not all nodes came online",
                where=f"after {settings.node_timeout:g} s (run-config key 'node-timeout')",
                expected=missing,
                got=", ".join(report.name for report in reports.values()) or "no node",
                todo="start the missing SuperNodes and submit the run again",
            )
        time.sleep(_POLL_SECONDS)
    ordered = sorted(reports.items(), key=lambda item: (item[1].partition, item[1].name))
    census = Census(dict(ordered))
    _check_agreement(census)
    return census


def _ask(grid: Grid, node_ids: list[int], settings: Settings) -> dict[int, NodeReport]:
    requests = [Message(RecordDict(), node, messages.PREPARE) for node in node_ids]
    if not requests:
        return {}
    reports = {}
    for reply in replies_to(grid, requests, settings.node_timeout):
        if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            continue  # it left while it was asked; its successor has another id
        reports[reply.metadata.src_node_id] = messages.read_report(messages.check_reply(reply))
    return reports


def different_fields(known: NodeReport, newcomer: NodeReport) -> list[str]:
    """In which fields two reports differ."""
    names = [field.name for field in fields(NodeReport)]
    return [name for name in names if getattr(known, name) != getattr(newcomer, name)]


def _missing(reports: dict[int, NodeReport], min_nodes: int) -> str:
    """What is still awaited, or an empty string."""
    if len(reports) < min_nodes:
        return f"{min_nodes} nodes (run-config key 'min-nodes')"
    partitions = {report.partition for report in reports.values()} - {-1}
    of = max((r.num_partitions for r in reports.values() if r.partition >= 0), default=0)
    absent = sorted(set(range(of)) - partitions)
    return f"partitions {absent} of {of}" if absent else ""


def _check_agreement(census: Census) -> None:
    """Every node runs the server's code on the same catalogue and features, under its own name."""
    expected = {
        "app_sha256": app_sha256(),
        "catalogue_sha256": census.catalogue_sha256,
        "features_sha256": next(iter(census.nodes.values())).features_sha256,
    }
    shares = {r.num_partitions for r in census.nodes.values() if r.partition >= 0}
    if len(shares) > 1:
        raise NodeError(
            "nodes disagree on the number of partitions",
            expected="one num-partitions in every --node-config",
            got=", ".join(map(str, sorted(shares))),
        )
    names: set[str | int] = set()
    for report in census.nodes.values():
        for field, value in expected.items():
            if getattr(report, field) != value:
                raise NodeError(
                    f"a node's {field} differs from the others'",
                    where=report.name,
                    expected=value[:12] or "none",
                    got=getattr(report, field)[:12] or "none",
                    todo="give every node the same app, items.csv and features",
                )
        own: set[str | int] = {report.name}
        own |= {report.partition} if report.partition >= 0 else set()
        if names & own:
            raise NodeError(
                "two nodes have the same name or partition",
                where=report.name,
                todo="give each SuperNode a partition-id or name of its own",
            )
        names |= own
