"""The SuperLink of this machine, that the connection `local` means: found, or started and awaited.

`flwr` starts one as well, kills it if it does not answer within 15 s, often amid the migration of
its database, and then cannot start it again. It also takes a SuperLink that needs 0.4 s to answer
for none, and starts a second one. So it is started here, by the flags that `flwr` would use, and
all commands are told its address, which means to `flwr` that it is not its own to start.
"""

import fcntl
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from feddmmr.launch.flwr_cli import LOCAL, PORT, RunError, SuperLink, flower_home_of, last_line
from shared_model.files import write_whole

START_SECONDS = 900.0  # for a cold start on a busy machine: one of 40 s is nothing special
_SAID_AFTER = 3.0
_PROBE_SECONDS = 10.0
_LINES = 10  # of a log that are shown when its SuperLink dies
_ON_DISK, _IN_MEMORY = ":local:", ":local-in-memory:"  # addresses of what Flower starts itself
_OWN = (_ON_DISK, _IN_MEMORY)


def reached(superlink: SuperLink) -> SuperLink:
    """The same connection, with its SuperLink running if it is this machine's own.

    ``RunError`` if that dies while it starts, with the last lines of its log, or does not answer
    within ``START_SECONDS``; it is not killed then, since that may damage its database.
    """
    settings = _settings_of(superlink.flower_home, superlink.connection)
    if settings.get("address") not in _OWN:
        return superlink  # one that somebody else starts, or no such connection: Flower says so
    state = superlink.flower_home / "local-superlink"
    state.mkdir(parents=True, exist_ok=True)
    with _alone(state / "start.lock"):
        started = None
        if _health(superlink.port) == "absent":
            started = _start(superlink, state, in_memory=settings["address"] == _IN_MEMORY)
        _wait(superlink, started, state)
    return _addressed(superlink, settings)


def is_own(connection: str) -> bool:
    """Whether a connection means the SuperLink of this machine, whose data and runs lie here."""
    return _settings_of(flower_home_of(), connection).get("address") in _OWN


def _settings_of(flower_home: Path, connection: str) -> dict[str, Any]:
    """The connection's table in Flower's config.toml; without that file, Flower's default."""
    path = flower_home / "config.toml"
    if not path.is_file():
        return {"address": _ON_DISK} if connection == LOCAL else {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        table = found.get("superlink", {}).get(connection, {})
    except (OSError, ValueError, AttributeError):  # Flower says what is wrong with it
        return {}
    return table if isinstance(table, dict) else {}


def _addressed(superlink: SuperLink, settings: Mapping[str, Any]) -> SuperLink:
    """The connection under an address, in a config.toml of our own beside the user's."""
    home = superlink.folder.with_name("feddmmr-cli")
    home.mkdir(parents=True, exist_ok=True)
    kept = {"federation": settings["federation"]} if "federation" in settings else {}
    table = {"address": f"127.0.0.1:{superlink.port}", "insecure": True, **kept}
    lines = [f"[superlink.{json.dumps(superlink.connection)}]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    write_whole(home / "config.toml", ("\n".join(lines) + "\n").encode(), rivals=True)
    return replace(superlink, environment={**superlink.environment, "FLWR_HOME": str(home)})


def _start(superlink: SuperLink, state: Path, in_memory: bool) -> "subprocess.Popen[bytes]":
    """Start it as `flwr` does: detached, it outlives us; what it prints is kept until the next."""
    control = superlink.environment.get("FLWR_LOCAL_CONTROL_API_PORT", "39093")
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--control-api-address", f"127.0.0.1:{control}"]
    command += ["--host", "127.0.0.1", "--port", str(superlink.port)]
    command += ["--log-file", str(state / "superlink.log")]
    command += ["--log-rotation-interval-hours", "24", "--log-rotation-backup-count", "7"]
    if not in_memory:
        command += ["--database", str(state / "state.db")]
    with _output(state).open("wb") as output:
        return subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            command,
            env=superlink.environment,
            cwd=superlink.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us, not for it
        )


def _wait(superlink: SuperLink, started: "subprocess.Popen[bytes] | None", state: Path) -> None:
    """Return once it answers."""
    begun, said = time.monotonic(), False
    while (health := _health(superlink.port)) != "up":
        waited = time.monotonic() - begun
        if health == "foreign":
            raise _foreign(superlink.port)
        if started is not None and started.poll() is not None:
            raise _died(started.returncode, state)
        if started is None and health == "absent":
            raise RunError("the local SuperLink ended while it was waited for", todo="run it again")
        if waited > START_SECONDS:
            raise _late(superlink.port, state)
        if not said and waited > _SAID_AFTER:
            said = True
            print(
                f"waiting for the local SuperLink at 127.0.0.1:{superlink.port} to start, at most "
                f"{START_SECONDS:g} s; log: {_output(state)}",
                file=sys.stderr,
            )
        time.sleep(0.2)


def _health(port: int) -> str:
    """What listens there: "up", "silent" (as yet), "absent", or "foreign": no SuperLink."""
    asked = HTTPConnection("127.0.0.1", port, timeout=_PROBE_SECONDS)
    try:
        asked.request("GET", "/health")
        return "up" if asked.getresponse().status == 200 else "foreign"
    except ConnectionRefusedError:
        return "absent"
    except HTTPException:
        return "foreign"
    except OSError:
        return "silent"
    finally:
        asked.close()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One command at a time starts it; the others wait, and then find it."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another command that starts the local SuperLink", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _output(state: Path) -> Path:
    return state / "superlink.out"


def _died(code: int, state: Path) -> RunError:
    text = _output(state).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines[-_LINES:]:
        print(f"  {line}", file=sys.stderr)
    errors = [line for line in lines if "Error" in line]  # a database's goes on for many lines
    return RunError(
        f"the local SuperLink ended with code {code} while it started",
        where=str(_output(state)),
        got=last_line("\n".join(errors) or text) or "nothing in its log",
        todo=f"if it speaks of its database, which a start that was killed leaves damaged, "
        f"delete {state / 'state.db'}* (Flower's list of runs, no result) and run it again",
    )


def _late(port: int, state: Path) -> RunError:
    return RunError(
        "the local SuperLink does not answer",
        where=f"127.0.0.1:{port}, {_output(state)}",
        expected=f"an answer within {START_SECONDS:g} s",
        todo="run it again once the machine is less busy: it may go on starting meanwhile",
    )


def _foreign(port: int) -> RunError:
    return RunError(
        "another program has the port of the local SuperLink",
        where=f"127.0.0.1:{port}",
        todo=f"choose another with the variable {PORT}",
    )
