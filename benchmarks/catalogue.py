"""Made-up catalogues of 3,000 to 1,000,000 items: what a stage's rounds, bytes and memory cost.

    uv run python -m benchmarks.catalogue --out catalogue.json
    uv run python -m benchmarks.catalogue --out catalogue.json --against /path/of/another/checkout

For each size one run in a process of its own, in which server and nodes are, of all stages up to
the one asked for: processor seconds of the validation before a stage's first round and of a round
of training (the median), bytes each way and node, and the peak memory of all together. Another
checkout (``git worktree add``) takes turns with this one, on the same data and settings.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import one_line_errors, write_json
from benchmarks.populations import made_up
from feddmmr.launch.command import merge, own_app
from shared_model.errors import RoundError

Row = dict[str, Any]
_NODES = 2
_FEATURES = (512, 384)  # of pictures and texts


def measured(tree: Path, config: dict[str, Any]) -> list[Row]:
    """What a run of the app in ``tree`` costs, stage by stage. ``RoundError`` if it fails."""
    program = [sys.executable, str(own_app() / "benchmarks" / "speed_parts" / "one_run.py")]
    done = subprocess.run(  # noqa: S603 (our own arguments, no shell)
        program,
        input=json.dumps(config),
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
    )
    if done.returncode:
        raise RoundError("a run that was measured failed; it said why above", where=str(tree))
    found: Row = json.loads(done.stdout.splitlines()[-1])
    stages = found.pop("stages")
    return [{"stage": int(stage)} | found | _costs(**told) for stage, told in stages.items()]


def _costs(rounds: list[Row], test: Row) -> Row:
    """What a stage's validation and a round of training cost."""
    # The last round is validated, and in the first one nodes get what they keep.
    trained = rounds[2:-1] or rounds[1:-1] or rounds[1:]
    told = {name: statistics.median(entry[name] for entry in trained) for name in rounds[0]}
    return {
        "participants": told["participants"],
        "validate_seconds": rounds[0]["seconds"],
        "round_seconds": told["seconds"],
        "down": told["bytes_down"] / _NODES,
        "up": told["bytes_up"] / _NODES,
        "test": test,
    }


def benchmark(args: argparse.Namespace, folder: Path) -> list[Row]:
    """A row for each size, checkout and stage."""
    trees = {"this": own_app()} | ({"other": args.against.resolve()} if args.against else {})
    rows = []
    for items in args.items:
        features = _FEATURES if args.stage > 1 else ()
        data = made_up(folder / f"data-{items}", args.users, items, features=features)
        config: Row = {
            "dataset": str(data),
            "nodes": _NODES,
            "stages": list(range(1, args.stage + 1)),
            "num_rounds": args.rounds,
            "evaluate_every": args.rounds,
            "checkpoint_every": args.rounds,
            "fraction_train": min(1.0, args.participants / args.users),
        }
        for name, tree in trees.items():
            own = merge([], args.set) if name == "this" else {}
            given = {key.replace("-", "_"): value for key, value in own.items()}
            home = folder / f"{name}-{items}"
            for row in measured(tree, config | given | {"home": str(home)}):
                rows.append({"app": name, "items": items} | row)
                print_row(rows[-1])
    return rows


def print_row(row: Row) -> None:
    """How far it is, on stderr."""
    print(json.dumps(row), file=sys.stderr)


def print_table(rows: list[Row]) -> None:
    """One line a size, checkout and stage."""
    table = Table(box=SIMPLE_HEAD)
    heads = (
        "items",
        "app",
        "stage",
        "users a round",
        "CPU s to validate",
        "a round",
        "MB down",
        "MB up",
    )
    for heading in (*heads, "peak MB"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            f"{row['items']:,}",
            row["app"],
            str(row["stage"]),
            f"{row['participants']:.0f}",
            f"{row['validate_seconds']:.2f}",
            f"{row['round_seconds']:.2f}",
            f"{row['down'] / 1e6:.2f}",
            f"{row['up'] / 1e6:.2f}",
            f"{row['peak'] / 1e6:.0f}",
        )
    Console(width=120).print(table)


def main(given: list[str] | None = None) -> None:
    """Measure and print; exit code 1 with one line for an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1)
    sizes = [3_000, 30_000, 100_000, 1_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--participants", type=int, default=200, help="expected in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(given)
    with one_line_errors():
        with tempfile.TemporaryDirectory() as name:
            rows = benchmark(args, Path(name))
        write_json(args.out, {"rows": rows})
    print_table(rows)


if __name__ == "__main__":
    main()
