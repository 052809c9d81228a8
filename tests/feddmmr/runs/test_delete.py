"""`feddmmr runs delete`, and what is said of a run that was cut off, or that is being written."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from server_app.record.lock import Writer, held
from server_app.record.manifest_file import sealed
from tests.support.manifests import document
from tests.support.runs_command import Feddmmr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the run "a": Stage 1 complete, Stage 2 running by its record; and "b"."""
    data: Any = document()
    data["app"] |= {"name": "feddmmr", "version": "0", "packages": {"flwr": "1"}}
    data["dataset"] |= {"items": 9, "interactions": 99, "cold_items": 1}
    for name in ("a", "b"):
        folder = tmp_path / "home" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(sealed(data))
        (folder / "stage1-round0002-abc.safetensors").write_bytes(bytes(2000))
    return tmp_path / "home"


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "runs").iterdir())


@pytest.mark.parametrize("command", [["list"], ["show", "a"]])
def test_a_run_says_running_only_while_a_process_writes_it(
    feddmmr: Feddmmr, home: Path, command: list[str]
) -> None:
    code, out, _ = feddmmr("runs", *command, "--home", home)
    assert code == 0
    assert "2 interrupted 2/30" in " ".join(out.split())
    assert "2 running" not in " ".join(out.split())
    with held(home / "runs" / "a", Writer(7, "99")):
        out = feddmmr("runs", *command, "--home", home)[1]
        assert "2 running 2/30" in " ".join(out.split())
        assert ("writer   Flower run 99 (process 7); to end it: `flwr stop 99`" in out) == (
            command != ["list"]
        )


def test_a_run_is_deleted_and_nothing_else(feddmmr: Feddmmr, home: Path) -> None:
    code, out, err = feddmmr("runs", "delete", "a", "--yes", "--home", home)
    assert (code, err) == (0, "")
    assert out == f"deleted: {home / 'runs' / 'a'}\n"
    assert names(home) == ["b"]
    code, _, err = feddmmr("runs", "delete", "a", "--yes", "--home", home)
    assert (code, err.count("\n")) == (1, 1)
    assert "no such run" in err


def test_it_asks_first(feddmmr: Feddmmr, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = feddmmr("runs", "delete", "a", "--home", home)
    assert (code, "nobody is there; do: add --yes" in err) == (1, True)
    for answer, left in (("n\n", ["a", "b"]), ("y\n", ["b"])):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        code, out, _ = feddmmr("runs", "delete", "a", "--home", home)
        assert "run 'a' has 2 files" in out
        assert (code, names(home)) == (answer == "n\n", left)


def test_a_run_that_is_written_stays_as_it_is(feddmmr: Feddmmr, home: Path) -> None:
    with held(home / "runs" / "a", Writer(7, "99")):
        before = sorted((home / "runs" / "a").iterdir())
        code, _, err = feddmmr("runs", "delete", "a", "--yes", "--home", home)
        assert (code, err.count("\n")) == (1, 1)
        assert "another process writes this run" in err
        assert "`flwr stop 99`" in err
        assert sorted((home / "runs" / "a").iterdir()) == before


def test_whole_or_nothing(feddmmr: Feddmmr, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> Path:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        code, _, err = feddmmr("runs", "delete", "a", "--yes", "--home", home)
    assert (code, "cannot delete the run" in err, "it is as it was" in err) == (1, True, True)
    assert {"manifest.json", "stage1-round0002-abc.safetensors"} <= {
        path.name for path in (home / "runs" / "a").iterdir()
    }

    def stuck(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.rmtree", stuck)
    code, _, err = feddmmr("runs", "delete", "a", "--yes", "--home", home)
    assert (code, "not all of its files" in err, ".deleted-a-" in err) == (1, True, True)
    assert "a" not in names(home)  # what is left is no run
    assert " a " not in feddmmr("runs", "list", "--home", home)[1]


@pytest.mark.parametrize("name", ["../home", ".", "runs/a", "", ".deleted-a-1"])
def test_only_runs_are_deleted(feddmmr: Feddmmr, home: Path, name: str) -> None:
    (home / "runs" / ".deleted-a-1").mkdir()
    code, _, err = feddmmr("runs", "delete", name, "--yes", "--home", home)
    assert (code, "no such run" in err) == (1, True)
    assert names(home) == [".deleted-a-1", "a", "b"]


def test_a_damaged_run_and_one_of_a_killed_process_can_be_deleted(
    feddmmr: Feddmmr, home: Path
) -> None:
    (home / "runs" / "a" / "manifest.json").write_text("{")
    (home / "runs" / "b" / "manifest.json").unlink()
    assert "feddmmr runs delete b" in " ".join(feddmmr("runs", "list", "--home", home)[1].split())
    for name in ("a", "b"):
        assert feddmmr("runs", "delete", name, "--yes", "--home", home)[0] == 0
    assert names(home) == []
