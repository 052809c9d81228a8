"""How far honest nodes are from being taken for liars, and how soon one that lies is found.

    uv run python -m benchmarks.sites.turning --out turning.json [--dataset /abs/ml-1m]

Trains stages on nodes whose users are alike (``feddmmr data split --by``), in one process, and
tells of each round in which nodes are judged the least share of the usual turn that an honest one
makes (docs/faults.md). With ``--bad``, that node sends its update times -1 from a round on. The
exit code is 1 where an honest node was left out, or the bad one was not.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from flwr.app import Message
from rich.console import Console
from rich.table import Table

from benchmarks.fault_parts.cases import FAULTS
from benchmarks.output import one_line_errors, write_json
from client_app.data.demo import write_demo
from feddmmr.data.grouping import By
from feddmmr.data.importers import split_dataset
from feddmmr.launch.command import by_stage, checked, merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.turning import Turning
from server_app.app import federate
from server_app.record.manifest import Record
from server_app.record.schema import StageRecord
from shared_model.errors import DataError
from shared_model.protocol import messages
from shared_model.protocol.config import Value, key_of, parse_settings
from shared_model.protocol.wire import Wire

Shares = dict[str, float]  # of the usual turn, by node
[_flip] = [fault.change for fault in FAULTS if fault.name == "update x -1" and fault.change]


class TurningGrid(InProcessGrid):
    """Judges turns as the server does, of all rounds, and lets one node lie."""

    def __init__(
        self, parts: Sequence[Path], config: dict[str, Value], bad: int | None, start: int
    ) -> None:
        super().__init__([{"data-dir": str(part)} for part in parts], config)
        self.bad = None if bad is None else list(self.contexts)[bad]
        self.start = start
        self.shares: dict[str, list[Shares]] = {}  # by stage, of each judged round
        self._stage, self._round = 0, 0

    def push_messages(self, messages_: Iterable[Message]) -> Iterable[str]:
        """As in process."""
        requests = list(messages_)
        if requests and requests[0].metadata.message_type == messages.TRAIN:
            plan = messages.read_plan(requests[0].content)
            now = messages.read_arrays(requests[0].content)
            if plan.stage != self._stage:
                self._stage, self._turning, self._arrays = plan.stage, Turning.begin(), now
            self._round = plan.round
            self._turning = self._turning.moved(self._arrays, now, None)
            self._arrays = now
        return super().push_messages(requests)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As in process."""
        replies = list(super().pull_messages(message_ids))
        if not replies or replies[0].metadata.message_type != messages.TRAIN:
            return replies
        if self._round >= self.start:
            for reply in replies:
                if reply.metadata.src_node_id == self.bad and "arrays" in reply.content:
                    _flip(reply.content, Wire("float32", seed=0))
        contents = {r.metadata.src_node_id: messages.check_reply(r) for r in replies}
        updates = {
            str(node): messages.read_update(content)
            for node, content in contents.items()
            if not messages.needs_frozen(content)
        }
        self._turning = self._turning.after(updates, 0)
        if standing := self._turning.standing:
            shares = {node: found.share for node, found in standing.items()}
            self.shares.setdefault(str(self._stage), []).append(shares)
        return replies

    def least(self, stage: str) -> float | None:
        """The least share of an honest node, of all judged rounds."""
        judged = self.shares.get(stage, [])
        honest = [share for shares in judged for n, share in shares.items() if n != str(self.bad)]
        return min(honest, default=None)


def left_out(record: StageRecord, node: str) -> list[int]:
    """The rounds that a node's update was left out of for its direction."""
    return [
        entry["round"]
        for entry in record["rounds"]
        for drop in entry["dropped"]
        if drop["node"] == node and "sign" in drop["reason"]
    ]


def benchmark(args: argparse.Namespace) -> Record:
    """All stages for each grouping of the users; the JSON document."""
    if not args.out.absolute().parent.is_dir():
        raise DataError("the folder of --out does not exist", where=str(args.out))
    rows: list[Record] = []
    for by in args.by:
        with tempfile.TemporaryDirectory() as folder:
            rows += _stages(args, by, Path(folder))
        write_json(args.out, {"settings": args.set, "rows": rows})
    return {"settings": args.set, "rows": rows}


def _stages(args: argparse.Namespace, by: By, folder: Path) -> list[Record]:
    dataset = args.dataset
    if dataset is None:
        write_demo(dataset := folder / "demo", 0)
    split_dataset(dataset, folder / "parts", args.nodes, by)
    parts = [folder / "parts" / f"part-{part}" for part in range(args.nodes)]
    given: dict[str, Value] = {
        "home": str(folder),
        "stage": 0,
        "checkpoint-every": 1000,
        "evaluate-users": 500,
    }
    rows: list[Record] = []
    for overrides in by_stage(merge(args.config, []), given | merge([], args.set)):
        config = {key_of(n): v for n, v in checked(own_app(), overrides).items()}
        grid = TurningGrid(parts, config, args.bad, args.start)
        document = federate(grid, parse_settings(config))
        for stage in grid.shares:
            rows.append(_row(by, stage, grid, document["stages"][stage], args.nodes))
            print(rows[-1], flush=True)
    return rows


def _row(by: By, stage: str, grid: TurningGrid, record: StageRecord, nodes: int) -> Record:
    names = [f"part-{part}" for part in range(nodes)]
    return {
        "by": by,
        "stage": stage,
        "rounds": len(record["rounds"]) - 1,
        "judged": len(grid.shares[stage]),
        "least": grid.least(stage),
        "left_out": {n: rounds for n in names if (rounds := left_out(record, n))},
        "hr@10": record["test"]["all"]["uniform-100"]["hr@10"],
    }


def failures(result: Record, bad: str | None) -> list[str]:
    """Honest nodes that were left out, and where the bad one was not."""
    found = []
    for row in result["rows"]:
        where = f"by {row['by']}, stage {row['stage']}"
        found += [f"{node} was left out: {where}" for node in row["left_out"] if node != bad]
        if bad is not None and bad not in row["left_out"]:
            found.append(f"{bad} was not left out: {where}")
    return found


def print_table(result: Record) -> None:
    """A line a grouping and stage."""
    table = Table(title="nodes that turn the wrong way")
    for heading in ("users by", "stage", "rounds", "judged", "least share", "left out", "HR@10"):
        table.add_column(heading)
    for row in result["rows"]:
        out = ", ".join(f"{n} from {r[0]}, {len(r)} times" for n, r in row["left_out"].items())
        least = "-" if row["least"] is None else f"{row['least']:.2f}"
        counts = str(row["rounds"]), str(row["judged"])
        table.add_row(row["by"], row["stage"], *counts, least, out, f"{row['hr@10']:.4f}")
    Console(width=120).print(table)


def main(given: list[str] | None = None) -> None:
    """Train and print; exit code 1 for an error (one line) or a wrong judgement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, help="an imported dataset; default: the demo")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--by", nargs="+", choices=get_args(By), default=["taste"])
    parser.add_argument("--bad", type=int, help="the number of the node that lies")
    parser.add_argument("--start", type=int, default=16, help="the round from which on it does")
    parser.add_argument("--config", type=Path, nargs="*", default=[])
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(given)
    with one_line_errors():
        result = benchmark(args)
    print_table(result)
    if wrong := failures(result, None if args.bad is None else f"part-{args.bad}"):
        print(f"error: {'; '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
