"""What `feddmmr run` refuses before anything starts: one line, exit 1, neither Flower nor torch."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client_app.data.dataset import Dataset
from feddmmr.launch.command import own_app, parsed
from feddmmr.launch.local_superlink import is_own
from feddmmr.launch.preflight import runs_with_work
from server_app.admission import stage_config
from server_app.record.lock import Writer, held
from server_app.record.manifest_file import sealed
from shared_model.errors import ConfigError, FedDMMRError, ManifestError
from tests.support.manifests import document
from tests.support.paths import ROOT

# What each is refused for; run "a" has Stage 1 complete and Stage 2 cut off (tests.support).
REFUSED: dict[str, tuple[list[str], str]] = {
    "key": (["--set", "num_rounds=3"], "unknown run-config key.*did you mean num-rounds?"),
    "type": (["--set", "num-rounds=ten"], r"'num-rounds'; expected a whole number .*got 'ten'"),
    "early": (["--stage", "3", "--run", "none"], "stage 3 needs a complete stage 1.*got not run"),
    "next": (["--stage", "3", "--run", "a"], "stage 3 needs a complete stage 2.*got running"),
    "data": (["--dataset", "/nonexistent"], "the dataset folder does not exist"),
    "done": (["--stage", "1", "--run", "a"], "stage 1 .ID backbone. is complete: nothing to do"),
    "in process": (["--stage", "1", "--run", "a", "--in-process"], "is complete: nothing to do"),
}

ASK = """
import contextlib, io, json, sys
from feddmmr import cli
answers = {}
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv, err, out = ["feddmmr", "run", *arguments], io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try:
            cli.main()
        except SystemExit as stop:
            answers[name] = (stop.code, out.getvalue(), err.getvalue())
loaded = [name for name in ("torch", "ray", "flwr", "pandas") if name in sys.modules]
print(json.dumps({"answers": answers, "loaded": loaded}))
"""


def write_run(home: Path, **stages: str) -> None:
    """The run "a", of these settings but for Stage 2's; with these statuses."""
    data: Any = document()
    own = stage_config(parsed(own_app(), {}))
    data["stages"]["1"]["config"] = own
    data["stages"]["2"]["config"] = own | {"num_rounds": 7}
    (home / "runs" / "a").mkdir(parents=True)
    for name, status in stages.items():
        data["stages"][name]["status"] = status
    (home / "runs" / "a" / "manifest.json").write_bytes(sealed(data))


def test_every_refusal_is_one_line_without_flower_ray_or_torch(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_run(home)
    asked = {n: [*words, "--set", f"home={home}"] for n, (words, _) in REFUSED.items()}
    command = [sys.executable, "-c", ASK, json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    for name, (_, reason) in REFUSED.items():
        code, out, err = found["answers"][name]
        assert (code, out, err.count("\n")) == (1, "", 1), (name, out, err)
        assert re.search(f"^error: .*{reason}", err), (name, err)
    assert [path.name for path in (home / "runs").iterdir()] == ["a"]
    assert [path.name for path in (home / "runs" / "a").iterdir()] == ["manifest.json"]


def start(home: Path, *stages: int, **keys: Any) -> list[int]:
    given = {"home": str(home), "run": "a", **keys}
    runs = [parsed(own_app(), given | {"stage": stage}) for stage in stages]
    return runs_with_work(runs, 2)


@pytest.mark.parametrize("connection", ["local", "mine"])
def test_what_another_machine_has_is_not_looked_for_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert is_own("local")  # Flower's default, without a file
    config = f'[superlink.{connection}]\naddress = "far.example:8000"\n[superlink.own]\n'
    (tmp_path / "config.toml").write_text(config + 'address = ":local:"\n')
    assert not is_own(connection)
    assert is_own("own")


def test_of_several_runs_those_from_the_first_with_work_on_are_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    assert start(home, 1, 2, 3) == [0, 1, 2]
    write_run(home)
    with pytest.raises(ManifestError, match=r"goes on with its own settings only.*num_rounds=7"):
        start(home, 1, 2, 3)
    assert start(home, 1, 2, 3, **{"num-rounds": 7}) == [1, 2]
    told = capsys.readouterr().err.splitlines()
    assert told == ["note: stage 1 (ID backbone) is complete: left alone"] * 2
    assert start(home, 1, 2, redo=True) == [0, 1]
    with pytest.raises(ManifestError, match=r"stage 1 .* is complete: nothing to do"):
        start(home, 1)


def test_a_run_that_is_written_is_refused(tmp_path: Path) -> None:
    with (
        held(tmp_path / "runs" / "a", Writer(1, "55")),
        pytest.raises(ManifestError, match=r"another process writes.*`flwr stop 55`"),
    ):
        start(tmp_path, 1)
    assert start(tmp_path, 1) == [0]


def test_data_are_refused_as_a_node_refuses_them(tmp_path: Path, small_dataset: Dataset) -> None:
    """It is what nodes call; here only that it is asked, and leaves sound data alone."""
    folder = str(small_dataset.folder)
    assert start(tmp_path, 1, dataset=folder) == [0]
    with pytest.raises(ConfigError, match="stage 2 needs features, and the dataset has none"):
        start(tmp_path, 0, dataset=folder)
    (small_dataset.folder / "items.csv").write_text("item_id,cold\n")
    with pytest.raises(FedDMMRError, match="a dataset file was changed after the import"):
        start(tmp_path, 1, dataset=folder)


def test_more_nodes_than_users(tmp_path: Path, small_dataset: Dataset) -> None:
    keys = {"home": str(tmp_path), "dataset": str(small_dataset.folder), "stage": 1}
    with pytest.raises(FedDMMRError, match="more SuperNodes than users"):
        runs_with_work([parsed(own_app(), keys)], 21)
