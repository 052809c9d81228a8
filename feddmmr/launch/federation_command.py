"""`feddmmr federation`: SuperLink and SuperNodes on this machine, until Ctrl-C; no Docker."""

import signal
import sys
from pathlib import Path
from shlex import join, quote
from typing import Annotated

import typer

from feddmmr.launch.access import secured
from feddmmr.launch.federation import CONNECTION, ENDINGS, Federation
from shared_model.errors import ConfigError
from shared_model.protocol.rules import DEVICE


def federation(
    folder: Annotated[Path, typer.Argument(help="New folder for state, logs and results.")],
    data: Annotated[
        list[Path], typer.Argument(help="A dataset folder for each node (`feddmmr data split`).")
    ],
    keys: Annotated[
        Path | None,
        typer.Option(help="Folder made by docker/keys.sh: TLS, keys, secrets. Without: plain."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the SuperLink.")] = 8000,
    devices: Annotated[
        str, typer.Option(help="A device for each node: cuda:0,cuda:1,... Without: the run's.")
    ] = "",
) -> None:
    """Start a SuperLink and a SuperNode for each dataset folder, and keep them until Ctrl-C."""
    if not Path("/proc/self/environ").exists():
        raise ConfigError("it finds its processes by /proc", expected="Linux", todo="use Docker")
    _refuse_missing(data)
    _refuse_used(folder)
    nodes = node_configs(data, devices)
    access = secured(keys) if keys else None
    for end in ENDINGS:
        signal.signal(end, signal.default_int_handler)
    try:
        with Federation(folder, nodes, access, port) as running:
            print(f"a SuperLink at {running.address}, {len(nodes)} nodes; logs: {folder}/*/log")
            print(_how_to_run(running))
            print(f"results: {running.home.with_name('.feddmmr')}", flush=True)
            running.watch()
    except KeyboardInterrupt:
        print("ended")


def node_configs(data: list[Path], devices: str = "") -> list[str]:
    """What each node is told: where its data is, its name and, if any are given, its device."""
    nodes = [f'data-dir="{part.absolute()}" name="node-{i}"' for i, part in enumerate(data)]
    if not devices:
        return nodes
    named = devices.split(",")
    if len(named) != len(nodes) or not all(map(DEVICE.holds, named)):
        raise ConfigError(
            "not a device for each node",
            where="--devices",
            expected=f"{len(nodes)} with commas between them, each {DEVICE.expected}",
            got=devices,
        )
    return [f'{node} device="{device}"' for node, device in zip(nodes, named, strict=True)]


def _how_to_run(federation: Federation) -> str:
    """The command that submits a run to all its nodes, from any folder."""
    nodes = f"min-nodes={len(federation.nodes)}"
    program = [sys.argv[0], "run", "--connection", CONNECTION, "--set", nodes]
    return f"FLWR_HOME={quote(str(federation.flower_home))} {join(program)}"


def _refuse_used(folder: Path) -> None:
    """A federation's state, logs and results are those of one SuperLink."""
    if folder.exists():
        raise ConfigError(
            "the folder is there already",
            where=str(folder),
            expected="a new one, for state, logs and results",
            todo="name another, or remove it and the results in it",
        )


def _refuse_missing(data: list[Path]) -> None:
    for part in data:
        if not (part / "dataset.json").is_file():
            raise ConfigError(
                "not a dataset", where=str(part), expected="a folder with dataset.json"
            )
