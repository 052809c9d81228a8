"""A round of a real deployment: three sites with TLS, keys and isolated apps, on this machine.

    uv run python -m benchmarks.deployment --out deployment.json
    uv run python -m benchmarks.deployment --out deployment.json --against ../other-clone

The interactions of the demo, Stage 1, every participant of three sites. ``--against`` names another
clone of the project with an environment of its own; both are driven by their commands alone, in
turns. Seconds of a round are those of the manifest; processor seconds are what all processes of a
federation used for a long run and not for a short one, by the rounds between them.
"""

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.output import one_line_errors, write_json
from client_app.data.dataset import open_dataset
from client_app.data.demo import demo_dataset
from feddmmr.launch.federation import free_ports
from shared_model.errors import FedDMMRError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"stage": 1, "fraction-train": 0.1, "evaluate-every": 1000, "dropout": 0.0}
SHORT = 2  # rounds of the run that the long one is compared with
STARTS = "a SuperLink at"  # what `feddmmr federation` prints once it is up


class Clone:
    """A clone of the project with its environment, by its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.programs = self.root / ".venv" / "bin"

    def call(self, *command: str, flower: Path | None = None) -> str:
        """What a command prints, which has to succeed."""
        environment = os.environ | {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"}
        if flower:
            environment["FLWR_HOME"] = str(flower)
        done = subprocess.run(  # noqa: S603 (our own arguments, no shell)
            command, env=environment, capture_output=True, text=True, cwd=self.root, check=False
        )
        if done.returncode:
            raise FedDMMRError(f"{command[0]} failed", got=(done.stdout + done.stderr)[-2000:])
        return done.stdout

    def prepare(self, table: Path, folder: Path, sites: int) -> list[Path]:
        """The data of each site, and the keys, below a folder."""
        program = str(self.programs / "feddmmr")
        self.call(program, "data", "import", str(table), str(folder / "data"))
        parts = ["--num-partitions", str(sites)]
        self.call(program, "data", "split", str(folder / "data"), str(folder / "parts"), *parts)
        self.call(str(self.root / "docker" / "keys.sh"), str(folder / "keys"), str(sites))
        return [folder / "parts" / f"part-{i}" for i in range(sites)]

    @contextmanager
    def federation(self, folder: Path, parts: list[Path]) -> Iterator[Path]:
        """A federation as its users start it; the FLWR_HOME to submit runs with."""
        (port,) = free_ports(1)
        given = [*map(str, parts), "--keys", str(folder / "keys"), "--port", port]
        command = [str(self.programs / "feddmmr"), "federation", str(folder / "federation"), *given]
        with subprocess.Popen(command, cwd=self.root, stdout=subprocess.PIPE, text=True) as running:  # noqa: S603
            try:
                if not any(STARTS in line for line in running.stdout or ()):
                    raise FedDMMRError("the federation did not start", where=str(folder))
                yield folder / "federation" / "user" / "flwr"
            finally:
                running.send_signal(signal.SIGINT)
                running.communicate()

    def run(self, folder: Path, flower: Path, name: str, rounds: int, sites: int) -> list[float]:
        """The seconds of a run's rounds."""
        settings = SETTINGS | {"run": name, "num-rounds": rounds, "min-nodes": sites}
        pairs = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        program = str(self.programs / "feddmmr")
        self.call(program, "run", "--connection", "federation", *pairs, flower=flower)
        home = folder / "federation" / "server-apps" / ".feddmmr"
        manifest = json.loads((home / "runs" / name / "manifest.json").read_bytes())
        return [entry["seconds"] for entry in manifest["stages"]["1"]["rounds"] if entry["round"]]


class ProcessorTime:
    """What all descendants of this process have used, those that ended included, to 0.1 s each."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, int], int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessorTime":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seconds(self) -> float:
        """So far."""
        self._look()
        return sum(self._used.values()) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _look(self) -> None:
        parents, used = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            used[pid] = (int(fields[19]), int(fields[11]) + int(fields[12]))
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        for pid in ours - {os.getpid()}:
            began, ticks = used[pid]
            self._used[pid, began] = ticks


def write_table(path: Path) -> None:
    """The demo's interactions as a table that any version of the project imports."""
    dataset = open_dataset(demo_dataset(path.parent / "demo"))
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "timestamp"])
        for user in range(dataset.num_users):
            history = dataset.items[dataset.indptr[user] : dataset.indptr[user + 1]]
            rows.writerows([user, item, time] for time, item in enumerate(history.tolist()))


def measure(clone: Clone, table: Path, rounds: int, sites: int) -> dict[str, Any]:
    """Median seconds and processor seconds of a round."""
    with tempfile.TemporaryDirectory() as temporary, ProcessorTime() as processor:
        folder = Path(temporary)
        parts = clone.prepare(table, folder, sites)
        with clone.federation(folder, parts) as flower:
            clone.run(folder, flower, "short", SHORT, sites)
            before = processor.seconds()
            clone.run(folder, flower, "shorter", SHORT, sites)
            between = processor.seconds()
            seconds = clone.run(folder, flower, "long", SHORT + rounds, sites)
            after = processor.seconds()
    more = (after - between) - (between - before)
    return {
        "rounds": len(seconds),
        "seconds": statistics.median(seconds),
        "slowest": max(seconds),
        "processor": more / rounds,
    }


def main(words: list[str] | None = None) -> None:
    """Measure this clone, and another one in turns; print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="another clone, with its .venv")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1)
    given = parser.parse_args(words)
    clones = {"this": Clone(ROOT)} | ({"other": Clone(given.against)} if given.against else {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in clones}
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "demo.csv"
        write_table(table)
        for _ in range(given.turns):
            for name, clone in clones.items():
                found[name].append(measure(clone, table, given.rounds, given.sites))
                print(name, json.dumps(found[name][-1]), flush=True)
    write_json(given.out, {"sites": given.sites, "found": found})


if __name__ == "__main__":
    with one_line_errors():
        main()
