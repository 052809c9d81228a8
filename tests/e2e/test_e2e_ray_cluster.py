"""A simulation spread over a Ray cluster: two Ray nodes, here on one machine, one CPU each."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from ray._raylet import GcsClient
from ray.exceptions import RpcError

from client_app.data.dataset import Dataset
from feddmmr.launch.federation import eventually, free_ports
from feddmmr.launch.in_process import run_in_process
from tests.support.flower import (
    THREE_ROUNDS,
    Flower,
    best_arrays,
    end_processes,
    largest_difference,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc"),
]

# Twenty users' sums cancel more than hundreds', and Adam multiplies what is left of their rounding
# by the rate: 2e-6 between topologies at Stage 1's own rate, 4e-5 at five times of it.
RATE = 0.01
RAY = str(Path(sys.executable).with_name("ray"))


@contextmanager
def ray_node(*options: str) -> Iterator[int]:
    """``ray start`` as a process of its own: its pid. It ends with all that it started."""
    command = [RAY, "start", "--block", "--num-cpus", "1", "--disable-usage-stats", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as node:
        try:
            yield node.pid
        finally:
            children = descendants(node.pid)
            node.terminate()
            with suppress(subprocess.TimeoutExpired):
                node.wait(20)
            for pid in [node.pid, *children]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def parent_of(pid: int) -> int:
    """The process that started one."""
    stat = (Path("/proc") / str(pid) / "stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    """Every process that a process started, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            each = int(stat.parent.name)
            children.setdefault(parent_of(each), []).append(each)
    found = children.get(pid, [])
    for each in found:  # grows as we go
        found.extend(children.get(each, []))
    return found


def nodes_of(address: str) -> int:
    """How many Ray nodes have joined a cluster."""
    try:
        return len(GcsClient(address=address).get_all_node_info())
    except RpcError:  # its head is not up yet
        return 0


def actors_of(pid: int) -> set[int]:
    """The ClientApp actors that a Ray node runs.

    What an actor starts has the actor's name until it has one of its own, and is none.
    """
    named = {}
    for each in descendants(pid):
        with suppress(OSError):
            if (Path("/proc") / str(each) / "cmdline").read_bytes().startswith(b"ray::ClientApp"):
                named[each] = parent_of(each)
    return {actor for actor, parent in named.items() if parent not in named}


@contextmanager
def watching(nodes: list[int]) -> Iterator[dict[int, set[int]]]:
    """The actors that each Ray node was seen to run meanwhile."""
    seen: dict[int, set[int]] = {node: set() for node in nodes}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for node in nodes:
                seen[node] |= actors_of(node)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_simulation_on_two_ray_nodes_gives_the_same_model(
    tmp_path: Path, small_dataset: Dataset
) -> None:
    """As docs/cluster.md says: the address in the environment of what starts the SuperLink."""
    flower_home = tmp_path / "flwr"
    gcs, http, control = free_ports(3)
    environment = os.environ | {
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "FLWR_HOME": str(flower_home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    flower = Flower(tmp_path / "home", environment)
    data = str(small_dataset.folder)
    with ExitStack() as stack:
        stack.callback(end_processes, flower_home)
        # Sockets live there, and their paths may have 107 letters: too few for pytest's folders.
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        where = ["--temp-dir", temporary, "--include-dashboard", "false"]
        head = stack.enter_context(ray_node("--head", "--port", gcs, *where))
        second = stack.enter_context(ray_node("--address", f"127.0.0.1:{gcs}"))
        eventually(lambda: nodes_of(f"127.0.0.1:{gcs}") == 2, 60.0)
        seen = stack.enter_context(watching([head, second]))
        given = ["--run", "spread", "--num-supernodes", "4", "--dataset", data]
        done = flower.run(*given, **{"server-learning-rate": RATE})
        assert done.returncode == 0, done.stdout + done.stderr
    assert {len(actors) for actors in seen.values()} == {1}
    keys = {key.replace("-", "_"): value for key, value in THREE_ROUNDS.items()}
    keys["server_learning_rate"] = RATE
    manifest = run_in_process(
        1, stage=1, run="one", home=str(tmp_path / "one"), dataset=data, **keys
    )
    spread = flower.manifest("spread")
    assert spread["stages"]["1"]["best_round"] == manifest["stages"]["1"]["best_round"]
    one = best_arrays(tmp_path / "one", "one", manifest)
    assert largest_difference(best_arrays(flower.home, "spread", spread), one) <= 1e-5
