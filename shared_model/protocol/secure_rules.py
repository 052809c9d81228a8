"""Which settings fit secure aggregation; the others are refused (docs/security.md says why)."""

from typing import TYPE_CHECKING

from shared_model.errors import ConfigError

if TYPE_CHECKING:  # the command reads settings whenever it starts, and waits for no torch
    from shared_model.protocol.settings import Settings


def check_secure(settings: "Settings") -> None:
    """``ConfigError`` for a key that ``aggregation="secure"`` cannot go with, in one line."""
    if not settings.secure:
        return
    if not settings.dp_clip_norm:
        # The server sees no node's norm: no limit, median or trimmed mean has anything to look at.
        _refuse("no update's size can be checked by the server", "dp-clip-norm", "> 0", "0")
    if settings.weighting != "uniform":
        _refuse("each user has one clip norm", "weighting", "uniform", settings.weighting)
    if settings.private and settings.dp_noise_on == "nodes":
        # Its noise is real numbers with no bound, which do not fit into integers of a fixed range.
        _refuse("noise of real numbers fits no masked sum", "dp-noise-on", "server", "nodes")


def _refuse(what: str, key: str, expected: str, got: str) -> None:
    raise ConfigError(
        what,
        where=f"run-config key '{key}'",
        expected=expected,
        got=got,
        todo="aggregation='secure' needs dp-clip-norm > 0, by which nodes clip each user, with "
        "weighting='uniform'; or choose another aggregation",
    )
