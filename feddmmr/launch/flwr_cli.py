"""The ``flwr`` commands that one run needs: submit it, follow its log, ask how it ended, stop it.

``flwr`` exits with 0 when a run fails, and also when its JSON says ``"success": false``; so the
JSON decides here, never the exit code.

The connection ``local`` means a SuperLink in the background (local_superlink.py), which keeps the
environment and the working folder of the call that started it, and so do all its later runs. Hence:

- the folder is an empty one that stays (``$FLWR_HOME/feddmmr``): Ray's actors look for the
  ClientApp there before they look into the submitted bundle;
- the programs beside this Python are first on ``PATH``: ``flwr``, ``flower-superlink``;
- ``RAY_ADDRESS=local``: each run starts a Ray of its own, instead of joining whatever cluster runs
  on the machine; ``FLWR_TELEMETRY_ENABLED=0``: nothing is reported to anybody. Both only where the
  caller has not set them, and only felt by a SuperLink that is started here.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddmmr.launch.bundle import staged
from shared_model.errors import FedDMMRError

ERROR_MARK = "error: "  # how the app begins the log line that says why it failed
_ROUND = re.compile(r"stage \d( round |: resumed)")  # what the app says of a round that is saved
PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
LOCAL = "local"  # the connection whose SuperLink is this machine's own
COMPLETED = "finished:completed"
# Also when all went well: a run's process gives itself 5 s to say so, too few on a busy machine.
NO_HEARTBEAT = "No heartbeat received from the task"
_RAY_LATE = "The current node timed out during startup"  # Ray gives itself 30 s, always
_POLL_SECONDS = 2.0


class RunError(FedDMMRError):
    """A run that could not be submitted or watched, or that did not complete."""


@dataclass(frozen=True)
class Outcome:
    """How a run stands, in Flower's words: ``finished:completed``, ``running``, ..."""

    status: str
    details: str  # the last line of what Flower says about it

    @property
    def finished(self) -> bool:
        """Whether the run is over, well or not."""
        return self.status.startswith("finished")


@dataclass(frozen=True)
class Log:
    """What the app printed in a run."""

    error: str  # its last error line, or an empty string
    trained: bool  # whether a round was finished
    ray_late: bool = False  # whether Ray had no time to start, so that nothing was begun


@dataclass(frozen=True)
class SuperLink:
    """A named SuperLink connection of ``$FLWR_HOME/config.toml``, reached through the CLI."""

    connection: str
    environment: Mapping[str, str]
    folder: Path

    @property
    def flower_home(self) -> Path:
        """Where Flower keeps connections and state."""
        return self.folder.parent

    @property
    def port(self) -> int:
        """Where the SuperLink of this machine listens, by the variable that Flower reads."""
        port = self.environment.get(PORT, "39091")
        if not port.isdecimal():
            raise RunError("not a port", where=f"the variable {PORT}", got=port)
        return int(port)

    def submit(self, app: Path, run_config: Path, federation_config: str) -> str:
        """Submit the app with a run-config file; returns the run's id."""
        options = ["--run-config", str(run_config), "--federation-config", federation_config]
        with tempfile.TemporaryDirectory(prefix="feddmmr-") as folder:
            given = staged(app, Path(folder) / "app")
            return str(self._ask("run", str(given), self.connection, *options)["run-id"])

    def follow(self, run_id: str) -> Log:
        """Copy the run's log to stdout until the run ends."""
        error, trained, ray_late = "", False, False
        with subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            ["flwr", "log", run_id, self.connection],  # noqa: S607 (on the PATH that we set)
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            cwd=self.folder,
            start_new_session=True,  # Ctrl-C is for us, not for it
        ) as log:
            try:
                for line in log.stdout or ():
                    print(line, end="", flush=True)
                    error = line.strip() if line.startswith(ERROR_MARK) else error
                    trained = trained or bool(_ROUND.match(line))
                    ray_late = ray_late or _RAY_LATE in line
            finally:
                log.terminate()
        return Log(error.removeprefix(ERROR_MARK), trained, ray_late)

    def wait(self, run_id: str) -> Outcome:
        """Ask until the run is over."""
        while not (outcome := self._outcome(run_id)).finished:
            time.sleep(_POLL_SECONDS)
        return outcome

    def stop(self, run_id: str) -> None:
        """Stop the run."""
        self._ask("stop", run_id, self.connection)

    def register(self, public_key: Path) -> None:
        """Let the SuperNode with this key take part."""
        self._ask("supernode", "register", str(public_key), self.connection)

    def _outcome(self, run_id: str) -> Outcome:
        return read_outcome(self._ask("list", self.connection, "--run-id", run_id))

    def _ask(self, *arguments: str) -> dict[str, Any]:
        """The answer of one ``flwr`` command."""
        done = subprocess.run(  # noqa: S603 (our own arguments, no shell)
            ["flwr", *arguments, "--format", "json"],  # noqa: S607 (on the PATH that we set)
            capture_output=True,
            text=True,
            errors="replace",
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
            check=False,
        )
        return read_answer(arguments[0], done.stdout, done.stderr)


def flower_home_of(outer: Mapping[str, str] = os.environ) -> Path:
    """Where Flower keeps connections and state."""
    return Path(outer.get("FLWR_HOME") or "~/.flwr").expanduser().absolute()


def open_superlink(connection: str, outer: Mapping[str, str] = os.environ) -> SuperLink:
    """The connection with the environment and folder that its commands, and its SuperLink, get."""
    flower_home = flower_home_of(outer)
    folder = flower_home / "feddmmr"
    folder.mkdir(parents=True, exist_ok=True)
    programs = str(Path(sys.executable).parent)
    environment = {
        "RAY_ADDRESS": "local",
        "FLWR_TELEMETRY_ENABLED": "0",
        **outer,
        "PATH": os.pathsep.join([programs, outer.get("PATH", os.defpath)]),
        "FLWR_HOME": str(flower_home),
        "FLWR_DISABLE_UPDATE_CHECK": "1",  # its notice would stand before the JSON
        "TTY_COMPATIBLE": "0",  # no colour codes in the JSON, even with FORCE_COLOR
    }
    return SuperLink(connection, environment, folder)


def read_answer(command: str, out: str, err: str) -> dict[str, Any]:
    """The JSON of a ``flwr`` command; ``RunError`` with its reason unless it says success."""
    try:
        answer: dict[str, Any] = json.loads(out[out.index("{") :])
    except ValueError as error:
        got = last_line(err) or last_line(out) or "no answer"
        raise RunError(f"flwr {command} failed", got=got) from error
    if answer.get("success") is not True:
        raise RunError(f"flwr {command} failed", got=last_line(str(answer.get("error-message"))))
    return answer


def read_outcome(answer: Mapping[str, Any]) -> Outcome:
    """Status and details of the one run in the answer of ``flwr list --run-id``."""
    run = answer["runs"][0]
    return Outcome(run["status"], last_line(run["status-details"]))


def last_line(text: str) -> str:
    """The last line that is not blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
