"""One page about a benchmark's results: tables, bars and plots of every dataset."""

from functools import partial
from pathlib import Path
from typing import Any

from feddmmr.benchmark import table
from feddmmr.runs.page import Plot, plot, refuse_other, render, write_page
from feddmmr.runs.plots_results import BLUE, GREEN, GREY, ORANGE, RED

Result = dict[str, Any]
_KINDS = ("-figures", "-differences", "-validation")  # of plots, after the dataset's name
_COLORS = {"control": ORANGE, "stage 1": "#9cc0e7", "stage 2": "#5b95d2", "stage 3": "#1f4e8c"}


def write_results(results: list[Result], out: Path) -> Path:
    """Write page and plots into ``out``; ``ConfigError`` without the extra that draws them."""
    refuse_other(out)
    drawn = {result["benchmark"]: _plots(result) for result in results}
    page = render(
        "feddmmr.benchmark",
        "benchmark.html",
        results=results,
        plots=drawn,
        table=table,
        figures={result["benchmark"]: _figures(result) for result in results},
    )
    plots = [one for found in drawn.values() for one in found]
    older = [path.stem for path in out.glob("*.png") if path.stem.endswith(_KINDS)]
    return write_page(out, page, plots, older)


def _figures(result: Result) -> list[tuple[str, list[str], list[str]]]:
    """Each row: its figures by column, and what the last stage has more."""
    cells = {(r["row"], r["group"], r["protocol"]): r for r in result["rows"]}
    more = {
        (d["against"], d["group"], d["protocol"]): d
        for d in result["differences"]
        if d["row"] == table.last_stage(result) and d["metric"] == "ndcg@10"
    }
    columns = table.columns_of(result)
    return [
        (
            row,
            [table.figures(cells.get((row, *column))) for column in columns],
            [table.difference(more.get((row, *column))) for column in columns],
        )
        for row in table.rows_of(result)
    ]


def _plots(result: Result) -> list[Plot]:
    """What there is to draw of one dataset."""
    name = result["benchmark"]
    wanted = {
        "figures": ("Test", "NDCG@10, means over seeds with their standard error.", _draw_rows),
        "differences": (
            "Against each other row",
            "NDCG@10 that the last stage has more, of the same users and seeds, with two standard "
            "errors over users; of the groups and protocols that both are tested on.",
            _draw_differences,
        ),
        "validation": (
            "Validation",
            "NDCG@10, full: the stages one after the other, and Stage 1 for as many rounds.",
            _draw_curves,
        ),
    }
    found = [
        plot(f"{name}-{kind}", f"{name}: {title}", caption, 1, partial(paint, result))
        for kind, (title, caption, paint) in wanted.items()
    ]
    return [one for one in found if one is not None]


def _draw_rows(result: Result, axes: Any) -> bool:
    cells = {(r["row"], r["group"], r["protocol"]): r["ndcg@10"] for r in result["rows"]}
    columns, rows = table.columns_of(result), table.rows_of(result)
    width = 0.8 / max(1, len(rows))
    for place, row in enumerate(rows):
        at = [x - 0.4 + width * (place + 0.5) for x in range(len(columns))]
        found = [cells.get((row, *column)) for column in columns]
        heights = [one["mean"] if one else 0.0 for one in found]
        errors = [(one or {}).get("error_seeds") or 0.0 for one in found]
        color = _COLORS.get(row, GREY)
        axes.bar(at, heights, width * 0.94, yerr=errors, color=color, label=row)
    labels = ["\n".join(column) for column in columns]
    axes.set_xticks(range(len(columns)), labels, fontsize=7)
    axes.set_ylabel("NDCG@10")
    axes.grid(visible=False, axis="x")
    axes.figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return bool(rows)


def _draw_differences(result: Result, axes: Any) -> bool:
    last = table.last_stage(result)
    shown: list[str] = []
    for protocol, color, offset in (("full-unseen", BLUE, 0.15), ("uniform-100", GREEN, -0.15)):
        found = [
            one
            for one in result["differences"]
            if (one["row"], one["metric"]) == (last, "ndcg@10")
            and (one["group"], one["protocol"]) == ("all", protocol)
        ]
        shown = [one["against"] for one in found] or shown
        errors = [2 * (one["error_users"] or 0.0) for one in found]
        places = [place + offset for place in range(len(found))]
        values = [one["difference"] for one in found]
        axes.errorbar(
            values, places, xerr=errors, fmt="o", color=color, label=protocol, markersize=4
        )
    axes.axvline(0, color=RED, linewidth=0.8)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_xlabel(f"NDCG@10 of {last}, group “all”, minus the row's")
    axes.legend(fontsize=8)
    return bool(shown)


def _draw_curves(result: Result, axes: Any) -> bool:
    curves = []
    for seed in result["seeds"]:
        start = 0
        for run in (run for run in result["runs"] if run["seed"] == seed):
            offset = 0 if run["row"] in ("control", "stage 1") else start
            start = offset + run["rounds"]
            places = [offset + round_ for round_, _ in run["valid_ndcg@10"]]
            values = [value for _, value in run["valid_ndcg@10"]]
            label = run["row"] if seed == result["seeds"][0] else None
            color = _COLORS[run["row"]]
            curves.append(axes.plot(places, values, color=color, linewidth=1.2, label=label))
    axes.set_xlabel("round")
    axes.set_ylabel("NDCG@10, full")
    if curves:
        axes.legend(fontsize=8)
    return bool(curves)
