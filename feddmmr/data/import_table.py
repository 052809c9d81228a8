"""The record of an import as a table for the terminal, at most 80 columns wide."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feddmmr.data.import_record import COUNTED

_LONGEST_ID = 24


def print_record(imported: dict[str, Any], in_histories: int) -> None:
    """Print the member "imported" of dataset.json; `in_histories` is its "interactions"."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(imported))
    for line in _remarks(imported, in_histories):
        console.print(Text(f"  {line}"))


def _table(imported: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=True)
    table.add_column("import", no_wrap=True)
    for what in COUNTED:
        table.add_column(what, justify="right", no_wrap=True)
    table.add_row("read", *(str(imported["read"][what]) for what in COUNTED))
    for rule in imported["dropped"]:
        gone = (f"-{rule[what]}" if rule[what] else "0" for what in COUNTED)
        table.add_row(Text(f"  {rule['reason']}"), *gone)
    table.add_row("kept", *(str(imported["kept"][what]) for what in COUNTED))
    return table


def _remarks(imported: dict[str, Any], in_histories: int) -> list[str]:
    """What the table does not say, one line each."""
    lines = []
    for rule in imported["dropped"]:
        if named := rule.get("examples"):
            ids = ", ".join(repr(one[:_LONGEST_ID]) for one in named)
            lines.append(f"{rule['reason']}: for example {ids}")
    if held_out := imported["kept"]["interactions"] - in_histories:
        lines.append(f"{held_out} of the kept interactions are with cold items, and held out")
    if imported["new_items"]:
        lines.append(f"{imported['new_items']} items have no interaction: they are cold")
    lines.append(_ties(imported["ties"], imported["kept"]["users"]))
    return lines


def _ties(ties: dict[str, Any], users: int) -> str:
    sharing = ties["users_sharing_newest_time"]
    then = f" (their test item rests on --ties {ties['rule']})" if sharing else ""
    return f"{sharing} of {users} users share their newest time{then}"
