"""The plots of what was tested: stages beside baselines, cold items, buckets."""

from collections.abc import Mapping, Sequence
from typing import Any

from feddmmr.runs.read import Run, cell
from shared_model.protocol.lengths import length_groups
from shared_model.protocol.metrics import PROTOCOLS

BLUE, ORANGE, GREEN, RED, GREY = "#2a6ebb", "#d9822b", "#3d8b5f", "#c23b3b", "#bbbbbb"
_SHADES = {1: "#9cc0e7", 2: "#5b95d2", 3: "#1f4e8c"}  # of the stages
_GREYS = ("#dddddd", "#c4c4c4", "#a8a8a8", "#8c8c8c")  # of the baselines
_BUCKETS = (
    *("popularity-head", "popularity-middle", "popularity-tail"),
    *("history-short", "history-medium", "history-long"),
)


def results(run: Run, baselines: Any, axes: Any) -> bool:
    """HR@10 by protocol: baselines, if they are known, and the stages."""
    bars = {
        name: [found[p]["hr@10"] for p in PROTOCOLS] for name, found in (baselines or {}).items()
    }
    colors = {name: _GREYS[place % len(_GREYS)] for place, name in enumerate(bars)}
    for number, record in run.stages:
        if record["test"]:
            name = f"Stage {number}"
            colors[name] = _SHADES[number]
            bars[name] = [_hr(cell(record, "test", "all", p)) for p in PROTOCOLS]
    _bars(axes, list(PROTOCOLS), bars, colors)
    return any(record["test"] for _, record in run.stages)


def cold_items(run: Run, _: Any, axes: Any) -> bool:
    """HR@10 of cold targets by stage, among samples of everything or of cold items."""
    groups = ("cold", "cold-only")
    tested = [(n, r) for n, r in run.stages if r["test"].get(groups[0])]
    bars = {
        f"Stage {n}": [_hr(cell(record, "test", group, "uniform-100")) for group in groups]
        for n, record in tested
    }
    _bars(axes, list(groups), bars, {f"Stage {n}": _SHADES[n] for n, _ in tested})
    for place, group in enumerate(groups):
        found = cell(tested[-1][1], "test", group, "uniform-100") if tested else None
        if not found or "candidates" not in found:  # a run of an earlier version does not say
            continue
        chance = min(1.0, 10 / (1 + found["candidates"]))
        axes.hlines(chance, place - 0.45, place + 0.45, color=RED, linestyle="--", linewidth=0.9)
    return bool(tested)


def buckets(run: Run, _: Any, axes: Any) -> bool:
    """HR@10 by popularity of the target and by length of the history."""
    tested = [(n, r) for n, r in run.stages if r["test"]]
    names = [b for b in _BUCKETS if any(b in record["test"] for _, record in tested)]
    bars = {
        f"Stage {n}": [_hr(cell(record, "test", name, "uniform-100")) for name in names]
        for n, record in tested
    }
    users = {name: cell(tested[0][1], "test", name, "uniform-100") for name in names}
    labels = [f"{n.split('-')[1]}\n{(users[n] or {}).get('users', 0):.0f} users" for n in names]
    _bars(axes, labels, bars, {f"Stage {n}": _SHADES[n] for n, _ in tested})
    for kind in ("popularity", "history"):
        places = [place for place, name in enumerate(names) if name.startswith(kind)]
        if places:
            at = (sum(places) / len(places), 1.0)
            axes.annotate(
                kind, at, xycoords=("data", "axes fraction"), ha="center", va="top", color="#666666"
            )
    return bool(names)


def spread(run: Run, _: Any, axes: Any) -> bool:
    """NDCG@10 of users by the length of their histories, a line a stage."""
    tested = [(n, r) for n, r in run.stages if length_groups(r["test"])]
    names = length_groups(tested[0][1]["test"]) if tested else []
    for number, record in tested:
        cells = [cell(record, "test", name, "full-unseen") for name in names]
        values = [found["ndcg@10"] if found else float("nan") for found in cells]
        axes.plot(values, color=_SHADES[number], marker=".", label=f"Stage {number}")
    labels = [name.removeprefix("length-").replace("-", "\u2013", 1) for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=8)
    axes.set_xlabel("items in the history")
    axes.set_ylabel("NDCG@10, full-unseen")
    axes.set_ylim(bottom=0)
    if names:
        axes.legend(ncols=3)
    return bool(names)


def _hr(values: Mapping[str, float] | None) -> float:
    return values["hr@10"] if values else float("nan")


def _bars(
    axes: Any, labels: Sequence[str], bars: Mapping[str, Sequence[float]], colors: Mapping[str, str]
) -> None:
    """Groups of bars, each bar with its height."""
    width = 0.8 / max(1, len(bars))
    for place, (name, heights) in enumerate(bars.items()):
        left = [x - 0.4 + width * (place + 0.5) for x in range(len(labels))]
        drawn = axes.bar(left, heights, width * 0.94, color=colors[name], label=name)
        axes.bar_label(
            drawn, fmt="%.3f", fontsize=6 if len(bars) * len(labels) > 12 else 8, padding=1
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("HR@10")
    axes.set_ylim(0, 1.12)
    axes.grid(visible=False, axis="x")
    if bars:
        axes.figure.legend(loc="outside upper center", ncols=6, fontsize=8, columnspacing=1)
