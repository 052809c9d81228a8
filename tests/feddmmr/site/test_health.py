"""A site's own health check: when it heard of its SuperNode, and whether it still runs."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from feddmmr.site import health
from feddmmr.site.executor import ResidentExecutor


@pytest.fixture(autouse=True)
def flower_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    return tmp_path / "flwr"


def checked() -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "feddmmr.site.health"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def looked(executor: ResidentExecutor) -> None:
    """What Flower's loop does before it asks for a task."""
    executor.reconcile()
    executor.get_eligible_capacity(set())


def test_a_site_is_healthy_once_its_supernode_answered() -> None:
    executor = ResidentExecutor()
    looked(executor)
    assert "no site has reached its SuperNode" in health.trouble(time.time())
    assert checked().returncode == 1
    looked(executor)
    assert health.trouble(time.time()) == ""
    assert checked().returncode == 0


def test_a_site_that_hears_nothing_is_not(flower_home: Path) -> None:
    health.Alive().heard()
    later = time.time() + health.LONGEST
    assert health.trouble(later - 1) == ""
    assert "the site heard of its SuperNode 121 s ago" in health.trouble(later + 1)
    os.utime(flower_home / health.NAME, (0, 0))
    done = checked()
    assert done.returncode == 1
    assert done.stderr.startswith("the site heard of its SuperNode")
    assert len(done.stderr.splitlines()) == 1


def test_a_site_that_is_gone_is_not(flower_home: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    health.Alive().heard()
    assert health.trouble(time.time()) == ""
    (flower_home / health.NAME).write_text(f"{ended.pid}\n")
    assert f"process {ended.pid} is gone" in health.trouble(time.time())


def test_a_new_site_does_not_live_on_an_earlier_note(flower_home: Path) -> None:
    health.Alive().heard()
    health.Alive()
    assert not (flower_home / health.NAME).exists()


def test_the_command_checks_without_options_of_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from feddmmr import cli

    became: list[Any] = []

    def become(program: str, words: list[str]) -> None:
        became.append(words)
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    CliRunner().invoke(cli.app, ["site", "--check"])
    assert became == [[sys.executable, "-P", "-m", "feddmmr.site.health"]]
