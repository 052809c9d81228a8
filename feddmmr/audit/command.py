"""`feddmmr audit`: attacks on a finished run that measure what it leaks and whom it obeys."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from feddmmr.output_file import write_output
from shared_model.errors import DataError


class Attack(StrEnum):
    """Which attack to make."""

    items = "items"
    membership = "membership"
    promotion = "promotion"
    secure = "secure"
    all = "all"


def audit(
    run: Annotated[str, typer.Option("--run", help="Name of the finished run.")],
    home: Annotated[Path, typer.Option(help="The run's home.")] = Path("~/.feddmmr"),
    dataset: Annotated[
        Path | None,
        typer.Option(help="Dataset that the run was trained on.", show_default="the demo"),
    ] = None,
    attack: Annotated[Attack, typer.Option(help="Which attack.")] = Attack.all,
    users: Annotated[int, typer.Option(min=1, help="Users whose updates are read.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that a promotion lasts.")] = 10,
    clip_norm: Annotated[
        float, typer.Option(min=1e-9, help="Clip norm of the defences, unless the run has one.")
    ] = 1.0,
    noise_multiplier: Annotated[
        float, typer.Option(min=0.1, help="Noise of the last one, unless the run has some.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Attack a run's updates and model: undefended, clipped, and clipped and noised."""
    from feddmmr.audit.audit import ATTACKS
    from feddmmr.audit.audit import audit as audited
    from feddmmr.audit.defences import privacy_of
    from feddmmr.audit.run import open_run

    if out is not None and not out.resolve().parent.is_dir():
        raise DataError("the folder of --out does not exist", where=str(out))
    opened = open_run(
        home.expanduser().resolve(), run, dataset.resolve() if dataset else None, device
    )
    own = ATTACKS + (("secure",) if opened.secure else ())
    attacks = own if attack is Attack.all else (attack.value,)
    privacy = privacy_of(opened.settings, clip_norm, noise_multiplier)
    document = audited(opened, attacks, privacy, users, rounds)
    if out is not None:
        write_output(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    _print_table(document)


def _print_table(document: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from feddmmr.audit.defences import DEFENCES

    title = (
        f"run '{document['run']}' on {document['dataset']['name']}, seed {document['seed']}: clip "
        f"norm {document['clip_norm']:g}, noise multiplier {document['noise_multiplier']:g}"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("attack", "case", "metric"):
        table.add_column(heading, no_wrap=True)
    columns = (*DEFENCES, "noise share", "chance", "control")
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in document["rows"]:
        cells = (_cell(row.get(name)) for name in columns)
        table.add_row(row["attack"], row["case"], row["metric"], *cells)
    if "hr@10" in document:
        cells = (_cell(document["hr@10"].get(name)) for name in columns)
        table.add_row("(model)", "validation, uniform-100", "HR@10", *cells)
    Console(width=140).print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
