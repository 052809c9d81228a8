"""`feddmmr runs`: list, show, note, verify, compare, report, export and delete."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at runs: list, verify, compare, report, delete.", no_args_is_help=True)

Home = Annotated[
    Path | None, typer.Option(help="Folder of the runs.", show_default="as in the run-config")
]
Name = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")]
Dataset = Annotated[
    Path | None,
    typer.Option(help="The run's dataset.", show_default="the demo, if the run is one of it"),
]

_RESULTS = 80  # columns of the table of results, as in a run's own log


@app.command("list")
def list_(home: Home = None) -> None:
    """Every run, how far it came, and its figures on the test split."""
    from feddmmr.runs.read import home_folder
    from feddmmr.runs.tables import overview

    _print(*overview(home_folder(home)))


@app.command()
def show(
    run: Name,
    home: Home = None,
    dataset: Dataset = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every group and protocol, and what each stage cost.")
    ] = False,
) -> None:
    """One run: data, results of the stages beside baselines, and privacy."""
    from feddmmr.runs.data import baselines_of, data_of
    from feddmmr.runs.read import home_folder, read_run
    from feddmmr.runs.tables import facts, parts_table, stages_table
    from server_app.record.report import say_remarks
    from server_app.record.results import RESULT_GROUPS, TABLE_GROUPS, groups_table, results_table

    folder = home_folder(home)
    found = read_run(folder, run)
    data = data_of(found, folder, dataset)
    _print(*facts(found))
    _print(results_table(found.data, baselines_of(found, data)), width=_RESULTS)
    if data is None:
        _print("baselines: the data of this run are not at hand (--dataset)")
    if everything:
        _print(stages_table(found), groups_table(found.data), parts_table(found))
    for number, record in found.stages:
        say_remarks(str(number), record, TABLE_GROUPS if everything else RESULT_GROUPS)
    _print(f"manifest: {found.folder / 'manifest.json'}")


@app.command()
def note(
    run: Name,
    text: Annotated[str | None, typer.Argument(help="A note; '' deletes it.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag, as often as needed; they replace the old.")
    ] = None,
    home: Home = None,
) -> None:
    """Write a note and tags beside a run, for list, show and report; without any, show them."""
    from feddmmr.runs.notes import read_note, write_note
    from feddmmr.runs.read import home_folder, read_run

    folder = read_run(home_folder(home), run).folder
    given = text is not None or tag
    found = write_note(folder, text, tag or None) if given else read_note(folder)
    print(found.line or "no note")


@app.command("verify")
def verify_(run: Name, home: Home = None, dataset: Dataset = None) -> None:
    """Check seal, order of the stages, checkpoints and data; the exit code is 0 if all holds."""
    from feddmmr.runs.read import home_folder
    from feddmmr.runs.tables import checks_table
    from feddmmr.runs.verify import verify
    from shared_model.errors import ManifestError

    found, checks = verify(home_folder(home), run, dataset)
    _print(checks_table(found, checks))
    if wrong := [check for check in checks if check.ok is False]:
        raise ManifestError(
            f"{len(wrong)} of {len(checks)} checks failed",
            where=str(found.folder),
            got=f"{wrong[0].what}: {wrong[0].found.partition(';')[0]}",
            todo="restore the files, or train the stage again with redo=true",
        )


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Names of runs.")],
    home: Home = None,
    every_group: Annotated[
        bool, typer.Option("--every-group", help="Popularity and history buckets as well.")
    ] = False,
) -> None:
    """Runs side by side: test figures with differences to the first, and settings that differ."""
    from feddmmr.runs.compare import compared
    from feddmmr.runs.read import home_folder, read_run
    from shared_model.errors import ConfigError

    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ConfigError(
            "nothing to compare", expected="two or more different runs", got=" ".join(runs)
        )
    folder = home_folder(home)
    _print(*compared([read_run(folder, name) for name in runs], every_group))


@app.command()
def report(
    run: Name,
    out: Annotated[Path, typer.Option(help="Folder for index.html and the plots as PNG.")],
    home: Home = None,
    dataset: Dataset = None,
) -> None:
    """One page about a run, with plots and tables; it needs no network and prints well."""
    from feddmmr.runs.read import home_folder, read_run
    from feddmmr.runs.report import write_report

    folder = home_folder(home)
    print(f"report: {write_report(read_run(folder, run), folder, dataset, out)}")


@app.command()
def delete(
    run: Name,
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run with its checkpoints, whole or not at all; never one that is being written."""
    from feddmmr.runs.delete import delete_run, warning
    from feddmmr.runs.read import home_folder
    from shared_model.errors import ConfigError

    folder = home_folder(home)
    about = warning(folder, run)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("deleting asks first, and nobody is there", todo="add --yes")
        if not typer.confirm(f"{about} Delete it?"):
            raise typer.Exit(1)
    delete_run(folder, run)
    print(f"deleted: {folder / 'runs' / run}")


@app.command()
def export(
    run: Name,
    ranks: Annotated[Path, typer.Option(help="Parquet file for the test ranks, user by user.")],
    stage: Annotated[int, typer.Option(min=0, help="0 = the newest complete one.")] = 0,
    home: Home = None,
    dataset: Dataset = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """The ranks behind a stage's test figures, so that anyone scores it with their own tool.

    The best checkpoint is scored anew; figures that are not the manifest's are an error.
    """
    from feddmmr.notes import note
    from feddmmr.output_file import write_output
    from feddmmr.runs.data import need_data
    from feddmmr.runs.export import frame_of, parquet
    from feddmmr.runs.ranks import SAME, disagreement, stage_ranks
    from feddmmr.runs.read import complete_stage, home_folder, read_run

    found = read_run(home_folder(home), run)
    number, record = complete_stage(found, stage)
    table = stage_ranks(found, need_data(found, home_folder(home), dataset), number, device)
    apart = disagreement(table, record)
    if apart > SAME:
        note(f"note: scored on another processor, say: figures differ by up to {apart:.2g}")
    frame = frame_of(table)
    write_output(ranks, parquet(frame))
    print(f"ranks of stage {number}: {ranks.resolve()}, {len(frame):,} rows")


def _print(*parts: object, width: int = 140) -> None:
    """Tables and lines, as wide as the terminal; as ``width`` where there is none."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width, markup=False, highlight=False)
    for part in parts:
        console.print(part)
