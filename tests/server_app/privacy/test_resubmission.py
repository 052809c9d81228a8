"""A run that Flower gave up is submitted again: with redo, or to go on."""

import os
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest

from feddmmr.launch import command as run_command
from feddmmr.launch.command import own_app
from feddmmr.launch.flwr_cli import NO_HEARTBEAT, Outcome, SuperLink


class Sleepy(SuperLink):
    """Flower gives up each run but the last one; the log is what the app says until then."""

    logs: ClassVar[list[list[str]]]
    submitted: ClassVar[list[dict[str, Any]]]

    def submit(self, app: Path, run_config: Path, federation_config: str) -> str:
        self.submitted.append(tomllib.loads(run_config.read_text()))
        log = self.folder / "log"
        log.write_text("".join(f"{line}\n" for line in self.logs[len(self.submitted) - 1]))
        (self.folder / "flwr").write_text(f"#!/bin/sh\ncat {log}\n")
        (self.folder / "flwr").chmod(0o755)
        return str(len(self.submitted))

    def wait(self, run_id: str) -> Outcome:
        last = int(run_id) == len(self.logs)
        return Outcome(*(("finished:completed", "") if last else ("finished:failed", NO_HEARTBEAT)))


@pytest.mark.parametrize(
    ("logs", "redone"),
    [
        ([["2 nodes, 20 users"], ["2 nodes, 20 users", "stage 1 round 0/2"]], [True, True]),
        ([["stage 1 round 0/2  0 users"], ["stage 1: resumed after round 0"]], [True, False]),
        ([[], ["stage 1 round 0/2"], ["stage 1 round 1/2"], []], [True, True, False, False]),
    ],
)
def test_what_was_not_begun_again_is_still_to_be_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[list[str]], redone: list[bool]
) -> None:
    monkeypatch.setattr(run_command, "_LET_GO", 0.0)
    Sleepy.logs, Sleepy.submitted = logs, []
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    monkeypatch.setenv("PATH", environment["PATH"])  # Popen finds programs by ours
    superlink = Sleepy("local", environment, tmp_path)
    run_command.run_there(superlink, own_app(), {"redo": True, "stage": 1}, "")
    assert [config["redo"] for config in Sleepy.submitted] == redone
