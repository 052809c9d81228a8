"""`feddmmr baselines`: the figures that a model has to beat on a dataset."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from feddmmr.output_file import write_output
from shared_model.errors import DataError

COLUMNS = ("hr@5", "hr@10", "ndcg@10", "mrr")  # of all in the JSON file: what 80 letters hold


def baselines(
    dataset: Annotated[
        Path | None,
        typer.Argument(help="Folder of an imported dataset.", show_default="the demo"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled candidates, as in a run.")] = 0,
) -> None:
    """Popularity, Markov, item and text kNN on the test split: every group, every protocol."""
    from client_app.data.dataset import open_dataset
    from feddmmr.baselines.baselines import evaluate_baselines
    from server_app.record.report import shortfalls

    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise DataError("the folder of the JSON file does not exist", where=str(json_file))
    opened = open_dataset(dataset.resolve() if dataset else _demo())
    results = evaluate_baselines(opened, "test", seed)
    _print_table(opened.info["name"], results)
    for note in shortfalls(next(iter(results.values()))):  # the same for all of them
        print(f"note: {note}")
    if json_file is not None:
        facts = {"dataset": opened.info["name"], "split": "test", "seed": seed}
        write_output(json_file, json.dumps(facts | {"baselines": results}, indent=2) + "\n")


def _demo() -> Path:
    """The demo of the runs, below the run-config's own home."""
    from client_app.data.demo import demo_dataset
    from shared_model.protocol.config import default_config, parse_settings

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return demo_dataset(parse_settings(default_config(project)).home_folder)


def _print_table(name: str, results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}: baselines on the test split")
    for heading in ("baseline", "group", "protocol"):
        table.add_column(heading, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for baseline, groups in results.items():
        for group, protocols in groups.items():
            for protocol, metrics in protocols.items():
                figures = (f"{metrics[name]:.3f}" for name in COLUMNS)
                table.add_row(baseline, group, protocol, *figures)
    Console().print(table)
