"""How near honest nodes come to the norm limit, which must never touch them (docs/faults.md).

    uv run python -m benchmarks.sites.norms --out norms.json [--dataset /abs/ml-1m]

All stages on many nodes in one process. Their updates, added up, are those of fewer nodes with the
same users; of each number of nodes the largest update is told as a share of its limit, over all
rounds. The exit code is 1 where there is less room than the limit was made for.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from pathlib import Path

from flwr.app import Message
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from feddmmr.launch.command import by_stage, checked, merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.robust import limit, times_usual
from server_app.app import federate
from server_app.record.manifest import Record
from shared_model.errors import ConfigError, DataError
from shared_model.protocol import messages
from shared_model.protocol.config import Value, key_of, parse_settings
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import stage_of

ROOM = 1.5  # times the largest honest update fits below its limit

Shares = dict[int, list[float]]  # by numbers of nodes: of each round, the largest share of a limit


class MeasuringGrid(InProcessGrid):
    """Measures what nodes answer to a round, alone and added up to fewer nodes."""

    def __init__(self, nodes: int, into: Sequence[int], config: dict[str, Value]) -> None:
        named: list[dict[str, Value]] = [
            {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
        ]
        super().__init__(named, config)
        self._into = into
        self.found: dict[str, Shares] = {}  # by stage

    def push_messages(self, messages_: Iterable[Message]) -> Iterable[str]:
        """As in process."""
        requests = list(messages_)
        if requests and requests[0].metadata.message_type == messages.TRAIN:
            stage = stage_of(messages.read_plan(requests[0].content).stage)
            self._round = self.found.setdefault(str(stage.number), defaultdict(list))
            self._mixes = stage.mixes
        return super().push_messages(requests)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As in process."""
        replies = list(super().pull_messages(message_ids))
        if replies and replies[0].metadata.message_type == messages.TRAIN:
            contents = [messages.check_reply(reply) for reply in replies]
            updates = [messages.read_update(content) for content in contents]
            for nodes in self._into:
                self._round[nodes].append(largest_share(added_up(updates, nodes), self._mixes))
        return replies


def added_up(updates: Sequence[LocalUpdate], nodes: int) -> list[LocalUpdate]:
    """Partitions' updates as those of fewer nodes: a user's row modulo ``nodes`` is its node."""
    return [reduce(add, updates[node::nodes]) for node in range(nodes)]


def largest_share(updates: Sequence[LocalUpdate], mixes: bool) -> float:
    """Of any update in its own limit."""
    times = times_usual(updates)
    return max(float(t) / limit(u.participants, mixes) for t, u in zip(times, updates, strict=True))


def benchmark(args: argparse.Namespace) -> Record:
    """All stages; the JSON document."""
    uneven = [nodes for nodes in args.into if not 0 < nodes <= args.nodes or args.nodes % nodes]
    if uneven:
        raise ConfigError(
            "a number of nodes that the partitions do not add up to",
            where="--into",
            expected=f"divisors of --nodes ({args.nodes})",
            got=", ".join(map(str, uneven)),
        )
    if not args.out.absolute().parent.is_dir():
        raise DataError("the folder of --out does not exist", where=str(args.out))
    stages: dict[str, Shares] = {}
    with tempfile.TemporaryDirectory() as home:
        given: dict[str, Value] = {"home": home, "stage": 0, "checkpoint-every": 1000}
        if args.dataset:
            given["dataset"] = str(args.dataset.absolute())
        rounds: dict[str, Value] = {"num-rounds": args.rounds, "evaluate-every": args.rounds}
        for overrides in by_stage(merge(args.config, []), given | merge([], args.set) | rounds):
            config = {key_of(n): v for n, v in checked(own_app(), overrides).items()}
            grid = MeasuringGrid(args.nodes, args.into, config)
            federate(grid, parse_settings(config))
            stages |= grid.found
    largest = max(max(of) for stage in stages.values() for of in stage.values())
    return {"settings": args.set, "rounds": args.rounds, "stages": stages, "largest": largest}


def print_table(result: Record) -> None:
    """The largest share of each stage and number of nodes."""
    columns = list(next(iter(result["stages"].values())))
    table = Table(title="the largest honest update, as a share of its norm limit")
    for heading in ("stage", *(f"{nodes} nodes" for nodes in columns)):
        table.add_column(heading)
    for stage, found in result["stages"].items():
        table.add_row(stage, *(f"{max(found[nodes]):.3f}" for nodes in columns))
    Console(width=100).print(table)


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 for an error (one line) or too little room."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, help="an imported dataset; default: the demo")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--nodes", type=int, default=120, help="partitions that train")
    parser.add_argument("--into", type=int, nargs="+", default=[3, 8, 10, 40, 120])
    parser.add_argument("--rounds", type=int, default=5, help="of each stage")
    parser.add_argument("--config", type=Path, nargs="*", default=[])
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(given)
    with one_line_errors():
        result = benchmark(args)
        write_json(args.out, result)
    print_table(result)
    if result["largest"] * ROOM > 1:
        print(f"error: less than {ROOM} times of room", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
