"""Results as tables for the terminal: figures with errors, differences, bars."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Result = dict[str, Any]
_PAIR = ("hr@10", "ndcg@10")


def tables(result: Result) -> list[Any]:
    """All tables of one benchmark."""
    data = result["dataset"]
    head = (
        f"{result['benchmark']}: {data['users']} users, {data['items']} items "
        f"({data['cold_items']} cold), {data['interactions']} interactions"
    )
    found: list[Any] = [head]
    for group in dict.fromkeys(group for group, _ in columns_of(result)):
        found += [figures_table(result, group), differences_table(result, group)]
    return [*found, bars_table(result)] if result["bars"] else found


def columns_of(result: Result) -> list[tuple[str, str]]:
    """Group and protocol of each column, in order."""
    return list(dict.fromkeys((row["group"], row["protocol"]) for row in result["rows"]))


def rows_of(result: Result) -> list[str]:
    """The rows in order."""
    return list(dict.fromkeys(row["row"] for row in result["rows"]))


def figures_table(result: Result, group: str) -> Table:
    """HR@10 / NDCG@10: a mean over seeds, with its standard error where there are two."""
    columns = [column for column in columns_of(result) if column[0] == group]
    title = f"{group}: test, HR@10 / NDCG@10, means over seeds ± standard error"
    table = _table(title, "", *(protocol for _, protocol in columns))
    found = {(r["row"], r["group"], r["protocol"]): r for r in result["rows"]}
    for row in rows_of(result):
        cells = [figures(found.get((row, *cell))) for cell in columns]
        table.add_row(row, *cells)
    return table


def figures(row: Result | None) -> str:
    """Of one cell."""
    if row is None:
        return "-"
    means = " / ".join(f"{row[name]['mean']:.4f}" for name in _PAIR)
    errors = [row[name]["error_seeds"] for name in _PAIR]
    if None in errors:
        return means
    return means + "\n± " + " / ".join(f"{error:.4f}" for error in errors)


def differences_table(result: Result, group: str) -> Table:
    """What the last stage has more than every other row: NDCG@10, of the same users and seeds."""
    last = last_stage(result)
    columns = [column for column in columns_of(result) if column[0] == group]
    title = f"{group}: {last}, NDCG@10 more than ... ± over users (± over seeds)"
    table = _table(title, "", *(protocol for _, protocol in columns))
    found = {
        (d["against"], d["group"], d["protocol"]): d
        for d in result["differences"]
        if d["row"] == last and d["metric"] == "ndcg@10"
    }
    for row in dict.fromkeys(against for against, _, _ in found):
        cells = [difference(found.get((row, *cell))) for cell in columns]
        table.add_row(row, *cells)
    return table


def last_stage(result: Result) -> str:
    """The row of the last stage that is there."""
    stages = [row for row in rows_of(result) if row.startswith("stage ")]
    return stages[-1] if stages else ""


def difference(found: Result | None) -> str:
    """Of one cell."""
    if found is None:
        return "-"
    share = "" if found["relative"] is None else f" ({found['relative']:+.1%})"
    text = f"{found['difference']:+.4f}{share}"
    if found["error_users"] is not None:
        text += f"\n± {found['error_users']:.4f}"
    if found["error_seeds"] is not None:
        text += f" (± {found['error_seeds']:.4f})"
    return text


def bars_table(result: Result) -> Table:
    """A line a bar."""
    table = _table("bars", "bar", "", "asked for", "found", "errors away")
    for bar in result["bars"]:
        verdict = {True: "ok", False: "MISSED", None: "-"}[bar["reached"]]
        numbers = (bar["wanted"], bar["found"], bar["beyond"])
        table.add_row(bar["what"], verdict, *("-" if n is None else f"{n:.4g}" for n in numbers))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table
