"""One page about a run: everything in one HTML file, and the plots as PNG files beside it."""

from pathlib import Path
from typing import Any

from feddmmr.launch.command import defaults, own_app
from feddmmr.runs.data import baselines_of, data_of
from feddmmr.runs.page import Plot, refuse_other, render, write_page
from feddmmr.runs.plots import PLOTS, draw, epsilons
from feddmmr.runs.read import Run, cell, groups_of, plain, rounds_of, stale, total, two
from feddmmr.runs.tables import scalars
from server_app.record.report import few_candidates, shortfalls
from server_app.record.results import Baselines
from server_app.record.schema import StageRecord
from server_app.record.units import size, spoken
from shared_model.protocol.metrics import PROTOCOLS, SAMPLED

_TEMPLATE = "report.html"
_MANY = 200  # dropped nodes that the page lists


def write_report(run: Run, home: Path, folder: Path | None, out: Path) -> Path:
    """Write the page and its plots into ``out``; returns the page's path.

    ``folder`` is the run's dataset, for the baselines. A report that is there is written anew;
    ``DataError`` for a folder with anything else in it.
    """
    refuse_other(out)
    dataset = data_of(run, home, folder)
    baselines = baselines_of(run, dataset)
    plots = draw(run, baselines)
    page = _page(run, dataset.info["name"] if dataset else "", baselines, plots)
    return write_page(out, page, plots, PLOTS)


def _page(run: Run, name: str, baselines: Baselines | None, plots: list[Plot]) -> str:
    return render(
        "feddmmr.runs",
        _TEMPLATE,
        run=run,
        name=name,
        **_head(run),
        data=run.data,
        stages=[_stage(number, record) for number, record in run.stages],
        plots=plots,
        protocols=PROTOCOLS,
        baselines=baselines,
        rows=_rows(run, baselines),
        groups=_groups(run),
        notes=_notes(run),
        settings=_settings(run),
        dropped=_dropped(run)[:_MANY],
        drops=len(_dropped(run)),
        ledgers=[(n, _ledger(record)) for n, record in run.stages if record["privacy"]],
        plain=plain,
    )


def _head(run: Run) -> dict[str, str]:
    """When the run was saved, with which seeds, and how long its rounds took."""
    seconds = sum(total(record, "seconds") for _, record in run.stages)
    return {
        "saved": f"{run.saved:%Y-%m-%d %H:%M} UTC",
        "seeds": ", ".join(dict.fromkeys(str(record["seed"]) for _, record in run.stages)) or "-",
        "duration": spoken(seconds),
    }


def _stage(number: int, record: StageRecord) -> dict[str, Any]:
    """A stage as the page shows it."""
    hidden = cell(record, "test", "all", "uniform-100")
    cold = cell(record, "test", "cold", "uniform-100")
    return {
        "number": number,
        "status": record["status"],
        "done": max((entry["round"] for entry in record["rounds"]), default=0),
        "of": rounds_of(number, record),
        "best": record["best_round"],
        "hr": None if hidden is None else hidden["hr@10"],
        "among": few_candidates(hidden or {}) or SAMPLED,
        "cold": None if cold is None else cold["hr@10"],
        "time": spoken(total(record, "seconds")),
        "down": size(total(record, "bytes_down")),
        "up": size(total(record, "bytes_up")),
        "sha256": record["sha256"][:12],
    }


def _rows(run: Run, baselines: Baselines | None) -> list[tuple[str, list[str]]]:
    """Who, and HR@10 / NDCG@10 of group "all" on the test split by protocol."""
    rows = [(name, [two(found[p]) for p in PROTOCOLS]) for name, found in (baselines or {}).items()]
    for number, record in run.stages:
        if record["test"]:
            cells = [two(cell(record, "test", "all", p)) for p in PROTOCOLS]
            rows.append((f"Stage {number}{stale(record)}", cells))
    return rows


def _groups(run: Run) -> list[tuple[str, int, list[tuple[str, list[str]]]]]:
    """Group, its users, and the figures of each stage that has it; "all" is in the first table."""
    tested = [(number, record) for number, record in run.stages if record["test"]]
    groups = []
    for group in groups_of(record for _, record in tested):
        if group == "all":
            continue
        having = [(n, record) for n, record in tested if group in record["test"]]
        users = int(having[0][1]["test"][group]["full"]["users"])
        figures = [
            (f"{n}{stale(r)}", [two(cell(r, "test", group, p)) for p in PROTOCOLS])
            for n, r in having
        ]
        groups.append((group, users, figures))
    return groups


def _notes(run: Run) -> list[str]:
    """Among how many a target is ranked on average, and where that is not what a protocol says."""
    notes = []
    for number, record in run.stages:
        notes += [f"Stage {number}: {note}." for note in shortfalls(record["test"])]
        found = record["test"].get("all", {})
        counts = {p: found[p]["candidates"] for p in PROTOCOLS if "candidates" in found.get(p, {})}
        if counts:
            told = ", ".join(f"{protocol} {count:.1f}" for protocol, count in counts.items())
            notes.append(f"Stage {number}, candidates of a target on average: {told}.")
    return notes


def _settings(run: Run) -> list[tuple[str, list[str], bool]]:
    """Key, its value in each stage, and whether any of them is not the default."""
    usual = {key.replace("-", "_"): value for key, value in defaults(own_app()).items()}
    configs = [record["config"] for _, record in run.stages]
    rows = []
    for key in sorted({key for config in configs for key in config}):
        values = [config.get(key) for config in configs]
        changed = any(value != usual.get(key) for value in values)
        rows.append((key.replace("_", "-"), [plain(value) for value in values], changed))
    return rows


def _dropped(run: Run) -> list[tuple[int, int, str, str]]:
    """Stage, round, node and reason of each drop; the test counts as the best round."""
    rows = []
    for number, record in run.stages:
        for entry in record["rounds"]:
            rows += [(number, entry["round"], d["node"], d["reason"]) for d in entry["dropped"]]
        best = record["best_round"]
        rows += [(number, best, d["node"], d["reason"]) for d in record["test_dropped"]]
    return rows


def _ledger(record: StageRecord) -> dict[str, Any]:
    """A privacy ledger's scalars, and what was spent in the end."""
    spent = epsilons(record)
    last = {f"epsilon after round {spent[-1][0]}": spent[-1][1]} if spent else {}
    return scalars(record["privacy"]) | last
