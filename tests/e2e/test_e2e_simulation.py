"""Real Flower runs: `feddmmr run` in a process of its own, SuperLink, Ray, exit codes.

The SuperLink that the first run starts has a FLWR_HOME and ports of its own, and is ended by pid.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client_app.data.dataset import Dataset
from client_app.data.demo import USERS
from feddmmr.launch.federation import eventually, free_ports, processes_of
from feddmmr.launch.in_process import run_in_process
from tests.support.flower import (
    PROGRAM,
    THREE_ROUNDS,
    TIMEOUT,
    Flower,
    best_arrays,
    end_processes,
    largest_difference,
)
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    flower_home = tmp_path_factory.mktemp("flwr")
    http, control = free_ports(2)
    environment = os.environ | {
        "FLWR_HOME": str(flower_home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "COLUMNS": "200",
    }
    try:
        yield Flower(tmp_path_factory.mktemp("home"), environment)
    finally:
        end_processes(flower_home)


@pytest.fixture(scope="module")
def two_nodes(flower: Flower) -> subprocess.CompletedProcess[str]:
    """The demo on two SuperNodes, as run 'two'."""
    return flower.run("--run", "two", "--num-supernodes", "2")


def test_two_and_five_nodes_and_no_flower_give_the_same_model(
    flower: Flower, two_nodes: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """Invariant 1, through the real simulation."""
    five_nodes = flower.run("--run", "five", "--num-supernodes", "5")
    for done, nodes in ((two_nodes, 2), (five_nodes, 5)):
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{nodes} nodes, {USERS} users" in done.stdout
        assert re.search(r"round 3/3 .* users  loss .* valid NDCG@10", done.stdout)
        assert "manifest: " in done.stdout
    two, five = (best_arrays(flower.home, run, flower.manifest(run)) for run in ("two", "five"))
    keys = {key.replace("-", "_"): value for key, value in THREE_ROUNDS.items()}
    manifest = run_in_process(1, stage=1, run="one", home=str(tmp_path), **keys)
    one = best_arrays(tmp_path, "one", manifest)
    assert largest_difference(two, five) <= 1e-5
    assert largest_difference(two, one) <= 1e-5


def test_a_complete_stage_is_left_alone(
    flower: Flower, two_nodes: subprocess.CompletedProcess[str]
) -> None:
    assert two_nodes.returncode == 0
    before = flower.manifest_bytes("two")
    again = flower.run("--run", "two", "--num-supernodes", "2")
    assert_refused(again, "stage 1 (ID backbone) is complete: nothing to do")
    assert "redo=true" in again.stderr
    assert flower.manifest_bytes("two") == before


def test_a_missing_dataset_fails_the_command(flower: Flower) -> None:
    done = flower.run("--run", "missing", "--dataset", "/nonexistent")
    assert_refused(done, "the dataset folder does not exist; where: /nonexistent")
    assert not (flower.home / "runs" / "missing").exists()


def assert_refused(done: subprocess.CompletedProcess[str], line: str) -> None:
    """Before anything starts: exit code 1, one line and nothing else."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"error: {line}")


def test_what_the_app_alone_can_refuse_is_the_last_line_of_the_command(
    flower: Flower,
    two_nodes: subprocess.CompletedProcess[str],
    make_dataset: Callable[..., Dataset],
) -> None:
    """The run is one of the demo; nobody compares its data before the nodes say what they have."""
    assert two_nodes.returncode == 0
    dataset = make_dataset({1: [1, 2, 3, 4], 2: [2, 3, 4, 5]}, num_items=5)
    before = flower.manifest_bytes("two")
    done = flower.run("--run", "two", "--dataset", str(dataset.folder), redo="true")
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert "this run belongs to another dataset" in last
    assert done.stdout.splitlines()[-1] == last
    assert re.search(r"^run \d+ is finished:failed: ", done.stderr, re.MULTILINE)
    assert flower.manifest_bytes("two") == before


def test_a_wrong_value_in_plain_flwr_run_is_ours_first_and_last(
    flower: Flower, two_nodes: subprocess.CompletedProcess[str]
) -> None:
    """Of all that Flower prints about a failed run, the app's own line comes first and last."""
    assert two_nodes.returncode == 0  # and so its SuperLink runs, under the address found there
    commands = Path(flower.environment["FLWR_HOME"]) / "feddmmr-cli"
    config = f'num-rounds="ten" run="ten" home="{flower.home}"'
    done = subprocess.run(
        [Path(PROGRAM).with_name("flwr"), "run", ROOT, "local", "--stream", "--run-config", config],
        env=flower.environment | {"FLWR_HOME": str(commands)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    lines = done.stdout.splitlines()
    ours = [n for n, line in enumerate(lines) if line.startswith("error: wrong value; where: run-")]
    traces = [n for n, line in enumerate(lines) if "Traceback" in line]
    assert traces, done.stdout + done.stderr
    assert ours[0] < traces[0] <= traces[-1] < ours[-1] == len(lines) - 1
    assert not (flower.home / "runs" / "ten").exists()


def test_an_interrupt_stops_the_run(flower: Flower) -> None:
    """SIGTERM is what CI sends; Ctrl-C takes the same way. Until then nobody else may write it."""
    printed: list[str] = []
    command = flower.command("--run", "long", **{"num-rounds": 100_000, "evaluate-every": 1000})
    with subprocess.Popen(
        command, env=flower.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            printed.append(line)
            if "round      1/100000" in line:
                break
        (run_id,) = re.findall(r"^run (\d+) on local$", "".join(printed), re.MULTILINE)
        second = flower.run("--run", "long", **{"num-rounds": 100_000, "evaluate-every": 1000})
        assert_refused(second, "another process writes this run")
        assert f"Flower run {run_id} " in second.stderr
        assert f"`flwr stop {run_id}`" in second.stderr
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 130
    last = err.splitlines()[-1]
    assert re.fullmatch(
        r"interrupted: run \d+ is stopped; submit the same run again to resume it", last
    )


def test_a_run_whose_machine_slept_is_resumed(flower: Flower, tmp_path: Path) -> None:
    """Flower gives it up after a minute without a heartbeat; the command submits it again."""
    rounds = 40
    command = flower.command("--run", "slept", **{"num-rounds": rounds, "evaluate-every": rounds})
    log = tmp_path / "log"
    with log.open("w") as out:
        running = subprocess.Popen(command, env=flower.environment, stdout=out, stderr=out)
    eventually(lambda: f"round  2/{rounds}" in log.read_text(), TIMEOUT)
    asleep = [pid for pid in processes_of(Path(flower.environment["FLWR_HOME"])) if is_task(pid)]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "did the machine sleep" in log.read_text(), TIMEOUT)
    finally:
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
    assert running.wait(TIMEOUT) == 0, log.read_text()
    stage = flower.manifest("slept")["stages"]["1"]
    assert stage["status"] == "complete"
    assert [entry["round"] for entry in stage["rounds"]] == list(range(rounds + 1))


def is_task(pid: int) -> bool:
    """Whether it is what a SuperLink starts for a run."""
    return b"flwr-simulation" in Path(f"/proc/{pid}/cmdline").read_bytes()
