"""The ablation table: what alignment, routing, gate, each modality and their native sizes bring.

    uv run python -m benchmarks.quality --dataset /abs/dataset --work /abs/folder --output q.json

Every row (ablations.py) is a run of the app in one process, on one node, with a home of its own
below --work; its log lies there. What a manifest holds complete is not trained again, so the same
command goes on where a killed one stopped. Everything about a row in the JSON comes from there.
"""

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablations import BACKBONE, NAMES, Changes, Row, squeezed_dataset, table_rows
from benchmarks.output import one_line_errors, write_json
from benchmarks.quality_parts.table import print_table
from client_app.data.compile import publish, temporary_sibling
from client_app.data.content import content_dims
from client_app.data.dataset import Dataset, open_dataset
from feddmmr.benchmark.training import Job, in_process, trained
from feddmmr.launch.command import checked, merge, own_app
from server_app.record.checkpoint import load_checkpoint
from server_app.record.manifest import Record, open_manifest
from server_app.record.schema import ManifestDocument
from shared_model.errors import ConfigError, DataError, ManifestError
from shared_model.protocol.config import key_of

RUN, LOG = "quality", "log.txt"
# What the benchmark or its own options set: --set may not.
_OWN = {"stage", "run", "home", "dataset", "redo", "seed", "num-rounds", "fraction-train", "device"}


@dataclass(frozen=True)
class Bench:
    """What all rows have in common."""

    dataset: Dataset
    work: Path
    config: Changes

    def home(self, row: str, seed: int) -> Path:
        """Where a row's run, log and caches lie."""
        return self.work / f"seed-{seed}" / row.replace(" ", "-")

    def run_row(self, row: Row, seed: int) -> tuple[ManifestDocument, list[Record]]:
        """Train what the row lacks: its manifest's document, and an entry for each stage."""
        home = self.home(row.name, seed)
        home.mkdir(parents=True, exist_ok=True)
        data = squeezed_dataset(self.dataset, self.work) if row.squeezed else self.dataset.folder
        where = {"home": str(home), "run": RUN, "dataset": str(data), "seed": seed}
        if row.shares_backbone:
            _share_run(self.home(BACKBONE, seed), home)
        for stage, changes in row.stages.items():
            config = {**self.config, **where, "stage": stage, **changes}
            job = Job(row.name, seed, RUN, stage, config, self.dataset.info["interactions"])
            trained(job, in_process(1), home / LOG, lambda _: None)
        with open_manifest(home, RUN) as manifest:
            last = manifest.data
        return last, [_entry(row, seed, stage, last, home) for stage in row.stages]


def _share_run(source: Path, home: Path) -> None:
    """Copy Stage 1's run to a home without one; refuse one that went on from another Stage 1."""
    target = home / "runs" / RUN
    if not target.exists():
        temporary = temporary_sibling(target)
        shutil.copytree(source / "runs" / RUN, temporary, dirs_exist_ok=True)
        publish(temporary, target)
    with open_manifest(source, RUN) as shared, open_manifest(home, RUN) as own:
        first, second = shared.stage(1), own.stage(1)
        if (first and first["sha256"]) != (second and second["sha256"]):
            raise ManifestError(
                "this row went on from another Stage 1",
                where=str(own.path),
                todo=f"delete {home}, or choose another --work",
            )


def _entry(row: Row, seed: int, stage: int, document: ManifestDocument, home: Path) -> Record:
    """What the JSON says about one stage of a row; the gate and the router's weights by round."""
    record = document["stages"][str(stage)]
    folder = home / "runs" / RUN
    best = load_checkpoint(folder / record["checkpoint"], record["sha256"]).get("mixture.gate")
    trained = [entry for entry in record["rounds"] if entry["round"] > 0]
    return {
        "row": row.name,
        "stage": stage,
        "seed": seed,
        "config": {"stage": stage} | {key_of(k): v for k, v in record["config"].items()},
        "num_rounds": len(trained),
        "best_round": record["best_round"],
        "valid": record["valid"],
        "test": record["test"],
        "best_gate": None if best is None else float(best),
        "gate": [entry.get("gate") for entry in trained],
        "router": [entry.get("router") for entry in trained],
        "seconds": round(sum(entry["seconds"] for entry in record["rounds"]), 3),
        "features": document["features"],
        "app_sha256": record["app_sha256"],
        "manifest": str(folder / "manifest.json"),
    }


def benchmark(args: argparse.Namespace) -> Record:
    """Run the chosen rows for every seed; the JSON document, written after each row."""
    bench, rows = _prepared(args)
    dataset = {"name": bench.dataset.info["name"], "folder": str(bench.dataset.folder)}
    result: Record = {"dataset": dataset, "app": {}, "device": args.device, "rows": []}
    todo = [(row, seed) for seed in sorted(set(args.seeds)) for row in rows]
    for number, (row, seed) in enumerate(todo, start=1):
        label, started = f"[{number}/{len(todo)}] {row.name}, seed {seed}", time.monotonic()
        print(f"{label}: log {bench.home(row.name, seed) / LOG}", flush=True)
        document, entries = bench.run_row(row, seed)
        result["dataset"] |= document["dataset"]
        result["app"] = document["app"]
        result["rows"] += entries
        write_json(args.output, result)
        print(f"{label}: done in {time.monotonic() - started:.1f} s", flush=True)
    return result


def _prepared(args: argparse.Namespace) -> tuple[Bench, list[Row]]:
    """What can be wrong with the arguments, said before anything is trained."""
    if not args.output.parent.is_dir():
        raise DataError("the folder of --output does not exist", where=str(args.output))
    if min(args.rounds) < 1:
        raise ConfigError("a stage without rounds", where="--rounds", expected="three numbers >= 1")
    config = merge([], args.set)
    if taken := sorted(_OWN & config.keys()):
        raise ConfigError("not for --set: the benchmark sets it", got=", ".join(taken))
    config |= {"fraction-train": args.fraction, "device": args.device}
    for seed in args.seeds:
        checked(own_app(), config | {"seed": seed})
    bench = Bench(open_dataset(args.dataset), args.work, config)
    rows = [row for row in table_rows(*args.rounds) if row.name in args.rows]
    if any(2 in row.stages for row in rows):
        content_dims(bench.dataset)  # DataError if there are no features
    if any(row.shares_backbone for row in rows) and rows[0].name != BACKBONE:
        rows.insert(0, table_rows(*args.rounds)[0])
    return bench, rows


def _arguments(given: list[str] | None) -> argparse.Namespace:
    def absolute(text: str) -> Path:
        return Path(text).expanduser().resolve()

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=absolute, required=True, help="an imported dataset")
    parser.add_argument("--work", type=absolute, required=True, help="folder for runs and logs")
    parser.add_argument("--output", type=absolute, required=True, help="the JSON file")
    parser.add_argument("--rounds", type=int, nargs=3, default=[50, 30, 30], metavar="N")
    parser.add_argument("--fraction", type=float, default=0.2, help="share of users in a round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Run the rows and print the table; an error is one line and exit code 1."""
    with one_line_errors():
        result = benchmark(_arguments(given))
    print_table(result)


if __name__ == "__main__":
    main()
