"""Made-up populations of 1,000 to 100,000 users, about 200 of which take part in a round.

    uv run python -m benchmarks.scaling --out scaling.json

For each: seconds a round (server, messages and one node, in one process), the seconds until the
first round can start (opening the data, the node's report, its plan), and the peak memory of a
process that is server and node at once, so an upper bound of each. Rounds of all populations take
turns, so that whatever else the machine does meets all. Start and memory are medians over processes
of their own; kernels and the allocator's pools, which grow through the first rounds by more than
the data takes, are in place when memory is read.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from benchmarks.populations import made_up
from client_app.data.dataset import open_dataset
from feddmmr.launch.command import merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import take_census
from server_app.rounds.exchange import Asking
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import RoundError
from shared_model.model.recommender import Arrays, build, read_groups
from shared_model.protocol.config import Value, default_config, parse_settings
from shared_model.stages import stage_of

Row = dict[str, Any]
_WARM = 1  # rounds
_SETTLED = 12  # rounds before a process's memory is read
_PROCESSES = 3


@dataclass
class Population:
    """Stage 1 of one node on a population, round by round."""

    asking: Asking
    arrays: Arrays
    number: int = 0

    def round(self) -> tuple[float, int]:
        """Seconds and participants of the next round."""
        started = time.perf_counter()
        self.number += 1
        result = self.asking.train(self.number, self.arrays)
        self.arrays = result.arrays
        return time.perf_counter() - started, result.participants


def open_population(config: dict[str, Value]) -> Population:
    """The node opens its data and reports, the server builds the model."""
    settings, stage = parse_settings(config), stage_of(1)
    grid = InProcessGrid([{"partition-id": 0, "num-partitions": 1}], config)
    census = take_census(grid, settings)
    strategy = StageStrategy(stage, settings, census, ServerOptimizer(settings.server_optimizer))
    model = build(settings.shape(census.num_items), settings.seed)
    return Population(Asking(grid, strategy), read_groups(model, stage.trained))


def start_and_memory(config: dict[str, Value], rounds: int) -> Row:
    """Seconds to the first round's plan, and peak bytes after rounds: medians over processes."""
    program = [sys.executable, "-m", "benchmarks.scaling", "--child", str(rounds)]
    found: list[Row] = []
    for _ in range(_PROCESSES):
        done = subprocess.run(  # noqa: S603 (our own arguments, no shell)
            program, input=json.dumps(config), stdout=subprocess.PIPE, text=True, cwd=own_app()
        )
        if done.returncode:
            raise RoundError("a process that was measured failed; it said why above")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: statistics.median(row[name] for row in found) for name in found[0]}


def _child(rounds: int) -> None:
    """Read a run-config from stdin, print the measurements as the last line."""
    config = json.load(sys.stdin)
    started = time.perf_counter()
    population = open_population(config)
    start = time.perf_counter() - started
    dataset = open_dataset(Path(config["dataset"]))
    for _ in range(rounds):
        population.round()
    peak = _peak_bytes()
    found = {"start_seconds": start, "peak_bytes": peak, "interactions": len(dataset.items)}
    print(json.dumps(found))


def _peak_bytes() -> int:
    """The most memory this process had at once; not that of the one which started it, which
    ``getrusage`` would count."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def benchmark(args: argparse.Namespace, folder: Path) -> list[Row]:
    """A row a population, smallest first."""
    configs, populations = [], []
    for users in sorted(args.users):
        dataset = made_up(folder / str(users), users, args.items)
        own = {"dataset": str(dataset), "fraction-train": min(1.0, args.participants / users)}
        base = default_config(own_app() / "pyproject.toml") | merge([], args.set)
        configs.append(base | own | {"stage": 1, "home": str(folder)})
    for config in configs:
        populations.append(open_population(config))
    times: list[list[tuple[float, int]]] = [[] for _ in populations]
    for _ in range(args.rounds + _WARM):
        for population, found in zip(populations, times, strict=True):
            found.append(population.round())
    rows = []
    for users, config, found in zip(sorted(args.users), configs, times, strict=True):
        seconds, participants = zip(*found[_WARM:], strict=True)
        row = {"users": users, "round_seconds": statistics.median(seconds)}
        row |= {"participants": statistics.mean(participants)}
        rows.append(row | start_and_memory(config, args.settled))
    return rows


def compared(rows: list[Row]) -> Row:
    """The largest population against the smallest: time a participant, bytes an interaction."""
    small, large = rows[0], rows[-1]
    each = [row["round_seconds"] / row["participants"] for row in (small, large)]
    more = large["interactions"] - small["interactions"]
    return {
        "round_ratio": each[1] / each[0],
        "bytes_per_interaction": (large["peak_bytes"] - small["peak_bytes"]) / max(1, more),
        "start_seconds": large["start_seconds"],
    }


def print_table(rows: list[Row], found: Row) -> None:
    """One line a population, then the comparison."""
    table = Table(box=SIMPLE_HEAD)
    headings = ("users", "interactions", "participants", "s a round", "s to start", "peak MB")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(
            f"{row['users']:,}",
            f"{row['interactions']:,}",
            f"{row['participants']:.0f}",
            f"{row['round_seconds']:.2f}",
            f"{row['start_seconds']:.2f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"largest against smallest: {found['round_ratio']:.2f} times the seconds a participant, "
        f"{found['bytes_per_interaction']:.1f} bytes more an interaction"
    )


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 with one line for an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--users", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--participants", type=int, default=200, help="expected in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--settled", type=int, default=_SETTLED, help="rounds before memory")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.child is not None:
        _child(args.child)
        return
    if args.out is None:
        parser.error("--out is required")
    with one_line_errors():
        with tempfile.TemporaryDirectory() as name:
            rows = benchmark(args, Path(name))
        found = compared(rows)
        write_json(args.out, {"rows": rows, "compared": found})
    print_table(rows, found)


if __name__ == "__main__":
    main()
