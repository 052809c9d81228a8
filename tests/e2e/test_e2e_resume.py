"""A run that is killed, or that the disk stops, ends in the same bytes as the undisturbed one."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feddmmr.launch.in_process import run_in_process
from shared_model.errors import FedDMMRError, ManifestError
from tests.support.outcomes import assert_same, outcome
from tests.support.paths import ROOT
from tests.support.staged import SETTINGS, write_mixed

POINTS, SEED = 5, 20

# Runs the stages in one process after the other, which are forked since imports take seconds. Each
# kills itself at its n-th call of, or in, a function of server_app or of shared_model/files.py:
# between a flush and its fsync, say. The first run is undisturbed and tells how many calls there
# are; so is the last.
DRIVER = """
import json, os, signal, sys
import dp_accounting.pld  # before the forks: it takes seconds, too
import server_app.privacy.ledger
from feddmmr.launch.in_process import run_in_process
server_app.privacy.ledger.draw_secret = lambda: bytes(range(32))  # runs with noise compare
files = [["server_app"], ["shared_model", "files.py"]]
files = tuple(os.path.join(os.getcwd(), *parts) for parts in files)
whole, cut, shares = map(json.loads, sys.argv[1:])

def run(settings, at):
    calls = 0
    def count(frame, event, _):
        nonlocal calls
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(files):
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    run_in_process(2, **settings)
    sys.setprofile(None)
    return calls

def forked(settings, at):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, b"%d" % run(settings, at))
        os._exit(0)
    os.close(writing)
    told, status = os.read(reading, 20), os.waitpid(pid, 0)[1]
    return int(told or 0), -os.waitstatus_to_exitcode(status)

total, code = forked(whole, 0)
points = [1 + int(share * total) for share in shares]
codes = [code, *(forked(cut, point)[1] for point in points), forked(cut, 0)[1]]
print(json.dumps({"points": points, "total": total, "codes": codes}))
"""


def settings(home: Path, dataset: Path) -> dict[str, Any]:
    """All stages, with rounds that are validated and rounds that are not, and dropout."""
    given = {"home": str(home), "dataset": str(dataset), "stage": 0, "num_rounds": 4}
    given |= {"evaluate_every": 2, "dropout": 0.1, "server_learning_rate": 0.03}
    return SETTINGS | given


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("resume") / "dataset")


PRIVATE: dict[str, Any] = {
    "dp_clip_norm": 0.5,
    "dp_noise_multiplier": 2.0,
    "weighting": "uniform",
    "aggregation": "mean",
    "memory_novelty": 0.3,
    "checkpoint_every": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_sigkill_anywhere_costs_nothing(tmp_path: Path, dataset: Path, private: bool) -> None:
    """With noise, the ledger is part of it: nothing is forgotten, and nothing is charged twice."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = PRIVATE if private else {}
    # Five places drawn from the whole run: what lies between them is what each process does.
    shares = np.random.default_rng(SEED).dirichlet(np.ones(POINTS + 1))[:POINTS]
    homes = [json.dumps(settings(home, dataset) | more) for home in (whole, cut)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *homes, json.dumps(shares.tolist())],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"killed at calls {told['points']} of {told['total']}, one after the other")
    assert told["codes"] == [0, *POINTS * [signal.SIGKILL], 0], done.stderr
    assert_same(cut, whole)
    spent = [record["privacy"] for record in outcome(whole)["stages"].values()]
    assert [len(privacy.get("releases", [])) for privacy in spent] == 3 * [4 if private else 0]


@pytest.fixture(scope="module")
def undisturbed(dataset: Path) -> Path:
    """The home of a run that nothing stopped."""
    home = dataset.parent / "undisturbed"
    run_in_process(2, **settings(home, dataset))
    return home


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writes beyond that many bytes fail, as on a full disk; what is printed goes elsewhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_stopped_in_one_line(run: dict[str, Any], reason: str) -> None:
    with pytest.raises(FedDMMRError, match=reason) as raised:
        run_in_process(2, **run)
    assert "\n" not in str(raised.value)
    assert str(run["home"]) in str(raised.value)
    left = list(Path(run["home"]).rglob("*.tmp"))
    assert not left


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_disk_that_fills_up_stops_a_run_that_goes_on_later(
    tmp_path: Path, dataset: Path, undisturbed: Path, share: float
) -> None:
    """The first file that is too large is the manifest or a checkpoint of Stage 1, 2 or 3."""
    run = settings(tmp_path / "home", dataset)
    largest = max(p.stat().st_size for p in (undisturbed / "runs/default").iterdir())
    with no_file_above(int(largest * share)):
        assert_stopped_in_one_line(run, "File too large")
    run_in_process(2, **run)
    assert_same(tmp_path / "home", undisturbed)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, for those who may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a cache may be mapped still


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_stops_a_run_that_goes_on_later(
    disk: Path, dataset: Path, undisturbed: Path
) -> None:
    run = settings(disk / "home", dataset)
    for size in ("64k", "128k", "192k"):
        remount(disk, f"size={size}")
        assert_stopped_in_one_line(run, "No space left on device")
    remount(disk, "size=64m")
    run_in_process(2, **run)
    assert_same(disk / "home", undisturbed)


def test_a_folder_that_cannot_be_written_any_more(
    disk: Path, dataset: Path, undisturbed: Path
) -> None:
    run = settings(disk / "home", dataset)
    remount(disk, "size=64m")
    run_in_process(2, **(run | {"stage": 1}))
    remount(disk, "ro")
    with pytest.raises(ManifestError, match=r"cannot write the run's folder.*Read-only"):
        run_in_process(2, **run)
    remount(disk, "rw")
    run_in_process(2, **run)
    assert_same(disk / "home", undisturbed)
