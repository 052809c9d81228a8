"""`feddmmr recommend`: what to watch next by a trained run, and why."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddmmr.runs.command import Home
from shared_model.errors import ConfigError

if TYPE_CHECKING:
    from client_app.data.dataset import Dataset
    from feddmmr.recommendations.titles import Catalogue


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

    if (history is None) == (user is None) or (hide_last and user is None):
        raise ConfigError(
            "whose history?",
            expected="either --history 'TITLE; TITLE', or --user ID (--hide-last is for --user)",
        )
    folder = home_folder(home)
    found = read_run(folder, run)
    data = data_for(found, folder, dataset)
    catalogue = Catalogue(data)
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


def _show(answer: dict[str, Any]) -> None:
    gate = f", gate {answer['gate']:.3f}" if answer["gate"] is not None else ""
    memory = f", {answer['remembered']} items remembered" if answer["remembered"] else ""
    where = f"run '{answer['run']}', stage {answer['stage']}, round {answer['round']}"
    print(f"{where}{gate}{memory}")
    print(f"after: {'; '.join(answer['history'][-5:])}")
    if "note" in answer:
        print(answer["note"])
    else:
        _show_table(answer)
    if "hidden" in answer:
        print(f"hidden: {answer['hidden']['title']}, rank {answer['hidden']['rank']}")


def _show_table(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    mixed = answer["gate"] is not None
    table = Table()
    columns = ("score", "SASRec", "visual", "text", "familiar", "router v/t", "led by")
    for column in ("", "title", *(columns if mixed else columns[:1])):
        table.add_column(column, justify="left" if column in ("title", "led by") else "right")
    for found in answer["recommendations"]:
        title = Text(found["title"] + (" (cold)" if found["cold"] else ""))
        for one in found["because"]:
            title.append(f"\n  {one['adds']:+.2f} {one['by']}: {one['title']}", "dim")
        table.add_row(str(found["rank"]), title, *(_numbers(found) if mixed else [_score(found)]))
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def _score(found: dict[str, Any]) -> str:
    return f"{found['score']:.3f}"


def _numbers(found: dict[str, Any]) -> list[str]:
    parts, router = found["parts"], found["router"]
    shares = [f"{value:+.3f}" for value in parts.values()]
    weights = f"{router['visual']:.2f}/{router['text']:.2f}"
    return [_score(found), *shares, weights, found["led_by"].replace("state", "SASRec")]
