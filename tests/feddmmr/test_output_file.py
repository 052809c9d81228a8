"""What a command writes for its user is whole, and takes no link's or device's place."""

import os
from pathlib import Path

import pytest

from feddmmr.output_file import write_output
from shared_model.errors import DataError


def test_a_full_disk_keeps_the_old_file_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_output(tmp_path / "out.json", "old ü\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"the disk is full; where: .*out\.json; got No space left"):
        write_output(tmp_path / "out.json", "new")
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == "old ü\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("one", "two"):  # the first time, it leads nowhere
        write_output(link, text)
        assert target.read_text() == text
        assert link.is_symlink()


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, "told")
    assert os.read(reader, 100) == b"told"
    os.close(reader)
    assert pipe.is_fifo()
