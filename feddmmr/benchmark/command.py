"""`feddmmr benchmark`: every row of the table on many datasets, by one command that goes on."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from feddmmr.notes import note


class Through(StrEnum):
    """What trains."""

    in_process = "in-process"
    flower = "flower"


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATASET]...",
        help="Names in conf/benchmark/, or folders: sources that `data import` takes, or imported "
        "datasets.",
        show_default="all names whose folder is below --data",
    ),
]
Work = Annotated[Path, typer.Option(help="Folder for datasets, runs, ranks and results.")]
Nodes = Annotated[int, typer.Option(min=1, help="Nodes that users are spread over.")]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A run-config key, over the registry's."),
]
TextModel = Annotated[
    str, typer.Option(help="Encoder of texts without features: a name, or a folder.")
]


def benchmark(
    names: Names = None,
    dataset: Annotated[list[str] | None, typer.Option(help="The same, as an option.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the folders of named benchmarks are.")
    ] = None,
    work: Work = Path("~/.feddmmr/benchmark"),
    seeds: Annotated[str, typer.Option(help="As 0,1,2; default: the benchmark's.")] = "",
    through: Annotated[Through, typer.Option(help="What trains.")] = Through.in_process,
    num_supernodes: Nodes = 1,
    set_: Pairs = None,
    text_model: TextModel = "",
    training: Annotated[
        bool, typer.Option(help="Or else show what is finished, beside the baselines.")
    ] = True,
    page: Annotated[bool, typer.Option(help="Write a page with plots, too.")] = True,
) -> None:
    """Import, encode, train all stages and a control over seeds, and compare with baselines.

    What is finished is not done again: after a kill the same command goes on. The exit code is 1 if
    a bar of the registry is missed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from feddmmr.benchmark.registry import benchmark_of
    from feddmmr.benchmark.run import Options
    from feddmmr.benchmark.training import DRIVERS
    from feddmmr.launch.command import merge

    folder = work.expanduser().absolute()
    options = Options(folder, merge([], set_ or []), _seeds(seeds), text_model, training)
    wanted = [*(names or []), *(dataset or [])] or _there(data)
    chosen = _distinct([benchmark_of(name, data) for name in wanted])
    results = _results(chosen, options, DRIVERS[through.value](num_supernodes))
    if page:
        _write_page(results, folder / "report")
    _require_bars(results)


def _results(chosen: list[Any], options: Any, driver: Any) -> list[dict[str, Any]]:
    """The result of each benchmark, written as soon as it is there, and all of them as tables."""
    from feddmmr.benchmark.progress import Progress
    from feddmmr.benchmark.run import Plan, run_benchmark
    from feddmmr.benchmark.table import tables
    from server_app.record.checkpoint import write_atomically

    results: list[dict[str, Any]] = []
    plans = [Plan(bench, options) for bench in chosen]
    files = [plan.place.folder / "result.json" for plan in plans]
    with Progress(plans) as progress:
        for plan, file in zip(plans, files, strict=True):
            results.append(run_benchmark(plan, driver, progress.say))
            write_atomically(file, json.dumps(results[-1], indent=1).encode())
    _print(*(part for result in results for part in tables(result)))
    for file in files:
        print(f"result: {file}")
    return results


def _seeds(text: str) -> list[int] | None:
    from shared_model.errors import ConfigError

    try:
        found = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise ConfigError("not seeds", where="--seeds", expected="as 0,1,2", got=text) from error
    return found or None


def _there(data: Path | None) -> list[str]:
    """The registered benchmarks whose folder is below --data."""
    from feddmmr.benchmark.registry import benchmark_of, registered
    from shared_model.errors import ConfigError

    found = [name for name in registered() if data and benchmark_of(name, data).source.exists()]
    if not found:
        raise ConfigError(
            "no dataset",
            expected=f"names ({', '.join(registered())}) with --data, or folders",
            got=f"--data {data}" if data else "neither",
        )
    return found


def _distinct(chosen: list[Any]) -> list[Any]:
    from shared_model.errors import ConfigError

    names = [bench.name for bench in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            "two datasets of one name",
            got=", ".join(twice),
            todo="rename a folder, or give each a --work of its own",
        )
    return chosen


def _write_page(results: list[dict[str, Any]], out: Path) -> None:
    """The page, or a note where the extra that it needs is not installed."""
    from feddmmr.benchmark.page import write_results
    from shared_model.errors import ConfigError

    try:
        print(f"report: {write_results(results, out)}")
    except ConfigError as error:
        note(f"note: no page: {error}")


def _require_bars(results: list[dict[str, Any]]) -> None:
    missed = [
        f"{result['benchmark']}: {bar['what']}"
        for result in results
        for bar in result["bars"]
        if bar["reached"] is False
    ]
    if missed:
        note(f"error: {len(missed)} bars missed: {'; '.join(missed)}")
        raise typer.Exit(1)


def _print(*parts: object) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    for part in parts:
        console.print(part)
