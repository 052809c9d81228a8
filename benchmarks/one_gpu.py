"""All three stages on one GPU: timed, held against the quality bars, compared with the CPU.

    uv run python -m benchmarks.one_gpu --dataset /abs/ml-1m --out one_gpu.json

The app in one process, one node with all users, settings of conf/ml-1m.toml. Then a training
request of each stage is answered once more by the GPU and once by the CPU. The exit code is 1 if a
bar is missed; the JSON has every figure. The bars are those of a benchmark of the registry
(conf/benchmark/) that need no other runs than these.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from flwr.app import Message, RecordDict
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from feddmmr.benchmark.bars import held
from feddmmr.benchmark.registry import Benchmark, benchmark_of, registered
from feddmmr.launch.command import by_stage, checked, merge, own_app
from feddmmr.launch.in_process import InProcessGrid
from server_app.app import federate
from server_app.record.manifest import Record
from server_app.record.schema import ManifestDocument
from shared_model.errors import DataError
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.config import Value, key_of, parse_settings

Config = dict[str, Value]

TOLERANCE = 1e-5  # CPU against GPU: ||difference|| of a tensor's update over its norm, in one round
# What only says where and how fast. Saved rounds cost as much as training them would.
_GPU: Config = {"checkpoint-every": 20}
_ONE_NODE: list[Config] = [{"partition-id": 0, "num-partitions": 1}]


class KeepingGrid(InProcessGrid):
    """Keeps the last training request that it passed on."""

    kept: RecordDict

    def push_messages(self, messages_: Iterable[Message]) -> Iterable[str]:
        """As in process."""
        requests = list(messages_)
        for request in requests:
            if request.metadata.message_type == messages.TRAIN:
                self.kept = request.content
        return super().push_messages(requests)


def train(configs: list[Config]) -> tuple[ManifestDocument, dict[str, RecordDict]]:
    """Run the stages: the manifest's document, and each stage's last training request."""
    documents, requests = [], {}
    for config in configs:
        grid = KeepingGrid(_ONE_NODE, config)
        documents.append(federate(grid, parse_settings(config)))
        requests[str(config["stage"])] = grid.kept
    return documents[-1], requests


def disagreement(config: Config, request: RecordDict) -> float:
    """How far the device's answer to a training request is from the CPU's."""
    return difference(_answer(config, request), _answer(config | {"device": "cpu"}, request))


def difference(found: Arrays, reference: Arrays) -> float:
    """||found - reference|| / ||reference|| of each tensor that is not zero: the largest."""
    norms = {name: float(value.norm()) for name, value in reference.items()}
    return max(
        float((found[name] - reference[name]).norm()) / norm for name, norm in norms.items() if norm
    )


def _answer(config: Config, request: RecordDict) -> Arrays:
    """The update of a node with this configuration; frozen groups lie in its home."""
    grid = InProcessGrid(_ONE_NODE, config)
    [node] = grid.get_node_ids()
    [reply] = grid.send_and_receive([Message(request, node, messages.TRAIN)])
    return messages.read_update(messages.check_reply(reply)).arrays


def bars(
    document: ManifestDocument, disagreements: dict[str, float], bench: Benchmark
) -> list[Record]:
    """Each bar with what it asks for and what was found."""

    def value(row: str, group: str, protocol: str, metric: str) -> float | None:
        stage = document["stages"].get(row.removeprefix("stage "))
        return None if stage is None else stage["test"][group][protocol].get(metric)

    found = []
    if "training-seconds" in bench.speed:
        most = bench.speed["training-seconds"]
        found.append(_bar("training seconds", _seconds(document), most, False))
    for bar in held(bench.bars, value, lambda *_: None, lambda *_: None):
        if bar["reached"] is not None:
            found.append(_bar(bar["what"], bar["found"], bar["wanted"]))
    for stage, difference_ in disagreements.items():
        found.append(_bar(f"stage {stage} against the CPU", difference_, TOLERANCE, False))
    return found


def _bar(what: str, found: float, bar: float, at_least: bool = True) -> Record:
    reached = found >= bar if at_least else found <= bar
    return {"what": what, "found": found, "bar": bar, "at_least": at_least, "reached": reached}


def _seconds(document: ManifestDocument) -> float:
    """Of all rounds of all stages, with their validations and saves; without the test."""
    stages = document["stages"].values()
    return float(sum(entry["seconds"] for stage in stages for entry in stage["rounds"]))


def benchmark(args: argparse.Namespace) -> Record:
    """Train, compare, and hold against the bars; the JSON document."""
    if not args.out.absolute().parent.is_dir():
        raise DataError("the folder of --out does not exist", where=str(args.out))
    with tempfile.TemporaryDirectory() as home:
        given = {**_GPU, "home": home, "dataset": str(args.dataset.absolute())}
        given |= {"device": args.device} | merge([], args.set)
        runs = by_stage(merge([args.config], []), given | {"stage": 0})
        configs = [_run_config(overrides) for overrides in runs]
        started = time.monotonic()
        document, requests = train(configs)
        seconds = time.monotonic() - started
        disagreements = {
            str(config["stage"]): disagreement(config, requests[str(config["stage"])])
            for config in configs
        }
    stages = {
        number: {key: stage[key] for key in ("best_round", "valid", "test")}
        | {"seconds": [entry["seconds"] for entry in stage["rounds"]]}
        for number, stage in document["stages"].items()
    }
    return {
        "device": _device(args.device),
        "seconds": seconds,
        "config": configs,
        "dataset": document["dataset"],
        "app": document["app"],
        "stages": stages,
        "bars": bars(document, disagreements, benchmark_of(args.benchmark, None)),
    }


def _run_config(overrides: Config) -> Config:
    return {key_of(name): value for name, value in checked(own_app(), overrides).items()}


def _device(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def print_table(result: Record) -> None:
    """A line a bar."""
    table = Table(title=f"{result['device']}: {result['seconds']:.0f} s with tests and start")
    for heading in ("bar", "", "asked for", "found"):
        table.add_column(heading)
    for bar in result["bars"]:
        sign = ">=" if bar["at_least"] else "<="
        verdict = "ok" if bar["reached"] else "MISSED"
        table.add_row(bar["what"], verdict, f"{sign} {bar['bar']:.4g}", f"{bar['found']:.4g}")
    Console(width=100).print(table)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="an imported MovieLens-1M")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--config", type=Path, default=own_app() / "conf" / "ml-1m.toml")
    parser.add_argument("--benchmark", choices=registered(), default="ml-1m", metavar="NAME")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Train, print the bars; exit code 1 for an error (one line) or a missed bar."""
    args = _arguments(given)
    with one_line_errors():
        result = benchmark(args)
        write_json(args.out, result)
    print_table(result)
    if missed := [bar["what"] for bar in result["bars"] if not bar["reached"]]:
        print(f"error: missed: {', '.join(missed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
