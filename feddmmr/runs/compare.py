"""Runs side by side: test figures with their differences, and the settings that differ."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from feddmmr.runs.read import Run, cell, groups_of, plain, stale, two
from server_app.record.results import TABLE_GROUPS
from server_app.record.schema import PARTS
from shared_model.protocol.metrics import PROTOCOLS
from shared_model.stages import STAGES

_ABSENT = "-"


def compared(runs: Sequence[Run], every_group: bool = False) -> list[Any]:
    """A warning if the data differ, the figures, and the settings that differ."""
    parts: list[Any] = []
    for name in PARTS:
        different = [r.name for r in runs if r.data[name]["sha256"] != runs[0].data[name]["sha256"]]
        if different:
            others = ", ".join(different)
            parts.append(f"note: other {name} than {runs[0].name}'s: {others}")
    return [*parts, _figures(runs, every_group), _settings(runs)]


def _figures(runs: Sequence[Run], every_group: bool) -> Table:
    title = "test split, HR@10 / NDCG@10, in brackets the difference to the first run"
    table = Table(title=title, title_justify="left")
    for heading in ("stage", "group", "protocol"):
        table.add_column(heading, no_wrap=True)
    for run in runs:
        table.add_column(Text(run.name), justify="right")
    groups = groups_of(record for run in runs for _, record in run.stages)
    for number in STAGES:
        records = [run.data["stages"].get(str(number)) for run in runs]
        marks = [stale(record) if record else "" for record in records]
        for group in groups:
            if every_group or group in TABLE_GROUPS:
                for protocol in PROTOCOLS:
                    values = [_values(run, number, group, protocol) for run in runs]
                    if any(values):
                        table.add_row(str(number), group, protocol, *_cells(values, marks))
    return table


def _values(run: Run, number: int, group: str, protocol: str) -> dict[str, float] | None:
    record = run.data["stages"].get(str(number))
    return None if record is None else cell(record, "test", group, protocol)


def _cells(values: Sequence[dict[str, float] | None], marks: Sequence[str]) -> list[str]:
    first, cells = values[0], []
    for place, (found, mark) in enumerate(zip(values, marks, strict=True)):
        compares = place and first is not None and found is not None
        more = f" ({difference(first, found)})" if compares else ""
        cells.append(two(found) + more + (mark if found else ""))
    return cells


def difference(first: Any, other: Any) -> str:
    """What the second has more of HR@10 / NDCG@10."""
    return " / ".join(f"{other[name] - first[name]:+.3f}" for name in ("hr@10", "ndcg@10"))


def _settings(runs: Sequence[Run]) -> Any:
    table = Table(title="settings that differ", title_justify="left")
    for heading in ("stage", "key", *(run.name for run in runs)):
        table.add_column(Text(heading))
    for number in STAGES:
        records = [run.data["stages"].get(str(number)) for run in runs]
        configs = [record["config"] if record else {} for record in records]
        for key in sorted({key for config in configs for key in config}):
            shown = [plain(config.get(key, _ABSENT)) for config in configs]
            present = [value for value, config in zip(shown, configs, strict=True) if config]
            if len(set(present)) > 1:  # a stage that a run lacks is no setting
                table.add_row(str(number), key.replace("_", "-"), *shown)
    return table if table.row_count else "settings: the same in all stages"
