"""This app's engine on one GPU, beside what other simulators do with the same users and model.

    uv run python -m benchmarks.simulators --dataset /abs/ml-1m --out sim.json --set dropout=0

A round of Stage 1, one local step, in turns: the engine; an ordinary loop that trains a deep copy
of the model for each user; and stacked copies, trained side by side by ``torch.func.vmap``. Users
a second of each, the medians, and the engine's ratio to the others.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from benchmarks.speed_parts.work import Work, engine_round, open_work, plain_round
from client_app.training.objective import BackboneObjective, participants
from client_app.training.train import side_by_side
from feddmmr.launch.command import by_stage, checked, merge, own_app
from server_app.record.manifest import Record
from shared_model.model.recommender import freeze, read_groups
from shared_model.protocol.config import Value, key_of

BARS = {"copies": 20.0, "vmap": 3.0}  # times the users a second of the others
_PLAIN_SHARE = 0.1  # of a round's users: the loop takes long, and each user as long as another


def vmap_round(work: Work, number: int, *, users: int) -> int:
    """A round of stacked copies, so many users at once; returns how many it trained."""
    plan, model = work.round(number), work.model
    freeze(model, model.stage)
    rows = participants(work.dataset, work.rows(), plan)
    objective = BackboneObjective(model, work.dataset, plan)
    objective.packs = False  # stacked copies need users apart
    arrays = read_groups(model, model.stage.trained)
    sums = {name: torch.zeros_like(value) for name, value in arrays.items()}
    for start in range(0, len(rows), users):
        side_by_side(model, objective, objective.batch(rows[start : start + users]), plan, sums)
    return len(rows)


def users_a_second(run: Callable[[int], int], number: int) -> float:
    """Of one round, with everything that the GPU still does when the call returns."""
    _wait()
    started = time.monotonic()
    users = run(number)
    _wait()
    return users / (time.monotonic() - started)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def benchmark(args: argparse.Namespace) -> Record:
    """Rounds in turns; the first of each is not counted, since it starts the device."""
    given = {"dataset": str(args.dataset.absolute()), "device": args.device, "stage": 1}
    [overrides] = by_stage(merge([args.config], []), given | merge([], args.set))
    config: dict[str, Value] = {
        key_of(name): value for name, value in checked(own_app(), overrides).items()
    }
    work = open_work(config, 1)
    less = replace(work.plan, fraction=work.plan.fraction * _PLAIN_SHARE)
    few = replace(work, plan=less)
    contenders: dict[str, Callable[[int], int]] = {
        "engine": partial(engine_round, work),
        "copies": partial(plain_round, few),
        **{f"vmap, {n} at once": partial(vmap_round, work, users=n) for n in args.at_once},
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds + 1):
        for name, run in contenders.items():
            rate = users_a_second(run, number)
            if number:
                found[name].append(rate)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    best = max(rate for name, rate in medians.items() if name.startswith("vmap"))
    ratios = {"copies": medians["engine"] / medians["copies"], "vmap": medians["engine"] / best}
    return {"config": config, "users_a_second": found, "medians": medians, "ratios": ratios}


def print_table(result: Record) -> None:
    """Users a second, and the ratios with their bars."""
    table = Table(title="Stage 1, users a second")
    for heading in ("", "median", "engine's ratio", "bar"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, rate in result["medians"].items():
        table.add_row(name, f"{rate:.0f}", f"{result['medians']['engine'] / rate:.1f}")
    for name, bar in BARS.items():
        table.add_row(f"against {name} at its best", "", f"{result['ratios'][name]:.1f}", f"{bar}")
    Console(width=80).print(table)


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 for an error, in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="an imported dataset")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="of each, in turns")
    parser.add_argument("--at-once", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--config", type=Path, default=own_app() / "conf" / "ml-1m.toml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(given)
    with one_line_errors():
        result = benchmark(args)
        write_json(args.out, result)
    print_table(result)


if __name__ == "__main__":
    main()
