"""Runs as tables for the terminal: all of them, the stages of one, and what was verified."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from feddmmr.runs.read import (
    HEADLINE,
    Run,
    cell,
    groups_of,
    plain,
    read_run,
    rounds_of,
    run_names,
    total,
    two,
)
from feddmmr.runs.verify import Check
from server_app.record.results import TABLE_GROUPS
from server_app.record.schema import StageRecord
from server_app.record.units import size, spoken
from shared_model.errors import ManifestError
from shared_model.protocol.metrics import PROTOCOLS

_STYLES = {"complete": "green", "running": "yellow", "failed": "red", "stale": "magenta"}
_STYLES |= {"interrupted": "red"}  # the record says running, and no process writes the run
_MARKS = {True: Text("ok", "green"), False: Text("WRONG", "bold red"), None: Text("-", "dim")}


def overview(home: Path) -> list[Any]:
    """All runs below ``home``; one that cannot be read has a row that says so."""
    names = run_names(home)
    if not names:
        return [f"no runs below {home / 'runs'}: start one with `feddmmr run`"]
    table = _table(f"runs below {home / 'runs'}", "run", "data", "stages", "saved")
    table.add_column("test, uniform-100\nHR@10 / NDCG@10", justify="right")
    table.add_column("cold, uniform-100\nHR@10 / NDCG@10", justify="right")
    faults = []
    table.add_column("note")
    for name in names:
        try:
            table.add_row(name, *_overview_row(read_run(home, name)))
        except ManifestError as error:
            table.add_row(name, "-", Text(error.what, "red"), *"----")
            faults.append(f"{name}: {error}")
    return [table, *faults]


def _overview_row(run: Run) -> list[Any]:
    data, newest = run.data["dataset"], run.newest_complete()
    stages = Text()
    for number, record in run.stages:
        stages.append(" " if stages else "").append(_state(run, number, record))
    tested = run.data["stages"][str(newest)] if newest else None
    figures = ["-", "-"]
    if tested is not None:
        figures = [two(cell(tested, "test", group, HEADLINE[1])) for group in ("all", "cold")]
    return [
        f"{data['users']} users, {data['items']} items",
        stages,
        run.age,
        *figures,
        run.note.line,
    ]


def _state(run: Run, number: int, record: StageRecord) -> Text:
    """A stage in a word, with its progress where it has not come to its end."""
    status, done = str(record["status"]), record["rounds"][-1]["round"] if record["rounds"] else 0
    if status == "running" and run.writer is None:
        status = "interrupted"
    progress = "" if status == "complete" else f" {done}/{rounds_of(number, record)}"
    return Text(f"{number} {status}{progress}", _STYLES[status])


def facts(run: Run) -> list[str]:
    """Where a run is, what it is made of, and what it promises about privacy."""
    app, data = run.data["app"], run.data["dataset"]
    features: Mapping[str, Any] = run.data["features"]
    packages = ", ".join(f"{name} {version}" for name, version in app["packages"].items())
    lines = [
        f"run      {run.name}, saved {run.age}, {run.folder}",
        f"app      {app['name']} {app['version']}, code {app['sha256'][:12]}, {packages}",
        f"data     {data['users']} users, {data['items']} items ({data['cold_items']} cold), "
        f"{data['interactions']} interactions, sha256 {data['sha256'][:12]}",
    ]
    if run.note.line:
        lines.append(f"note     {run.note.line}")
    if features["sha256"]:
        shares = ", ".join(
            f"{kind} {features[f'{kind}_dim']} by {encoder}, {features[f'{kind}_coverage']:.0%}"
            for kind, encoder in sorted(features["encoders"].items(), reverse=True)
        )
        lines.append(f"features {shares}, sha256 {features['sha256'][:12]}")
    if writer := run.writer:
        lines.insert(1, f"writer   {writer}; to end it: {writer.ending}")
    for number, record in run.stages:
        if record["status"] == "running":
            ended = "" if run.writer else ": the same command resumes it"
            lines.append(f"stage    {_state(run, number, record)}{ended}")
    for number, record in run.stages:
        if ledger := scalars(record["privacy"]):
            told = ", ".join(f"{key} {plain(value)}" for key, value in ledger.items())
            lines.append(f"privacy  stage {number}: {told}")
    return lines


def scalars(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """A privacy ledger's single values, in its order."""
    return {k: v for k, v in ledger.items() if isinstance(v, bool | int | float | str)}


def stages_table(run: Run) -> Table:
    """What each stage cost."""
    table = _table("what each stage cost", "stage")
    for heading in ("rounds", "best round", "loss", "time", "down", "up", "drops"):
        table.add_column(heading, justify="right")
    for number, record in run.stages:
        losses = [e["loss"] for e in record["rounds"] if e["loss"] is not None]
        dropped = sum(len(entry["dropped"]) for entry in record["rounds"])
        table.add_row(
            _state(run, number, record),
            f"{max(0, len(record['rounds']) - 1)}/{rounds_of(number, record)}",
            str(record["best_round"]),
            f"{losses[0]:.3f} to {losses[-1]:.3f}" if losses else "-",
            spoken(total(record, "seconds")),
            size(total(record, "bytes_down")),
            size(total(record, "bytes_up")),
            str(dropped + len(record["test_dropped"])),
        )
    return table


def parts_table(run: Run) -> Table:
    """The test of the parts of group "all", stage by stage: buckets, and tenths by length."""
    table = _table("parts of the test split, HR@10 / NDCG@10", "group", "stage")
    for heading in ("users", *PROTOCOLS):
        table.add_column(heading, justify="right")
    tested = [(number, record) for number, record in run.stages if record["test"]]
    groups = groups_of(record for _, record in tested)
    for group in [name for name in groups if name not in TABLE_GROUPS]:
        for number, record in tested:
            if cells := record["test"].get(group):
                figures = [two(cells.get(protocol)) for protocol in PROTOCOLS]
                table.add_row(group, str(number), f"{cells['full']['users']:.0f}", *figures)
    return table


def checks_table(run: Run, checks: Sequence[Check]) -> Table:
    """What was verified, and what was found."""
    table = _table(f"run '{run.name}'", "", "what", "found")
    for check in checks:
        table.add_row(_MARKS[check.ok], check.what, check.found)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
