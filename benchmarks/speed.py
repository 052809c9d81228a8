"""Users trained a second: the plain PyTorch loop, this app's engine, Flower, and stock Flower.

    uv run python -m benchmarks.speed --dataset /abs/ml-1m --out speed.json

What is compared runs in turns (a, b, a, b, ...), each pair on equal work, so that whatever else the
machine does meets both; a ratio is the median over the pairs ("single / stock" is one pair). The
rows:

    plain    a deep copy a user, torch's SGD and torch's products, no Flower (speed_work.py)
    engine   this app's training without Flower, in this process, on as many threads
    workers  the same in one process a core, of one thread each, as Ray's actors run it
    flower   this app through `flwr run`, one SuperNode a core
    single   this app through `flwr run`, one user a SuperNode
    stock    a minimal FedAvg app, one user a SuperNode (speed_stock.py)

``seconds`` beside the processor's seconds (all threads) where it is one process: on a busy machine
the latter say more. Settings are feddmmr's defaults under `_config` below and --set. Stage 3 has no
stock app; against the plain loop, memories are simulated beforehand in batches, through Flower and
in its workers Stage 3 simulates them each round, since its backbone has moved.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import write_json
from benchmarks.populations import some_users
from benchmarks.speed_parts.flower import Flower, own_flower
from benchmarks.speed_parts.work import Work, Workers, engine_round, open_work, plain_round
from feddmmr.launch.command import merge, own_app
from shared_model.errors import FedDMMRError
from shared_model.protocol.config import Value, default_config

Row = dict[str, Any]  # what, stage, users, seconds, cpu_seconds of each measurement
_NOVELTY = 0.35  # fixed, so that no round depends on finding it


def timed(what: str, act: Callable[[], int]) -> Row:
    """One measurement of what returns how many users it trained."""
    wall, cpu = time.perf_counter(), time.process_time()
    users = act()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"what": what, "users": users, "seconds": seconds, "cpu_seconds": cpu_seconds}


def rate(row: Row, seconds: str = "seconds") -> float:
    """Users a second."""
    return float(row["users"] / row[seconds])


def ratio(pairs: list[tuple[Row, Row]], seconds: str = "seconds") -> float:
    """Median over the pairs of the first one's rate by the second one's."""
    return statistics.median(rate(a, seconds) / rate(b, seconds) for a, b in pairs)


def in_process(work: Work, pairs: int) -> list[tuple[Row, Row]]:
    """Engine and plain loop in turns, the same round for both; the first pair warms up."""
    found = []
    for number in range(pairs + 1):
        engine = timed("engine", lambda number=number: engine_round(work, number))  # type: ignore[misc]
        plain = timed("plain", lambda number=number: plain_round(work, number))  # type: ignore[misc]
        found.append((engine, plain))
    return found[1:]


def in_workers(
    work: Work, config: dict[str, Value], stage: int, args: argparse.Namespace
) -> list[tuple[Row, Row]]:
    """Workers and the plain loop in turns, both on all cores; the first pair warms up."""
    found = []
    workers = Workers(config, stage, args.cores, kept=True)
    try:
        for number in range(args.pairs + 1):
            users, seconds = workers.round(number)
            plain = timed("plain", lambda number=number: plain_round(work, number))  # type: ignore[misc]
            found.append(({"what": "workers", "users": users, "seconds": seconds}, plain))
    finally:
        workers.close()
    return found[1:]


def through_flower(
    flower: Flower, config: dict[str, Value], stage: int, args: argparse.Namespace
) -> list[tuple[Row, Row]]:
    """A real run and the same rounds in workers, in turns; medians of their rounds."""
    if stage > 1:
        short = config | {"num-rounds": 1, "local-steps": 1}
        for before in range(1, stage):
            flower.rounds(short, before, args.cores)
    found = []
    workers = Workers(config, stage, args.cores)
    try:
        for number in range(args.pairs):
            run = _median("flower", flower.rounds(config, stage, args.cores))
            first = 1000 * (number + 1)
            own = [workers.round(first + extra) for extra in range(args.rounds)]
            found.append((run, _median("workers", own)))
    finally:
        workers.close()
    return found


def _median(what: str, rounds: list[tuple[int, float]]) -> Row:
    """The round of the median rate."""
    ordered = sorted(rounds, key=lambda each: each[0] / each[1])
    users, seconds = ordered[len(ordered) // 2]
    return {"what": what, "users": users, "seconds": seconds}


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """All rows and ratios; written after each group."""
    result: dict[str, Any] = {"machine": _machine(args), "rows": [], "ratios": []}

    def note(stage: int, name: str, pairs: list[tuple[Row, Row]]) -> None:
        one = {"stage": stage, "ratio": name, "pairs": len(pairs), "seconds": ratio(pairs)}
        if all("cpu_seconds" in row for pair in pairs for row in pair):
            one["cpu_seconds"] = ratio(pairs, "cpu_seconds")
        result["ratios"].append(one)
        result["rows"] += [row | {"stage": stage} for pair in pairs for row in pair]
        write_json(args.out, result)

    with tempfile.TemporaryDirectory() as name, own_flower(Path(name)) as flower:
        folder = args.dataset.absolute()
        if args.users is not None:
            folder = some_users(folder, Path(name) / "users", args.users)
        config = _config(args, folder, Path(name))
        for stage in args.stages:
            work = open_work(config, stage, kept=True)
            work.remember(work.rows())
            for threads in sorted({1, args.cores}):
                torch.set_num_threads(threads)
                note(stage, f"engine / plain, {threads} threads", in_process(work, args.pairs))
            note(stage, "workers / plain, all cores", in_workers(work, config, stage, args))
            if args.flower:
                note(stage, "flower / workers", through_flower(flower, config, stage, args))
        if args.flower and 1 in args.stages:
            few = some_users(args.dataset, Path(name) / "few", args.few)
            _compare_stock(flower, config, config | _single(few), args, note)
    return result


def _compare_stock(
    flower: Flower,
    config: dict[str, Value],
    single: dict[str, Value],
    args: argparse.Namespace,
    note: Callable[[int, str, list[tuple[Row, Row]]], None],
) -> None:
    """Our app, one SuperNode a core, against the stock app; and ours with one user a SuperNode."""
    stock, alone = [], []
    for _ in range(args.pairs):
        ours = _median("flower", flower.rounds(config, 1, args.cores))
        theirs = _median("stock", flower.stock(single, args.few, args.rounds))
        stock.append((ours, theirs))
    each = _median("single", flower.rounds(single, 1, args.few))
    alone.append((each, stock[-1][1]))
    note(1, "flower / stock", stock)
    note(1, "single / stock", alone)


def _single(folder: Path) -> dict[str, Value]:
    """Everyone takes part, so that each SuperNode's one user does."""
    return {"dataset": str(folder), "fraction-train": 1.0, "run": "single"}


def _config(args: argparse.Namespace, folder: Path, home: Path) -> dict[str, Value]:
    config = default_config(own_app() / "pyproject.toml")
    config |= {"local-steps": 2, "client-learning-rate": 0.3}
    config |= {"memory-novelty": _NOVELTY, "evaluate-every": 1000, "run": "speed"}
    config |= {"num-rounds": args.rounds + 3, "dataset": str(folder), "home": str(home)}
    return config | merge([], args.set)


def _machine(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "cores": args.cores,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "set": args.set,
        "users": args.users,
    }


def print_table(result: dict[str, Any]) -> None:
    """Median rates of each row, then the ratios."""
    rates = Table(title="users a second (median)", title_justify="left", box=SIMPLE_HEAD)
    ratios = Table(title="median over the pairs", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("stage", "pair", "first", "second"):
        rates.add_column(heading)
    for heading in ("stage", "ratio", "by the clock", "by processor time", "pairs"):
        ratios.add_column(heading)
    place = 0
    for one in result["ratios"]:
        rows = result["rows"][place : place + 2 * one["pairs"]]
        place += len(rows)
        first, second = (statistics.median(map(rate, rows[side::2])) for side in (0, 1))
        rates.add_row(str(one["stage"]), one["ratio"], f"{first:.1f}", f"{second:.1f}")
        cpu = f"{one['cpu_seconds']:.2f}" if "cpu_seconds" in one else ""
        cells = (str(one["stage"]), one["ratio"], f"{one['seconds']:.2f}", cpu, str(one["pairs"]))
        ratios.add_row(*cells)
    console = Console(width=120)
    console.print(rates)
    console.print(ratios)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="an imported dataset")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 3])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="timed in each run through Flower")
    parser.add_argument("--users", type=int, help="of the dataset, chosen by hash; all without")
    parser.add_argument("--few", type=int, default=32, help="users with a SuperNode each")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-flower", dest="flower", action="store_false")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 with one line for an error."""
    args, threads = _arguments(given), torch.get_num_threads()
    try:
        result = benchmark(args)
    except (FedDMMRError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        torch.set_num_threads(threads)
    print_table(result)


if __name__ == "__main__":
    main()
