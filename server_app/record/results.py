"""A run's results as tables: the closing one, a row a stage, and every group and protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from server_app.record.schema import SPLITS, ManifestDocument, StageRecord
from server_app.record.selection import selected
from server_app.record.units import size, spoken
from shared_model.protocol.intervals import with_interval
from shared_model.protocol.metrics import PROTOCOLS

WIDTH = 80  # columns of the log of a run, which no terminal wraps

# The buckets are in the manifest alone.
TABLE_GROUPS = ("all", "all-with-cold", "as-cold", "cold", "cold-only")
RESULT_GROUPS = ("all", "cold")  # of a row a stage: its warm and its cold targets
_MARKS = {"complete": "", "running": " …", "failed": " failed", "stale": " stale"}

_HEADINGS = ("kept\nround", "valid\nNDCG@10", "warm targets", "cold targets", "time", "sent")

_TIGHT: Any = {"padding": (0, 1, 0, 0), "show_edge": False}  # what 80 columns hold

Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]


def results_table(document: ManifestDocument, baselines: Baselines | None = None) -> Table:
    """A row a stage: the round that was kept and why, the test split, what it cost; 80 columns.

    Below them what ``baselines`` have, if they are known: name -> protocol -> figures.
    """
    title = f"run '{document['run']}', test: HR@10 among 100, 95% Wilson intervals over users"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, **_TIGHT)
    table.add_column("")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for number, record in sorted(document["stages"].items()):
        table.add_row(f"stage {number}{_MARKS[record['status']]}", *_cells(record))
    for name, found in (baselines or {}).items():
        table.add_row(name, "", "", with_interval(found.get("uniform-100")), "", "", "")
    return table


def _cells(record: StageRecord) -> list[str]:
    test, rounds = record["test"], record["rounds"]
    sent = sum(entry["bytes_down"] + entry["bytes_up"] for entry in rounds)
    return [
        str(record["best_round"]),
        f"{selected(record):.3f}" if record["valid"] else "-",
        *(with_interval(test.get(group, {}).get("uniform-100")) for group in RESULT_GROUPS),
        spoken(sum(entry["seconds"] for entry in rounds)),
        size(sent),
    ]


def groups_table(document: ManifestDocument, groups: Sequence[str] = TABLE_GROUPS) -> Table:
    """Validation and test of every stage: each group under each protocol."""
    title = "every group, HR@10 / NDCG@10"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, **_TIGHT)
    for heading in ("stage", "split", "group"):
        table.add_column(heading)
    for protocol in PROTOCOLS:
        table.add_column(protocol, justify="right")
    for number, record in sorted(document["stages"].items()):
        for split in SPLITS:
            for group in groups:
                if cells := record[split].get(group):
                    figures = (_figures(cells.get(protocol)) for protocol in PROTOCOLS)
                    table.add_row(number, split, group, *figures)
    return table


def _figures(values: Mapping[str, float] | None) -> str:
    return "-" if values is None else f"{values['hr@10']:.3f} / {values['ndcg@10']:.3f}"
