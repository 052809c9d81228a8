"""Files are whole or as they were, whatever stops the writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_model.files import replacing, write_whole
from tests.support.paths import ROOT

WAYS: list[dict[str, Any]] = [
    {},
    {"durable": False},
    {"rivals": True},
    {"mode": 0o600, "rivals": True},
]
# Writes a file and is killed as soon as it calls the function named.
KILLED = """
import os, signal, sys
from pathlib import Path
from shared_model.files import write_whole
owner, name = {"os": os, "Path": Path}[sys.argv[1]], sys.argv[2]
setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
write_whole(Path(sys.argv[3]), b"new")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ways", WAYS)
def test_a_file_is_written_and_replaced(tmp_path: Path, ways: dict[str, Any]) -> None:
    for content in (b"first", b"", b"third\n\r\0"):
        write_whole(tmp_path / "file", content, **ways)
        assert (tmp_path / "file").read_bytes() == content
        assert names(tmp_path) == ["file"]


def test_the_mode_holds_and_the_umask_takes_from_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "secret", b"", mode=0o600)
        write_whole(tmp_path / "usual", b"")
        (tmp_path / "by hand").write_bytes(b"")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"secret": 0o600, "usual": 0o640, "by hand": 0o640}


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("place", ["open", "fdopen", "fsync", "replace"])
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ways: dict[str, Any],
    place: str,
    stop: BaseException,
) -> None:
    if place == "fsync" and not ways.get("durable", True):
        pytest.skip("not synced")
    write_whole(tmp_path / "file", b"old", **ways)

    def full(*_: Any) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(Path if place == "replace" else os, place, full)
        with pytest.raises(type(stop)):
            write_whole(tmp_path / "file", b"new", **ways)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("place", [("os", "fsync"), ("Path", "replace")])
def test_a_kill_before_the_rename_leaves_the_old_file_and_the_next_writer_cleans_up(
    tmp_path: Path, place: tuple[str, str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, *place, str(file)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["file", "file.tmp"]
    write_whole(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert names(tmp_path) == ["file"]


def test_a_leftover_that_all_can_read_gets_no_secret(tmp_path: Path) -> None:
    left = tmp_path / "secret.tmp"
    left.write_bytes(b"")
    left.chmod(0o666)
    with left.open("rb") as reader:
        write_whole(tmp_path / "secret", b"hidden", mode=0o600)
        assert reader.read() == b""
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_rivals_do_not_write_into_one_another(tmp_path: Path) -> None:
    with replacing(tmp_path / "file", rivals=True) as mine:
        theirs = mine.with_name(mine.name.replace(str(os.getpid()), "1"))
        assert theirs != mine
        theirs.write_bytes(b"half of theirs")
        mine.write_bytes(b"mine")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert theirs.read_bytes() == b"half of theirs"


def test_an_error_of_the_block_is_as_good_as_a_full_disk(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_half()
    assert names(tmp_path) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "file", b"")
    assert names(tmp_path) == ["file"]
