"""`feddmmr run`: what is submitted, what is refused before that, and what an answer means.

Real runs are in test_e2e_simulation.py. Over 300 lines on purpose: every case asks the same two
stand-ins, of `flwr` and of a SuperLink, which are made here.
"""

import json
import os
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import parse_config_args
from flwr.supercore.utils import simulation_config_from_json
from hypothesis import given
from hypothesis import strategies as st

from client_app.data.dataset import Dataset
from feddmmr import cli
from feddmmr.launch.command import (
    _given_up,
    as_toml,
    by_stage,
    checked,
    federation_config,
    merge,
    own_app,
    typed,
    verdict,
)
from feddmmr.launch.flwr_cli import (
    _RAY_LATE,
    COMPLETED,
    NO_HEARTBEAT,
    Log,
    Outcome,
    RunError,
    open_superlink,
    read_answer,
    read_outcome,
)
from shared_model.errors import ConfigError
from tests.support.fuzzing import cases

Feddmmr = Callable[..., tuple[int, str, str]]
TINY = ("hidden-size=8", "max-length=5", "num-rounds=1")


@pytest.fixture
def feddmmr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Feddmmr]:
    """Calls `feddmmr ARGUMENTS` in this process: its exit code, stdout and stderr."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setenv("COLUMNS", "200")
    handler: Any = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["feddmmr", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1e-3", -0.001),
        ("true", True),
        ("'3'", "3"),
        ('"a b"', "a b"),
        ("cuda:0", "cuda:0"),
        ("/data/ml 1m", "/data/ml 1m"),
        ("007", "007"),
        ("", ""),
        ("[1, 2]", "[1, 2]"),
        ("2026-01-31", "2026-01-31"),
        ("1\nseed = 2", "1\nseed = 2"),
    ],
)
def test_set_takes_toml_values_and_bare_words(text: str, value: object) -> None:
    assert typed(text) == value
    assert type(typed(text)) is type(value)


def test_pairs_win_over_files_and_later_over_earlier(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("seed = 1\nrun = 'one'\ndropout = 0.5\n")
    two.write_text("seed = 2\nrun = 'two'\n")
    merged = merge([one, two], ["seed=3", "home = /a=b", "seed=4"])
    assert merged == {"seed": 4, "run": "two", "dropout": 0.5, "home": "/a=b"}


@pytest.mark.parametrize("pair", ["seed", "=3", " =3"])
def test_a_setting_without_key_or_value_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match="--set; expected KEY=VALUE"):
        merge([], [pair])


@pytest.mark.parametrize("content", [b"seed = ", b"\xff", None])
def test_an_unreadable_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"unreadable config file; where: .*broken\.toml"):
        merge([file], [])


def test_a_table_of_a_stage_wins_over_the_file_and_the_command_line_over_both() -> None:
    file = {"seed": 1, "num-rounds": 3, "stage-2": {"num-rounds": 7, "dropout": 0.4}}
    runs = by_stage(file, {"run": "mine", "dropout": 0.1})
    assert [run["stage"] for run in runs] == [1, 2, 3]
    assert [run["num-rounds"] for run in runs] == [3, 7, 3]
    assert all(run["dropout"] == 0.1 and run["run"] == "mine" and run["seed"] == 1 for run in runs)
    assert by_stage(file, {"stage": 2}) == [
        {"seed": 1, "num-rounds": 7, "dropout": 0.4, "stage": 2}
    ]


def test_without_tables_one_run_is_submitted_as_it_is() -> None:
    assert by_stage({"seed": 1}, {"stage": 0}) == [{"seed": 1, "stage": 0}]


def test_an_unknown_table_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"stage-4"):
        by_stage({"stage-4": {"seed": 1}}, {})


@pytest.mark.parametrize("path", sorted((own_app() / "conf").glob("*.toml")), ids=lambda p: p.name)
def test_every_frozen_config_is_one_of_this_app(path: Path) -> None:
    for stage in (None, 1):
        runs = by_stage(merge([path], []), {} if stage is None else {"stage": stage})
        assert all(checked(own_app(), overrides)["run"] == path.stem for overrides in runs)


def test_settings_are_the_defaults_under_the_overrides() -> None:
    settings = checked(own_app(), {"num-rounds": 7, "dropout": 0})
    assert (settings["num_rounds"], settings["dropout"], settings["run"]) == (7, 0.0, "default")


@cases(100)
@given(
    st.dictionaries(
        st.sampled_from(["run", "seed", "lr"]),
        st.one_of(
            st.booleans(),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(exclude_categories=["Cs"])),
        ),
    )
)
def test_what_is_written_is_read_back(overrides: dict[str, Any]) -> None:
    read = tomllib.loads(as_toml(overrides))
    assert read == overrides
    assert [type(read[key]) for key in overrides] == [type(v) for v in overrides.values()]


def test_flower_accepts_the_file_and_the_federation_config(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(as_toml({"run": 'a "b" \\ ü', "seed": 3}))
    assert parse_config_args([str(file)]) == {"run": 'a "b" \\ ü', "seed": 3}
    nodes = parse_config_args([federation_config(5, 2, 0.25)])
    config = simulation_config_from_json({k.replace("-", "_"): v for k, v in nodes.items()})
    assert (config.num_supernodes, config.client_resources_num_cpus) == (5, 2)
    assert config.client_resources_num_gpus == 0.25


def test_the_superlink_gets_a_neutral_folder_and_this_python(tmp_path: Path) -> None:
    superlink = open_superlink("local", {"FLWR_HOME": str(tmp_path / "home"), "PATH": "/bin"})
    assert list(superlink.folder.iterdir()) == []
    assert superlink.folder.is_relative_to(tmp_path)
    assert superlink.environment["PATH"].split(os.pathsep) == [
        str(Path(sys.executable).parent),
        "/bin",
    ]
    assert superlink.environment["RAY_ADDRESS"] == "local"
    assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_the_callers_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative FLWR_HOME means the caller's folder, although `flwr` runs in another."""
    monkeypatch.chdir(tmp_path)
    outer = {"FLWR_HOME": "mine", "RAY_ADDRESS": "head:6379", "FLWR_TELEMETRY_ENABLED": "1"}
    superlink = open_superlink("local", outer)
    assert superlink.environment["FLWR_HOME"] == str(tmp_path / "mine")
    assert superlink.environment["RAY_ADDRESS"] == "head:6379"
    assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "1"


def test_an_answer_may_follow_other_lines() -> None:
    assert read_answer("run", 'a notice\n{"success": true, "run-id": "5"}\n', "")["run-id"] == "5"


@pytest.mark.parametrize(
    ("out", "err", "reason"),
    [
        ('{"success": false, "error-message": "Starting ...\\nno such key\\n"}', "", "no such key"),
        ("", "Usage: flwr run\nNo such option\n", "No such option"),
        ("half an answer {", "", "half an answer"),
        ("", "", "no answer"),
    ],
)
def test_anything_but_success_is_one_line(out: str, err: str, reason: str) -> None:
    with pytest.raises(RunError, match=f"flwr run failed; got {reason}") as error:
        read_answer("run", out, err)
    assert "\n" not in str(error.value)


def test_flower_says_how_a_run_stands() -> None:
    run = {"status": "finished:failed", "status-details": "Traceback\n  ValueError: x\n\n"}
    assert read_outcome({"runs": [run]}) == Outcome("finished:failed", "ValueError: x")
    assert read_outcome({"runs": [run]}).finished
    assert not Outcome("running", "").finished


def test_only_completed_runs_pass(capsys: pytest.CaptureFixture[str]) -> None:
    verdict("7", Outcome("finished:completed", ""), "")
    with pytest.raises(RunError, match="run 7 is finished:stopped: no details"):
        verdict("7", Outcome("finished:stopped", ""), "")
    with pytest.raises(RunError, match=r"^no such folder$"):
        verdict("7", Outcome("finished:failed", "NodeError"), "no such folder")
    assert capsys.readouterr().err == "run 7 is finished:failed: NodeError\n"


def test_only_what_lacked_time_is_submitted_again() -> None:
    """By what Flower 1.42 and Ray 2.55 say; a run that failed by itself is not tried again."""
    failed = Outcome("finished:failed", "An error was encountered. Ending simulation.")
    slept = Outcome("finished:failed", NO_HEARTBEAT)
    assert "heard nothing" in _given_up(slept, Log("", True))
    assert "30 s" in _given_up(failed, Log("", False, ray_late=True))
    assert _given_up(failed, Log("no such folder", False)) == ""
    assert _given_up(Outcome(COMPLETED, ""), Log("", True, ray_late=True)) == ""
    node = files("ray").joinpath("_private/node.py").read_text()  # where it is said, and the bound
    assert f'"{_RAY_LATE[:40]}' in node
    assert "raylet_start_wait_time_s = 30" in node


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "nonsense=1"], "unknown run-config key; .*got nonsense"),
        (["--set", "num-rounds=many"], "run-config key 'num-rounds'"),
        (["--set", "dataset=relative"], "run-config key 'dataset'; expected an absolute path"),
        (["--stage", "4"], "run-config key 'stage'"),
        (["--run", "a/b"], "run-config key 'run'"),
        (["/nowhere"], "not the project folder of the app; where: /nowhere"),
        (["/nowhere", "--in-process"], "not the project folder of the app; where: /nowhere"),
        (["--in-process", "--connection", "mine"], "has no SuperLink.*got --connection$"),
        (["--in-process", "--cpus-per-node", "2", "--gpus-per-node", "1"], "got --cpus.*, --gpus"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(
    arguments: list[str], reason: str, feddmmr: Feddmmr, tmp_path: Path
) -> None:
    code, out, err = feddmmr("run", *arguments)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert re.search(reason, err)
    assert list(tmp_path.iterdir()) == []


def test_flower_refuses_an_unknown_connection(feddmmr: Feddmmr) -> None:
    """The real `flwr`, which exits with 0 here."""
    code, out, err = feddmmr("run", "--connection", "nowhere")
    assert (code, out) == (1, "")
    assert err.startswith("error: flwr run failed; got ")
    assert "'nowhere' not found" in err


def in_process(dataset: Path, home: Path, num_supernodes: int) -> list[str]:
    pairs = [word for pair in (*TINY, f"home={home}") for word in ("--set", pair)]
    nodes = ["--num-supernodes", str(num_supernodes), "--in-process"]
    return ["run", "--stage", "1", "--run", "r", "--dataset", str(dataset), *nodes, *pairs]


def test_a_run_in_process(
    feddmmr: Feddmmr, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative dataset given as --dataset is one of the caller's folder."""
    monkeypatch.chdir(small_dataset.folder.parent)
    home = tmp_path / "home"
    code, out, err = feddmmr(*in_process(Path(small_dataset.folder.name), home, 3))
    assert (code, err) == (0, "")
    assert "3 nodes, 20 users" in out
    manifest = json.loads((home / "runs" / "r" / "manifest.json").read_bytes())
    assert manifest["stages"]["1"]["status"] == "complete"


def test_more_nodes_than_users_is_one_line(
    feddmmr: Feddmmr, small_dataset: Dataset, tmp_path: Path
) -> None:
    code, _, err = feddmmr(*in_process(small_dataset.folder, tmp_path / "home", 21))
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "21" in err
    assert "20" in err
