"""The command as a whole: its version, and help that says all that was written."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
import typer

from feddmmr import cli

GROUP = typer.main.get_command(cli.app)


def commands(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def printed(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["feddmmr", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_it_tells_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(("--version",), monkeypatch, capsys)
    assert out.startswith(f"feddmmr {version('feddmmr')}, flwr {version('flwr')}, torch ")


@pytest.mark.parametrize("words", [words for words, _ in commands(GROUP)], ids=" ".join)
def test_no_word_in_brackets_is_eaten(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = dict(commands(GROUP))[words]
    written = [command.help or "", *(getattr(p, "help", None) or "" for p in command.params)]
    bracketed = [word for text in written for word in re.findall(r"\[[^\]]+\]", text)]
    assert (words == ("run",)) == (bracketed != []), bracketed  # who adds one sees it checked below
    out = " ".join(printed((*words, "--help"), monkeypatch, capsys).split())
    assert all(word in out for word in bracketed)
