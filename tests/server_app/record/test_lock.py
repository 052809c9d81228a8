"""Who writes a run: told to others, alive or not, and nothing left of what was refused."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from server_app.record.lock import Writer, held, require_free, writer_of
from server_app.record.manifest import open_manifest
from shared_model.errors import ManifestError

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, writer: Writer, ready: Event) -> None:
    with held(folder, writer):
        (folder / "manifest.json").touch()
        ready.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """Another process that holds the run 'a' as Flower's run 123: its pid."""
    ready = FORK.Event()
    folder = tmp_path / "runs" / "a"
    process = FORK.Process(target=hold, args=(folder, Writer(77, "123"), ready))
    process.start()
    assert ready.wait(60)
    yield process.pid or 0
    process.kill()
    process.join()


def test_whoever_comes_second_is_told_who_writes_and_how_to_end_it(
    tmp_path: Path, holder: int
) -> None:
    folder = tmp_path / "runs" / "a"
    for attempt in (lambda: require_free(folder), lambda: open_manifest(tmp_path, "a").__enter__()):
        with pytest.raises(ManifestError, match="another process writes this run") as refused:
            attempt()
        assert "Flower run 123 (process 77)" in str(refused.value)
        assert "`flwr stop 123`" in str(refused.value)
    assert writer_of(folder) == Writer(77, "123")


def test_the_writer_is_gone_with_its_process_even_when_killed(tmp_path: Path, holder: int) -> None:
    folder = tmp_path / "runs" / "a"
    os.kill(holder, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while writer_of(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert writer_of(folder) is None
    assert json.loads((folder / "lock").read_text())["flower_run"] == "123"  # only its name stays
    with held(folder, Writer(5)):
        assert writer_of(folder) == Writer(5)
        assert writer_of(folder).ending == "Ctrl-C where it runs"  # type: ignore[union-attr]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "1", "flower_run": 2}', "\0" * 40])
def test_a_lock_that_names_nobody_still_holds(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "runs" / "a"
    with held(folder, Writer(1)):
        (folder / "lock").write_text(content)
        assert writer_of(folder) == Writer()
        with pytest.raises(ManifestError, match="a process that did not say its name"):
            require_free(folder)


def test_who_only_looks_never_keeps_a_writer_out(tmp_path: Path) -> None:
    folder, over = tmp_path / "runs" / "a", threading.Event()
    with held(folder, Writer(1)):
        (folder / "manifest.json").touch()

    def look() -> None:
        while not over.is_set():
            writer_of(folder)

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    try:
        for number in range(200):
            with held(folder, Writer(number)):
                pass
    finally:
        over.set()
        for thread in looking:
            thread.join()


def test_a_run_of_which_nothing_was_saved_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_manifest(tmp_path, "a"):
        raise ZeroDivisionError
    assert not (tmp_path / "runs" / "a").exists()
    with open_manifest(tmp_path, "a") as manifest:
        (manifest.folder / "mine").touch()
    assert {path.name for path in (tmp_path / "runs" / "a").iterdir()} == {"mine", "lock"}


def write_one(folder: Path, count: Path, rounds: int) -> None:
    """Hold a folder that is made and removed again and again; two at once would be seen."""
    for _ in range(rounds):
        try:
            with held(folder, Writer(os.getpid())):
                marker = count / "here"
                marker.touch(exist_ok=False)
                time.sleep(0.001)
                marker.unlink()
        except ManifestError:
            continue
        except FileExistsError:
            os._exit(3)


def test_two_never_hold_a_folder_that_comes_and_goes(tmp_path: Path) -> None:
    """The lock's file is deleted under whoever waits for it."""
    count = tmp_path / "count"
    count.mkdir()
    arguments = (tmp_path / "runs" / "a", count, 100)
    racers = [FORK.Process(target=write_one, args=arguments) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
