"""The command `feddmmr`: each command module registers itself here, heavy imports wait for a call.

Every error that a user can cause is one line on stderr, `error: ...`, and exit code 1; what is
odd about data that are taken is one line as well, `warning: ...`.
"""

import sys
import warnings
from importlib.metadata import version
from typing import Annotated, TextIO

import typer

from feddmmr import privacy_command
from feddmmr.audit import command as audit_command
from feddmmr.baselines import command as baseline_command
from feddmmr.benchmark import command as benchmark_command
from feddmmr.data import command as data_commands
from feddmmr.features import command as features_command
from feddmmr.launch import command as run_command
from feddmmr.launch import federation_command, site_command
from feddmmr.recommendations import command as recommend_command
from feddmmr.runs import command as runs_command
from shared_model.errors import DataWarning, FedDMMRError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"feddmmr {version('feddmmr')}, flwr {version('flwr')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Versions."),
    ] = False,
) -> None:
    """Federated multimodal sequential recommendation: data, features and runs."""


app.add_typer(data_commands.app, name="data")
app.add_typer(features_command.app, name="features")
app.add_typer(privacy_command.app, name="privacy")
app.command("audit")(audit_command.audit)
app.command("baselines")(baseline_command.baselines)
app.command("benchmark")(benchmark_command.benchmark)
app.command("federation")(federation_command.federation)
app.command("run")(run_command.run)
app.command("recommend")(recommend_command.recommend)
app.add_typer(runs_command.app, name="runs")
app.command("site", context_settings=site_command.FLOWERS_OWN)(site_command.site)
app.command("supernode", context_settings=site_command.FLOWERS_OWN)(site_command.supernode)


def main() -> None:
    """Run the command line; the exit code is 0 only if the command did what it says."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except (FedDMMRError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line about data; any other warning as Python shows it, with its place in the code."""
    told = f"warning: {message}\n"
    if not issubclass(category, DataWarning):
        told = warnings.formatwarning(message, category, filename, lineno, line)
    print(told, end="", file=file or sys.stderr)


if __name__ == "__main__":
    main()
