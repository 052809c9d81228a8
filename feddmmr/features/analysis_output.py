"""The quality report as JSON, tables and a picture."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from client_app.data.compile import publish, refuse_existing, temporary_sibling
from feddmmr.features.output import disk_faults
from shared_model.errors import DataError
from shared_model.memory.memory import BINS_PER_UNIT, Ints

PAIRS = {"consecutive": "consecutive in a history", "within": "in one user's history"}
BINS_A_BAR = 16  # of the novelty's histogram, in the picture


def write_report(folder: Path, report: dict[str, Any], drawn: dict[str, Ints]) -> None:
    """Write report.json and report.png into the new folder, in one step. Raises DataError."""
    refuse_existing(folder)
    temporary = temporary_sibling(folder)
    try:
        with disk_faults(folder):
            text = json.dumps(report, indent=2, allow_nan=False) + "\n"
            (temporary / "report.json").write_text(text, encoding="utf-8")
            draw(temporary / "report.png", report, drawn)
            publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    console.print(_facts_table(report))
    if "histories" not in report:
        console.print("No histories: give a dataset folder to learn what the features tell.")
        return
    console.print(_preferences_table(report))
    counts = report["histories"]
    console.print(
        f"Train part of the histories; similarity over {counts['similarity_users']} and novelty "
        f"over {counts['novelty_users']} of {counts['users']} users. 128: squeezed by PCA."
    )


def draw(path: Path, report: dict[str, Any], drawn: dict[str, Ints]) -> None:
    """Bars of the similarities with their intervals, and the novelty with its threshold."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(
            "the picture of the report needs matplotlib",
            todo="install the extra `features`, or leave out --output",
        ) from error

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if drawn:
        _draw_similarity(left, report)
        _draw_novelty(right, report, drawn)
    else:
        names = list(report["modalities"])
        left.bar(names, [100 * report["modalities"][name]["coverage"] for name in names])
        left.set_ylabel("items with features [%]")
        right.set_axis_off()
    figure.savefig(path, format="png", dpi=120)


def _facts_table(report: dict[str, Any]) -> Table:
    table = Table(title=f"Features of {report['items']} items")
    for column in ("", "dim", "coverage", "norms", "mean cosine", "near-duplicates"):
        table.add_column(column, justify="left" if not column else "right")
    for name, entry in report["modalities"].items():
        norm = report["norms"].get(name)
        table.add_row(
            name,
            str(entry["dim"]),
            f"{entry['coverage']:.1%}",
            f"{norm['min']:.3f} to {norm['max']:.3f}" if norm else "",
            f"{entry['mean_cosine']:.3f}",
            f"{entry['near_duplicates']['items']} items",
        )
    return table


def _preferences_table(report: dict[str, Any]) -> Table:
    table = Table(title="Do they tell what users choose? Mean cosine against random pairs")
    for column in ("", "pairs", "chosen", "random", "difference", "lift", "novelty threshold"):
        table.add_column(column, justify="right" if column not in ("", "pairs") else "left")
    for name, entry in report["modalities"].items():
        for label, part in ((name, entry["preferences"]), (f"{name}, 128", entry["squeezed"])):
            threshold = f"{part['novelty']['threshold']:.4f}" if "novelty" in part else ""
            for key, pairs in PAIRS.items():
                table.add_row(label, pairs, *_cells(part[key]), threshold)
                label = threshold = ""
    return table


def _cells(lift: dict[str, Any]) -> list[str]:
    """Chosen, random, difference and lift, with 95% intervals; "-" where there is nothing."""
    if lift["users"] < 2:
        return ["-", f"{lift['random']:.4f}", "-", "-"]
    half = lift["difference"] - lift["difference_low"]
    difference = f"{lift['difference']:+.4f} ± {half:.4f}" + ("" if lift["tells"] else " (none)")
    percent = "random is near 0"
    if lift["lift_percent"] is not None:
        half = lift["lift_percent"] - lift["lift_low"]
        percent = f"{lift['lift_percent']:+.1f}% ± {half:.1f}"
    return [f"{lift['mean']:.4f}", f"{lift['random']:.4f}", difference, percent]


def _draw_similarity(axes: Any, report: dict[str, Any]) -> None:
    names = list(report["modalities"])
    places = np.arange(len(names))
    for shift, (key, pairs) in zip((-0.2, 0.2), PAIRS.items(), strict=True):
        found = [report["modalities"][name]["preferences"][key] for name in names]
        half = [lift["difference"] - lift["difference_low"] for lift in found]
        heights = [lift["difference"] for lift in found]
        axes.bar(places + shift, heights, 0.38, yerr=half, capsize=3, label=pairs)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(places, names)
    axes.set_ylabel("mean cosine above random pairs (95%)")
    axes.set_title("Similarity of what users choose")
    axes.legend()


def _draw_novelty(axes: Any, report: dict[str, Any], drawn: dict[str, Ints]) -> None:
    for name, entry in report["modalities"].items():
        threshold = entry["preferences"]["novelty"]["threshold"]
        label = f"{name}, threshold {threshold:.3f}"
        bars = np.trim_zeros(drawn[name].reshape(-1, BINS_A_BAR).sum(axis=1), "b")
        density = bars / max(1, bars.sum()) * BINS_PER_UNIT / BINS_A_BAR
        edges = np.arange(len(bars) + 1) * BINS_A_BAR / BINS_PER_UNIT
        line = axes.stairs(density, edges, label=label)
        axes.axvline(threshold, color=line.get_edgecolor(), linestyle="--", linewidth=0.9)
    axes.set_xlabel("novelty: 1 - cosine to the nearest slot")
    axes.set_ylabel("density")
    axes.set_title("What a memory meets")
    axes.legend(loc="upper right")
