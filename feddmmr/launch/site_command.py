"""`feddmmr site` and `feddmmr supernode`: what a site of a deployment runs."""

import os
import sys

import typer

FLOWERS_OWN = {"allow_extra_args": True, "ignore_unknown_options": True}


def site(context: typer.Context) -> None:
    """A node's ClientApps in one resident worker; options: flower-superexec --help.

    With --check alone: exit code 0 if the site of this FLWR_HOME hears of its SuperNode.
    """
    if context.args == ["--check"]:
        _become("feddmmr.site.health", [])
    _become("feddmmr.site", context.args)


def supernode(context: typer.Context) -> None:
    """A SuperNode that looks for messages often; options: flower-supernode --help."""
    _become("feddmmr.site.supernode", context.args)


def _become(module: str, options: list[str]) -> None:
    """Replace this process, which has far more loaded than a site needs."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *options])  # noqa: S606
