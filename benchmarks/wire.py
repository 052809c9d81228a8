"""Bytes on the wire, counted from the serialised messages of a run, by stage, node and round.

    uv run python -m benchmarks.wire --out wire.json                  # the demo
    uv run python -m benchmarks.wire --out wire.json --dataset /abs/ml-1m --set hidden-size=64

All stages run in one process; every message that the app sends is serialised as Flower's protocol
buffer (``message_to_proto``) and measured. Beside it stands what a stock app would send: the whole
model of the stage, down and up, to every node in every round.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from feddmmr.launch.command import merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.app import federate
from shared_model.protocol import messages
from shared_model.protocol.config import Value, default_config, parse_settings


@dataclass(frozen=True)
class Sent:
    """One message of a training or an evaluation, and its reply."""

    stage: int
    round: int
    training: bool
    node: int
    down: int  # bytes of the serialised request
    up: int  # of the reply
    trained: int  # of the arrays in the request that are trained
    frozen: int  # of the frozen arrays that came along; 0 if none did


class MeasuringGrid(InProcessGrid):
    """Keeps the sizes of every message that carries arrays, and of its reply."""

    def push_messages(self, messages_: Iterable[Message]) -> Iterable[str]:
        """Handle the messages; measure before and after."""
        requests = list(messages_)
        down = [_bytes(message) for message in requests]
        ids = list(super().push_messages(requests))
        for message, size, id_ in zip(requests, down, ids, strict=True):
            if message.metadata.message_type in (messages.TRAIN, messages.EVALUATE):
                self.sent.append(_sent(message, size, _bytes(self._replies[id_])))
        return ids

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[Sent] = []


def _bytes(message: Message) -> int:
    return len(message_to_proto(message).SerializeToString())


def _sent(message: Message, down: int, up: int) -> Sent:
    training = message.metadata.message_type == messages.TRAIN
    read = messages.read_plan if training else messages.read_evaluation
    plan = read(message.content)
    records = message.content.array_records
    sizes = {
        name: sum(array.numpy().nbytes for array in records[name].values()) for name in records
    }
    node, frozen = message.metadata.dst_node_id, sizes.get("frozen", 0)
    return Sent(plan.stage, plan.round, training, node, down, up, sizes["arrays"], frozen)


def measure(config: dict[str, Value], nodes: int) -> list[Sent]:
    """Run what the run-config asks for on so many nodes; all its messages with arrays."""
    placed: list[dict[str, Value]] = [
        {"partition-id": i, "num-partitions": nodes} for i in range(nodes)
    ]
    grid = MeasuringGrid(placed, config)
    federate(grid, parse_settings(config))
    return grid.sent


def summary(sent: list[Sent]) -> list[dict[str, Any]]:
    """A row a stage. ``down`` and ``up`` are per node and round, once the nodes hold what is
    frozen; ``share`` is what they are of the whole model both ways."""
    by_stage: dict[int, list[Sent]] = defaultdict(list)
    for one in sent:
        by_stage[one.stage].append(one)
    rows = []
    for stage, all_ in by_stage.items():
        brought = [one for one in all_ if one.frozen]
        usual = [one for one in all_ if one.training]
        frozen = brought[0].frozen if brought else 0
        whole = usual[0].trained + frozen
        down, up = max(one.down for one in usual), max(one.up for one in usual)
        rows.append(
            {
                "stage": stage,
                "down": down,
                "up": up,
                "groups": usual[0].trained,
                "frozen": frozen,
                "frozen_sent": len(brought),
                "nodes": len({one.node for one in all_}),
                "whole_model": whole,
                "share": (down + up) / (2 * whole),
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a stage, in kB."""
    table = Table(title="kB a node and round", title_justify="left", box=SIMPLE_HEAD)
    headings = ("stage", "down", "up", "trained groups", "frozen, once a node", "whole model")
    for heading in (*headings, "of sending it"):
        table.add_column(heading)
    for row in rows:
        sizes = ("down", "up", "groups", "frozen", "whole_model")
        cells = [f"{row[name] / 1000:.1f}" for name in sizes]
        table.add_row(str(row["stage"]), *cells, f"{row['share']:.0%}")
    Console(width=120).print(table)


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 with one line for an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--dataset", default="", help="an imported dataset; empty for the demo")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(given)
    with one_line_errors():
        with tempfile.TemporaryDirectory() as home:
            config = default_config(own_app() / "pyproject.toml") | {"home": home}
            config |= {"dataset": args.dataset, "num-rounds": args.rounds}
            config |= {"evaluate-every": args.rounds} | merge([], args.set)
            rows = summary(measure(config, args.nodes))
        write_json(args.out, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
