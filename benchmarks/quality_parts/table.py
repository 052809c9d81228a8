"""The ablation table as printed: a line for each stage of a row, means where seeds are several."""

from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]

# Groups and protocols of the test split; the JSON has all.
COLUMNS = (
    ("all", "uniform-100"),
    ("all", "full"),
    ("all", "full-unseen"),
    ("cold", "full"),
    ("cold-only", "full"),
)


def print_table(result: Record) -> None:
    """Rows in the order they ran in; cold columns only where the data has cold cases."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for entry in result["rows"]:
        groups.setdefault((entry["row"], entry["stage"]), []).append(entry)
    shown = [column for column in COLUMNS if any(column[0] in e["test"] for e in result["rows"])]
    title = f"{result['dataset']['name']}: test HR@10/NDCG@10"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("row", "stage", "rounds", "seed"):
        table.add_column(heading, no_wrap=True)
    for group, protocol in shown:
        table.add_column(f"{group}\n{protocol}", justify="right", no_wrap=True)
    table.add_column("final\ngate", justify="right", no_wrap=True)
    for (row, stage), entries in groups.items():
        cells = [_metrics(entries, *column) for column in shown]
        rounds = str(entries[0]["config"]["num-rounds"])
        table.add_row(row, str(stage), rounds, _seeds(entries), *cells, _gate(entries))
    Console(width=140).print(table)
    versions = {entry["app_sha256"] for entry in result["rows"]}
    if len(versions) > 1:
        print(f"note: the app's code changed between rows ({len(versions)} versions)")


def _seeds(entries: list[Record]) -> str:
    return str(entries[0]["seed"]) if len(entries) == 1 else f"mean of {len(entries)}"


def _metrics(entries: list[Record], group: str, protocol: str) -> str:
    cells = [entry["test"].get(group, {}).get(protocol) for entry in entries]
    if not all(cells):
        return "-"
    return "/".join(f"{fmean(cell[name] for cell in cells):.4f}" for name in ("hr@10", "ndcg@10"))


def _gate(entries: list[Record]) -> str:
    """The gate of the tested rounds."""
    gates = [entry["best_gate"] for entry in entries]
    return "-" if None in gates else f"{fmean(gates):.4f}"
