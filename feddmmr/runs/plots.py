"""A run's plots: what was measured round by round, in all stages one after the other.

Each is a figure for a page and for print, or nothing where the run has nothing to show.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from feddmmr.runs.page import Plot, plot
from feddmmr.runs.plots_results import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    buckets,
    cold_items,
    results,
    spread,
)
from feddmmr.runs.read import Cost, Run
from server_app.record.results import Baselines
from server_app.record.schema import MISHAPS, RoundRecord, StageRecord

_FEW = 40  # points that are marked one by one
_GROUPS = {"all": BLUE, "all-with-cold": GREEN, "as-cold": ORANGE}


def draw(run: Run, baselines: Baselines | None) -> list[Plot]:
    """The plots that this run has something to show in. ``ConfigError`` without matplotlib."""
    plots = []
    for name, (title, caption, panels, paint) in PLOTS.items():
        plots.append(plot(name, title, caption, panels, partial(paint, run, baselines)))
    return [one for one in plots if one is not None]


def _entries(run: Run) -> Iterator[tuple[int, RoundRecord]]:
    """Every round with its place in the run: a stage's round 0 stands where the last one ended."""
    start = 0
    for _, record in run.stages:
        for entry in record["rounds"]:
            yield start + entry["round"], entry
        start += max((entry["round"] for entry in record["rounds"]), default=0)


def _curve(run: Run, read: Callable[[RoundRecord], Any]) -> tuple[list[int], list[float]]:
    """Places and values of what some rounds have."""
    found = [(place, read(entry)) for place, entry in _entries(run)]
    kept = [(place, float(value)) for place, value in found if value is not None]
    return [place for place, _ in kept], [value for _, value in kept]


def _line(axes: Any, run: Run, read: Callable[[RoundRecord], Any], label: str, color: str) -> bool:
    places, values = _curve(run, read)
    if places:
        marker = "." if len(places) < _FEW else ""
        axes.plot(places, values, color=color, label=label, linewidth=1.5, marker=marker)
    return bool(places)


def _legend(*panels: Any) -> None:
    """What the curves of all panels are, above them: never on a curve."""
    found = [panel.get_legend_handles_labels() for panel in panels]
    named = {text: mark for marks, texts in found for mark, text in zip(marks, texts, strict=True)}
    if named:
        place: Any = {"loc": "outside upper center", "ncols": 6, "fontsize": 8, "columnspacing": 1}
        panels[0].figure.legend(list(named.values()), list(named), **place)


def _stages(axes: Any, run: Run, *, named: bool = True) -> None:
    """Where stages begin, and the best round of each."""
    start = 0
    for number, record in run.stages:
        length = max((entry["round"] for entry in record["rounds"]), default=0)
        if start:
            axes.axvline(start, color=GREY, linewidth=0.8)
        if record["checkpoint"]:
            axes.axvline(start + record["best_round"], color=GREY, linewidth=0.8, linestyle=":")
        if named and length:
            axes.annotate(
                f"Stage {number}",
                (start + length / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color="#666666",
                fontsize=9,
            )
        start += length
    axes.set_xlim(-0.02 * start - 0.5, 1.02 * start + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _validation(run: Run, _: Baselines | None, upper: Any, lower: Any) -> bool:
    shown = False
    for axes, protocol, metric in ((upper, "uniform-100", "hr@10"), (lower, "full", "ndcg@10")):
        for group, color in _GROUPS.items():

            def read(entry: RoundRecord, group: str = group, at: Any = (protocol, metric)) -> Any:
                return entry.get("valid", {}).get(group, {}).get(at[0], {}).get(at[1])

            shown |= _line(axes, run, read, group, color)
        _stages(axes, run, named=axes is upper)
        axes.set_ylabel(f"{metric.upper()}, {protocol}")
    _legend(upper)
    lower.set_xlabel("round")
    return shown


def _loss(run: Run, _: Baselines | None, axes: Any) -> bool:
    shown = _line(axes, run, lambda entry: entry["loss"], "next item", BLUE)
    for name, color in (("alignment", ORANGE), ("load_balance", GREEN)):

        def read(entry: RoundRecord, name: str = name) -> Any:
            return entry.get("losses", {}).get(name)

        _line(axes, run, read, name.replace("_", " "), color)
    _stages(axes, run)
    axes.set_ylabel("nats a target")
    axes.set_xlabel("round")
    _legend(axes)
    return shown


def _mixture(run: Run, _: Baselines | None, gate: Any, router: Any) -> bool:
    shown = _line(gate, run, lambda entry: entry.get("gate"), "gate", RED)
    for name, color in (("visual", ORANGE), ("text", GREEN)):

        def read(entry: RoundRecord, name: str = name) -> Any:
            return entry.get("router", {}).get(name)

        _line(router, run, read, name, color)
    for axes in (gate, router):
        _stages(axes, run, named=axes is gate)
    gate.set_ylabel("gate")
    router.set_ylabel("mean router weight")
    router.set_ylim(0, 1)
    router.set_xlabel("round")
    _legend(gate, router)
    return shown


def _traffic(run: Run, _: Baselines | None, size: Any, seconds: Any) -> bool:
    shown = False
    directions: tuple[tuple[Cost, str, str], ...]
    directions = (("bytes_down", "down", BLUE), ("bytes_up", "up", ORANGE))
    for name, label, color in directions:

        def read(entry: RoundRecord, name: Cost = name) -> float:
            return float(entry[name]) / 1e6

        shown |= _line(size, run, read, label, color)
    _line(seconds, run, lambda entry: entry["seconds"], "seconds", GREEN)
    for axes in (size, seconds):
        _stages(axes, run, named=axes is size)
        axes.set_ylim(bottom=0)
    size.set_ylabel("MB a round, all nodes")
    seconds.set_ylabel("seconds a round")
    seconds.set_xlabel("round")
    _legend(size, seconds)
    return shown


def _dropped(run: Run, _: Baselines | None, axes: Any) -> bool:
    """Nodes that were left out of a round, or scaled down in it."""
    shown = False
    for name, color, marker in zip(MISHAPS, (RED, ORANGE), "x.", strict=True):
        found = [(place, d["node"]) for place, e in _entries(run) for d in e.get(name, [])]
        if found:
            places, nodes = zip(*found, strict=True)
            axes.scatter(
                places, [ascii(n)[1:-1][:30] for n in nodes], c=color, marker=marker, label=name
            )
            shown = True
    _stages(axes, run)
    axes.set_xlabel("round")
    _legend(axes)
    return shown


def epsilons(record: StageRecord) -> list[tuple[int, float]]:
    """Rounds at which the ledger was told, and the run's epsilon by then."""
    return [(e["round"], float(e["epsilon"])) for e in record["rounds"] if "epsilon" in e]


def _privacy(run: Run, _: Baselines | None, axes: Any) -> bool:
    start, shown = 0, False
    for record in (record for _number, record in run.stages):
        if spent := epsilons(record):
            places, values = zip(*spent, strict=True)
            axes.plot([start + p for p in places], values, color=RED, marker=".")
            shown = True
        start += max((entry["round"] for entry in record["rounds"]), default=0)
    _stages(axes, run)
    axes.set_ylabel("epsilon spent")
    axes.set_xlabel("round")
    return shown


# Name: title, caption, panels, and who draws it; those of as many panels stand side by side.
PLOTS: dict[str, tuple[str, str, int, Callable[..., bool]]] = {
    "validation": (
        "Validation",
        "Solid lines: a stage begins. Dotted: its best round, the one that is kept and tested. "
        "“as-cold” scores each target by its content alone.",
        2,
        _validation,
    ),
    "mixture": (
        "Gate and router",
        "How much the experts add to the state of SASRec, and how the router shares that out.",
        2,
        _mixture,
    ),
    "results": ("Test", "HR@10 of group “all”, by the best round of each stage.", 1, results),
    "cold-items": (
        "Cold items",
        "Test, uniform-100: targets without a trained ID among items of every kind, and among "
        "cold items alone. Dashed: chance.",
        1,
        cold_items,
    ),
    "buckets": (
        "Popularity and history length",
        "Test, uniform-100, group “all”: by popularity of the target, by length of the history.",
        1,
        buckets,
    ),
    "spread": (
        "The spread over users",
        "Test, full-unseen, group “all”: users in tenths by the length of their histories, or in "
        "fewer parts where many have one length.",
        1,
        spread,
    ),
    "loss": ("Training loss", "Stage 1: full softmax; then the sampled estimate of it.", 1, _loss),
    "traffic": ("Bytes and seconds", "Rounds with a validation send the model twice.", 2, _traffic),
    "nodes": ("Nodes left out", "Dropped from a round, or clipped to the usual norm.", 1, _dropped),
    "privacy": ("Privacy", "What the ledger says was spent, round by round.", 1, _privacy),
}
