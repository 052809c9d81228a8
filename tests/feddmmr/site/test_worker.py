"""The resident worker of a site: kept, and replaced when it dies, hangs or has other code."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import get_project_dir
from flwr.common.serde import context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from feddmmr.site.worker import Bundle, Keeper, Worker, WorkerFailed

PROJECT = """
[project]
name = "tiny"
version = "1"
[tool.flwr.app]
publisher = "us"
[tool.flwr.app.components]
serverapp = "tiny:app"
clientapp = "tiny:app"
"""
APP = """
import os, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
answered = 0

@app.train()
def train(message, context):
    global answered
    asked = message.content["ask"]
    if asked["what"] == "raise":
        raise ValueError("no")
    if asked["what"] == "die" and not Path(asked["after"]).exists():
        Path(asked["after"]).touch()
        os.abort()
    if asked["what"] == "die always":
        os.abort()
    if asked["what"] == "hang":
        time.sleep(600)
    answered += 1
    context.state["seen"] = ConfigRecord({"times": answered})
    told = ConfigRecord({"code": CODE, "pid": os.getpid(), "answered": answered})
    return Message(RecordDict({"told": told}), reply_to=message)
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def keeper(said: list[str]) -> Iterator[Keeper]:
    keeper = Keeper(said.append)
    yield keeper
    keeper.close()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return installed("first", "a" * 64)


def installed(code: str, sha256: str) -> Bundle:
    """A bundle as Flower would have installed it."""
    folder = Path(get_project_dir("us/tiny", "1", sha256))
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "tiny.py").write_text(f"CODE = {code!r}\n{dedent(APP)}")
    return Bundle(folder, "us/tiny", "1", sha256)


def asked(
    keeper: Keeper, bundle: Bundle, what: str = "", after: str = "", seconds: float = 60.0
) -> Message:
    """The reply to one message of training."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    content = RecordDict({"ask": ConfigRecord({"what": what, "after": after})})
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "an id"
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    frames = [message_to_proto(message), context_to_proto(context)]
    sent = [*(frame.SerializeToString() for frame in frames), b"1"]
    reply, _ = keeper.ask(bundle, sent, seconds)
    return message_from_proto(ProtoMessage.FromString(reply))


def told(reply: Message) -> dict[str, object]:
    return dict(reply.content.config_records["told"])


def test_one_process_answers_all_messages_even_after_an_exception(
    keeper: Keeper, bundle: Bundle, said: list[str]
) -> None:
    first, error, second = (asked(keeper, bundle, what) for what in ("", "raise", ""))
    assert first.metadata.reply_to_message_id == "an id"
    assert error.error.reason == "<class 'ValueError'>:<'no'>"
    assert error.error.code == 2
    one, two = told(first), told(second)
    assert one["pid"] == two["pid"] != os.getpid()
    assert (one["answered"], two["answered"]) == (1, 2)
    assert said == [f"worker {one['pid']} has the code aaaaaaaa"]


def test_a_worker_that_dies_in_mid_message_is_replaced_and_asked_again(
    keeper: Keeper, bundle: Bundle, tmp_path: Path, said: list[str]
) -> None:
    before = told(asked(keeper, bundle))
    after = told(asked(keeper, bundle, "die", str(tmp_path / "died")))
    assert after["pid"] != before["pid"]
    assert after["answered"] == 1
    assert said[1] == f"the site's worker {before['pid']} failed: it ended with SIGABRT"


def test_a_worker_that_always_dies_is_asked_twice(
    keeper: Keeper, bundle: Bundle, said: list[str]
) -> None:
    with pytest.raises(WorkerFailed, match="it ended with SIGABRT"):
        asked(keeper, bundle, "die always")
    assert sum("has the code" in line for line in said) == 2
    assert told(asked(keeper, bundle))["answered"] == 1


def test_a_worker_that_hangs_is_ended_once_nobody_waits(keeper: Keeper, bundle: Bundle) -> None:
    before = told(asked(keeper, bundle))
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"no answer within 0\.5 s"):
        asked(keeper, bundle, "hang", seconds=0.5)
    assert time.monotonic() - began < 30
    assert told(asked(keeper, bundle))["pid"] != before["pid"]


def test_a_worker_killed_between_messages_costs_only_a_start(
    keeper: Keeper, bundle: Bundle
) -> None:
    before = told(asked(keeper, bundle))
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    assert told(asked(keeper, bundle))["answered"] == 1


def test_other_code_gets_a_worker_of_its_own(
    keeper: Keeper, bundle: Bundle, said: list[str]
) -> None:
    first = told(asked(keeper, bundle))
    second = told(asked(keeper, installed("second", "b" * 64)))
    assert (first["code"], second["code"]) == ("first", "second")
    assert f"a run has other code: a new worker instead of {first['pid']}" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(first["pid"])), 0)


def test_nobody_else_can_reach_a_worker(bundle: Bundle) -> None:
    """Its sockets have no name to connect to, in the file system or the abstract namespace."""
    worker = Worker(bundle)
    try:
        listed = Path("/proc/net/unix").read_text().splitlines()[1:]
        inodes = {line.split()[6]: line.split()[7:] for line in listed}
        held = [str(fd.readlink()) for fd in Path(f"/proc/{worker.pid}/fd").iterdir()]
        sockets = [link[8:-1] for link in held if link.startswith("socket:")]
        assert sockets
        assert all(inodes[inode] == [] for inode in sockets if inode in inodes)
    finally:
        worker.close()


def test_a_worker_ends_with_its_site(bundle: Bundle) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from feddmmr.site.worker import Bundle, Worker
        print(Worker(Bundle(Path(sys.argv[1]), *sys.argv[2:])).pid, flush=True)
        time.sleep(600)
    """
    given = [str(bundle.folder), bundle.fab_id, bundle.version, bundle.sha256]
    command = [sys.executable, "-c", dedent(program), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as site:
        assert site.stdout is not None
        pid = int(site.stdout.readline())
        site.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
