"""The fault table: one node in ten goes wrong; what stock FedAvg does, and what this project does.

    uv run python -m benchmarks.faults --out faults.json

Every row is a run of Stage 1 in one process, with ten nodes on the demo dataset. One of them is bad
from a sixth of the rounds on (fault_parts/cases.py). A row fails, and the command with it, if its
run does not complete, or if the last round's arrays, scored on all users, have less than 0.98 of
the undisturbed run's validation HR@10; beside it is that of the other nodes' users. Stock FedAvg
(fault_parts/stock.py) gets the replies of the first bad round.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.fault_parts.cases import FAULTS, UNDISTURBED, Fault, FaultyGrid
from benchmarks.fault_parts.stock import outcome
from benchmarks.output import write_json
from feddmmr.launch.command import merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.app import federate
from server_app.record.manifest import Record
from shared_model.errors import ConfigError, DataError, FedDMMRError
from shared_model.protocol import messages
from shared_model.protocol.config import Value, default_config, key_of, parse_settings
from shared_model.protocol.metrics import merge as merge_sums
from shared_model.protocol.settings import AGGREGATIONS

NAMES = [fault.name for fault in FAULTS]
PASSED = 0.98  # of the undisturbed HR@10
_NO_STOCK: Record = {"text": "has no such format", "off": None}
_SHOWN = 120  # characters of what this project says, of which the JSON has all
_CONFIG: dict[str, Value] = {"stage": 1, "hidden-size": 32, "fraction-train": 0.3}
_CONFIG |= {"evaluate-every": 30, "checkpoint-every": 30}  # the last round is validated anyway
# What the benchmark or its own options set: --set may not.
_OWN = {"stage", "run", "home", "redo", "seed", "num-rounds", "aggregation"}


@dataclass(frozen=True)
class Bench:
    """What all rows have in common."""

    config: dict[str, Value]
    nodes: int
    start: int
    bad: int

    def run(self, fault: Fault) -> tuple[Mapping[str, Any], FaultyGrid]:
        """One run: the manifest's document, or what stopped it, and the grid it ran on."""
        config = self.config | {"run": "".join(c if c.isalnum() else "-" for c in fault.name)}
        grid = FaultyGrid(self._node_configs(self.nodes), config, fault, self.bad, self.start)
        log = Path(str(config["home"])) / "log.txt"
        with log.open("a") as file, contextlib.redirect_stdout(file):
            try:
                return federate(grid, parse_settings(config)), grid
            except FedDMMRError as error:
                return {"stopped": str(error)}, grid

    def hit_rates(self, grid: FaultyGrid) -> dict[str, float]:
        """HR@10 (uniform-100, group "all") of the last validated arrays, over all users and over
        those of the other nodes."""
        if grid.last is None:
            return {"hr@10": 0.0, "others": 0.0}
        whole = InProcessGrid(self._node_configs(self.nodes), self.config)
        asked = [Message(grid.last.content, n, messages.EVALUATE) for n in whole.get_node_ids()]
        replies = [messages.check_reply(reply) for reply in whole.send_and_receive(asked)]
        sums = [messages.read_metrics(content) for content in replies]
        others = sums[: self.bad] + sums[self.bad + 1 :]
        return {"hr@10": _hit_rate(sums), "others": _hit_rate(others)}

    def row(self, fault: Fault, undisturbed: dict[str, float], honest: list[Message]) -> Record:
        """One row of the table, as the JSON has it."""
        started = time.monotonic()
        document, grid = self.run(fault)
        hit_rates, complete = self.hit_rates(grid), "stopped" not in document
        told = _told(document, f"partition-{self.bad}")
        return {
            "fault": fault.name,
            "stock": outcome(grid.replies, honest) if self._plain() else _NO_STOCK,
            "complete": complete,
            **told,
            **hit_rates,
            "undisturbed": undisturbed["hr@10"],
            "undisturbed_others": undisturbed["others"],
            "passed": complete and hit_rates["hr@10"] >= PASSED * undisturbed["hr@10"],
            "seed": self.config["seed"],
            "config": {k: v for k, v in self.config.items() if k not in ("home", "run")},
            "nodes": self.nodes,
            "bad_node": f"partition-{self.bad}",
            "from_round": self.start,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _plain(self) -> bool:
        """Whether updates travel as stock FedAvg reads them."""
        settings = parse_settings(self.config)
        return settings.wire_dtype == "float32" and settings.candidates <= 0

    @staticmethod
    def _node_configs(nodes: int) -> list[dict[str, Value]]:
        return [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]


def _hit_rate(sums: list[dict[str, float]]) -> float:
    return merge_sums(sums).report()["all"]["uniform-100"]["hr@10"]


def _told(document: Mapping[str, Any], node: str) -> Record:
    """What the manifest says of a node: the rounds it was dropped or clipped in, and in words."""
    if "stopped" in document:
        return {"ours": f"stops: {document['stopped']}", "dropped": {}, "clipped": {}}
    rounds = document["stages"]["1"]["rounds"]
    found: dict[str, dict[int, Any]] = {"dropped": {}, "clipped": {}}
    for kind, value in (("dropped", "reason"), ("clipped", "factor")):
        for entry in rounds:
            for what in entry.get(kind, []):
                if what["node"] == node:
                    found[kind][entry["round"]] = what[value]
    words = []
    if found["dropped"]:
        reason = next(iter(found["dropped"].values()))
        words.append(f"dropped in {len(found['dropped'])} rounds: {reason}")
    if factors := sorted(found["clipped"].values()):
        words.append(f"clipped in {len(factors)} rounds, to {factors[0]:.2g} - {factors[-1]:.2g}")
    for event in ("left", "joined"):
        words += [f"{event} in round {e['round']}" for e in rounds if node in e.get(event, [])]
    return {"ours": "; ".join(words) or "aggregated as it is", **found}


def benchmark(args: argparse.Namespace) -> Record:
    """Run the undisturbed run and the chosen faults; the JSON document, written after each row."""
    with tempfile.TemporaryDirectory() as home:
        bench = _prepared(args, home)
        print("undisturbed", flush=True)
        document, grid = bench.run(UNDISTURBED)
        if "stopped" in document:
            raise DataError("the undisturbed run does not complete", got=document["stopped"])
        undisturbed = bench.hit_rates(grid)
        result: Record = {"dataset": document["dataset"], "app": document["app"], "rows": []}
        for number, fault in enumerate((f for f in FAULTS if f.name in args.faults), start=1):
            row = bench.row(fault, undisturbed, grid.replies)
            result["rows"].append(row)
            write_json(args.out, result)
            print(f"[{number}/{len(args.faults)}] {fault.name}: {row['seconds']} s", flush=True)
    return result


def _prepared(args: argparse.Namespace, home: str) -> Bench:
    """What can be wrong with the arguments, said before anything is trained."""
    if not args.out.parent.is_dir():
        raise DataError("the folder of --out does not exist", where=str(args.out))
    if args.nodes < 3 or args.rounds < 2:
        raise ConfigError("nothing to compare", expected="--nodes >= 3 and --rounds >= 2")
    given = merge([], args.set)
    if taken := sorted(_OWN & given.keys()):
        raise ConfigError("not for --set: the benchmark sets it", got=", ".join(taken))
    own = {"home": home, "seed": args.seed, "num-rounds": args.rounds}
    config = default_config(own_app() / "pyproject.toml") | _CONFIG | given | own
    config |= {"aggregation": args.aggregation}
    parse_settings(config)
    return Bench(config, args.nodes, start=max(1, args.rounds // 6), bad=args.nodes // 3)


def print_table(result: Record) -> None:
    """A line a fault, the undisturbed run's HR@10 in the title."""
    first = result["rows"][0]
    title = (
        f"{first['config'][key_of('aggregation')]}, seed {first['seed']}: 1 of {first['nodes']} "
        f"nodes bad from round {first['from_round']} of {first['config']['num-rounds']}; "
        f"undisturbed HR@10 {first['undisturbed']:.4f}, others' {first['undisturbed_others']:.4f}"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("sent", "stock FedAvg", "this project", "HR@10", "others'", ""):
        table.add_column(heading)
    for row in result["rows"]:
        verdict = "ok" if row["passed"] else "FAILED"
        stock = row["stock"]["text"]
        ours = row["ours"] if len(row["ours"]) <= _SHOWN else row["ours"][: _SHOWN - 3] + "..."
        rates = [f"{row[name]:.4f}" for name in ("hr@10", "others")]
        table.add_row(row["fault"], stock, ours, *rates, verdict)
    Console(width=160).print(table)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--aggregation", choices=AGGREGATIONS, default="clipped")
    parser.add_argument("--rounds", type=int, default=100, help="of training in each row")
    parser.add_argument("--nodes", type=int, default=10, help="of which one is bad")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Run the rows and print the table; exit code 1 for an error (one line) or a failed row."""
    try:
        result = benchmark(_arguments(given))
    except (FedDMMRError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print_table(result)
    if failed := [row["fault"] for row in result["rows"] if not row["passed"]]:
        print(f"error: failed rows: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
