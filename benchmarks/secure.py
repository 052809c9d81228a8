"""What secure sums cost: bytes and time of a round, beside the same round with bare updates.

    uv run python -m benchmarks.secure --out secure.json --dataset /abs/ml-1m --nodes 10 --rounds 5

Stage 1 in one process, so nodes take turns: their time adds up, as no deployment's does. The forms
take turns, too, round by round, each from the same arrays, first one and then another of them.
Bytes are those of Flower's protocol buffers, in a round of their own.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from feddmmr.launch.command import merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import take_census
from server_app.rounds.exchange import Asking
from server_app.rounds.strategy import StageStrategy
from shared_model.model.recommender import Arrays, build, read_groups
from shared_model.protocol.config import Value, default_config, parse_settings
from shared_model.stages import stage_of

FORMS: dict[str, dict[str, Value]] = {
    "bare": {"aggregation": "mean"},
    "secure, curious": {"aggregation": "secure", "secure-against": "curious"},
    "secure, lying": {"aggregation": "secure", "secure-against": "lying"},
    # The sites' part of it: without a ledger, so that the same users take part.
    "secure, noised": {
        "aggregation": "secure",
        "dp-noise-on": "secure",
        "dp-noise-multiplier": 1.0,
    },
}
CLIPPED: dict[str, Value] = {"weighting": "uniform", "dp-clip-norm": 1.0, "stage": 1}


class CountingGrid(InProcessGrid):
    """Counts messages, and their bytes while ``counting``: to serialise them takes time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counting, self.messages, self.down, self.up = False, 0, 0, 0

    def push_messages(self, messages_: Iterable[Message]) -> Iterable[str]:
        """Handle the messages, and count."""
        requests = list(messages_)
        self.messages += len(requests)
        if self.counting:
            self.down += sum(map(_bytes, requests))
        ids = list(super().push_messages(requests))
        if self.counting:
            self.up += sum(_bytes(self._replies[id_]) for id_ in ids)
        return ids


@dataclass
class Form:
    """A way to add up, its nodes, and what its rounds took."""

    grid: CountingGrid
    asking: Asking
    seconds: list[float] = field(default_factory=list)

    def round(self, number: int, arrays: Arrays) -> Arrays:
        """One round; its time is kept."""
        started = time.perf_counter()
        result = self.asking.train(number, arrays)
        self.seconds.append(time.perf_counter() - started)
        return result.arrays


def _bytes(message: Message) -> int:
    return len(message_to_proto(message).SerializeToString())


def formed(config: dict[str, Value], nodes: int) -> tuple[Form, Arrays]:
    """A form of Stage 1 on so many nodes, and the arrays that it starts from."""
    placed: list[dict[str, Value]] = [
        {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
    ]
    grid, settings, stage = CountingGrid(placed, config), parse_settings(config), stage_of(1)
    census = take_census(grid, settings)
    model = build(settings.shape(census.num_items), settings.seed, stage=stage)
    strategy = StageStrategy(stage, settings, census, ServerOptimizer(settings.server_optimizer))
    return Form(grid, Asking(grid, strategy)), read_groups(model, stage.trained)


def measure(config: dict[str, Value], nodes: int, rounds: int) -> list[dict[str, Any]]:
    """A row a form: bytes of round 2, and the median time of ``rounds`` rounds after it."""
    forms, starts = {}, {}
    for name, own in FORMS.items():
        home = str(Path(str(config["home"])) / name.replace(", ", "-"))
        forms[name], starts[name] = formed(config | own | {"home": home}, nodes)
    for number in range(1, rounds + 3):
        order = list(FORMS) if number % 2 else list(reversed(FORMS))
        for name in order:
            form = forms[name]
            form.grid.counting, form.grid.messages = number == 2, 0
            arrays = form.round(number, starts[name])
            starts[name] = {key: value.clone() for key, value in arrays.items()}
    _require_same(starts)
    return [_row(name, form, nodes, forms["bare"]) for name, form in forms.items()]


def _require_same(ends: dict[str, Arrays]) -> None:
    for name, arrays in ends.items():
        apart = max(float((arrays[key] - ends["bare"][key]).abs().max()) for key in arrays)
        print(f"{name}: parameters at most {apart:.2g} apart from those of bare sums")


def _row(name: str, form: Form, nodes: int, bare: Form) -> dict[str, Any]:
    seconds, usual = form.seconds[2:], bare.seconds[2:]
    pairs = [own / other for own, other in zip(seconds, usual, strict=True)]
    return {
        "form": name,
        "nodes": nodes,
        "messages": form.grid.messages,
        "down": form.grid.down / nodes,
        "up": form.grid.up / nodes,
        "bytes_times": (form.grid.down + form.grid.up) / (bare.grid.down + bare.grid.up),
        "seconds": statistics.median(seconds),
        "seconds_all": seconds,
        "seconds_times": statistics.median(pairs),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a form."""
    table = Table(title="a round", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("form", "requests", "kB down a node", "up", "bytes", "seconds", "time"):
        table.add_column(heading)
    for row in rows:
        sizes = f"{row['down'] / 1000:.1f}", f"{row['up'] / 1000:.1f}", f"{row['bytes_times']:.3f}x"
        took = f"{row['seconds']:.2f}", f"{row['seconds_times']:.3f}x"
        table.add_row(row["form"], str(row["messages"]), *sizes, *took)
    Console(width=120).print(table)


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 with one line for an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--dataset", default="", help="an imported dataset; empty for the demo")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(given)
    with one_line_errors():
        with tempfile.TemporaryDirectory() as home:
            config = default_config(own_app() / "pyproject.toml") | CLIPPED | {"home": home}
            config |= {"dataset": args.dataset, "num-rounds": args.rounds + 2}
            rows = measure(config | merge([], args.set), args.nodes, args.rounds)
        write_json(args.out, {"threads": torch.get_num_threads(), "rows": rows})
    print_table(rows)


if __name__ == "__main__":
    main()
