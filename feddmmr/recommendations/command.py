"""`feddmmr recommend`: what to watch next by a trained run, and why."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddmmr.runs.command import Home
from shared_model.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.table import Table

    from client_app.data.dataset import Dataset
    from feddmmr.recommendations.titles import Catalogue

_WIDTH = 80  # columns where there is no terminal
_HEADINGS = {"state": "SASRec", "familiarity": "familiar"}


def recommend(
    run: Annotated[str, typer.Option(help="Name of a trained run.")] = "default",
    history: Annotated[
        list[str] | None,
        typer.Option(help="Titles, oldest first: 'A; B; C'. A title's part will do, or #ID."),
    ] = None,
    user: Annotated[str | None, typer.Option(help="A user of the dataset, by its id.")] = None,
    hide_last: Annotated[
        bool,
        typer.Option("--hide-last", help="Hide the user's test item, and say where it comes."),
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    stage: Annotated[
        int | None, typer.Option(min=1, max=3, help="Stage.", show_default="newest complete")
    ] = None,
    seen: Annotated[bool, typer.Option("--seen", help="Items of the history, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    everyone: Annotated[
        bool, typer.Option("--all", help="Every user of the dataset, into --out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file for --all.")] = None,
    home: Home = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="The run's dataset.", show_default="the demo, if the run is one of it"),
    ] = None,
) -> None:
    """What to watch next, and who says so: SASRec, pictures, texts, and which remembered items."""
    from feddmmr.recommendations.adviser import Adviser
    from feddmmr.recommendations.answer import answered, data_for
    from feddmmr.recommendations.titles import Catalogue
    from feddmmr.runs.read import home_folder, read_run

    if everyone:
        _require_file(out, alone=history is None and user is None and not as_json)
    elif (history is None) == (user is None) or (hide_last and user is None) or out is not None:
        raise ConfigError(
            "whose history?",
            expected="either --history 'TITLE; TITLE', or --user ID (--hide-last is for --user), "
            "or --all with --out FILE.parquet",
        )
    folder = home_folder(home)
    found = read_run(folder, run)
    data = data_for(found, folder, dataset)
    catalogue = Catalogue(data)
    if everyone and out is not None:
        from feddmmr.recommendations.everyone import write_everyone

        count = write_everyone(Adviser(found, data, stage or 0), catalogue, out, top, seen=seen)
        print(f"{out}: {count} rows for {data.num_users} users")
        return
    items, hidden = _history(data, catalogue, history or [], user, hide_last)
    adviser = Adviser(found, data, stage or 0)
    answer = answered(adviser, catalogue, items, top, hidden=hidden, seen=seen)
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _show(answer)


def _history(
    dataset: "Dataset", catalogue: "Catalogue", texts: list[str], user: str | None, hide: bool
) -> tuple[list[int], int]:
    """Item indices, oldest first, and the hidden one (0 = none)."""
    from feddmmr.recommendations.titles import row_of_user

    if user is not None:
        row = row_of_user(dataset, user)
        items = dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]].tolist()
        return (items[:-1], items[-1]) if hide else (items, 0)
    titles = [title.strip() for text in texts for title in text.split(";")]
    return [catalogue.find(title) for title in titles if title], 0


def _require_file(out: Path | None, *, alone: bool) -> None:
    """``ConfigError`` unless --all has a file to write, in a folder that is there."""
    if not alone or out is None:
        raise ConfigError(
            "--all writes the best items of every user to a file",
            expected="--all --out FILE.parquet, without --history, --user and --json",
        )
    if not out.absolute().parent.is_dir():
        raise DataError("the folder of --out does not exist", where=str(out))


def _show(answer: dict[str, Any]) -> None:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else _WIDTH
    console = Console(width=wide, markup=False, highlight=False)
    gate = f", gate {answer['gate']:.3f}" if answer["gate"] is not None else ""
    memory = f", {answer['remembered']} items remembered" if answer["remembered"] else ""
    where = f"run '{answer['run']}', stage {answer['stage']}, round {answer['round']}"
    console.print(f"{where}{gate}{memory}")
    console.print(f"after: {'; '.join(answer['history'][-5:])}")
    console.print(answer["note"] if "note" in answer else _table(answer))
    if "hidden" in answer:
        console.print(f"hidden: {answer['hidden']['title']}, rank {answer['hidden']['rank']}")


def _table(answer: dict[str, Any]) -> "Table":
    """A row an item with its parts, and below its title what in memory spoke for it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    mixed = answer["gate"] is not None
    familiar = any(found["parts"]["familiarity"] for found in answer["recommendations"])
    parts = answer["recommendations"][0]["parts"]
    names = [part for part in parts if familiar or part != "familiarity"] if mixed else []
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("", justify="right")
    table.add_column("title")
    for heading in ("score", *(_HEADINGS.get(name, name) for name in names)):
        table.add_column(heading, justify="right", no_wrap=True)
    if mixed:
        table.add_column("router\nv/t %", justify="right", no_wrap=True)
        table.add_column("led by", no_wrap=True)
    for found in answer["recommendations"]:
        title = Text(found["title"] + (" (cold)" if found["cold"] else ""))
        for one in found["because"]:
            title.append(f"\n {one['adds']:+.2f} {one['by']}: {one['title']}", "dim")
        shares = [f"{found['parts'][name]:+.2f}" for name in names]
        score = f"{found['score']:.2f}"
        more = _mixture(found) if mixed else []
        table.add_row(str(found["rank"]), title, score, *shares, *more)
    return table


def _mixture(found: dict[str, Any]) -> list[str]:
    """The router's weights in per cent, and the part that led."""
    weights = "/".join(f"{100 * found['router'][name]:.0f}" for name in ("visual", "text"))
    return [weights, _HEADINGS.get(found["led_by"], found["led_by"])]
