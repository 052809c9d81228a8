"""Which settings can keep a promise of differential privacy, or fit secure sums, and which not.

docs/privacy.md and docs/security.md say why. What needs the manifest or the data is in
server_app/privacy/ledger.py.
"""

from typing import TYPE_CHECKING

from shared_model.errors import ConfigError

if TYPE_CHECKING:  # the command reads the limits below whenever it starts, and waits for no torch
    from shared_model.protocol.settings import Settings

LEAST_NOISE = 0.1  # of the noise: below, the accountant's grid is too coarse and epsilon beyond use
MOST_NOISE = 2.0**16  # more than any budget needs
LEAST_FRACTION = 1e-6  # of the users in a round: below, the accountant has no numbers
_SECURE = (
    "aggregation='secure' needs dp-clip-norm > 0, by which nodes clip each user, with "
    "weighting='uniform', and neither candidates nor wire-dtype; or choose another aggregation"
)


def check_promise(settings: "Settings") -> None:
    """``ConfigError`` for keys ``dp-*`` that need another key, in one line that names both."""
    clips, noise = settings.dp_clip_norm > 0, settings.dp_noise_multiplier
    if noise and not clips:
        _refuse("noise without clipping bounds nothing", "dp-clip-norm", "> 0", "0")
    if 0 < noise < LEAST_NOISE:
        _refuse(
            "so little noise promises nothing", "dp-noise-multiplier", f">= {LEAST_NOISE}", noise
        )
    if noise > MOST_NOISE:
        _refuse("nothing is left under it", "dp-noise-multiplier", f"<= {MOST_NOISE:g}", noise)
    if noise and settings.fraction_train < LEAST_FRACTION:
        _refuse("nobody takes part", "fraction-train", ">= 1e-6", settings.fraction_train)
    if noise and settings.candidates:
        # Noise is on every row of the item table, and covers nothing that is told of some.
        _refuse("with noise all items compete", "candidates", "0", settings.candidates)
    if settings.dp_noise_on != "server" and not noise:
        _refuse("without noise no node draws any", "dp-noise-multiplier", "> 0", "0")
    if settings.dp_noise_on == "secure" and not settings.secure:
        # A share is noise for a sum of many: a node's bare one would have too little of it.
        what = "shares of noise are for sums of which nobody sees the parts"
        _refuse(what, "aggregation", "secure", settings.aggregation)
    if settings.dp_epsilon and not noise:
        _refuse("a budget is spent by noise alone", "dp-noise-multiplier", "> 0", "0")
    if noise and settings.stage != 1 and settings.memory_novelty < 0:
        # left open, it is a median over the users' own interactions, which nothing noises
        _refuse("the memory's threshold is not noised", "memory-novelty", ">= 0, as in 0.3", "open")
    if clips and settings.weighting != "uniform":
        _refuse("each user has one clip norm", "weighting", "uniform", settings.weighting)
    if noise and settings.aggregation not in ("mean", "secure"):
        # the others scale or choose nodes by what they sent: no bound on what one user changes
        _refuse("only a plain sum can be noised", "aggregation", "mean", settings.aggregation)


def check_secure(settings: "Settings") -> None:
    """``ConfigError`` for a key that ``aggregation="secure"`` cannot go with, in one line."""
    if not settings.secure:
        return
    if not settings.dp_clip_norm:
        # The server sees no node's norm: no limit, median or trimmed mean has anything to look at.
        _refuse("no update's size can be checked by the server", "dp-clip-norm", "> 0", 0, _SECURE)
    if settings.weighting != "uniform":
        got = settings.weighting
        _refuse("each user has one clip norm", "weighting", "uniform", got, _SECURE)
    if settings.candidates:
        # Whose rows a sum has is what nobody may see.
        _refuse(
            "the rows of some items tell which", "candidates", "0", settings.candidates, _SECURE
        )
    if settings.wire_dtype != "float32":
        # Masked vectors are integers of their own kind, of 32 bits.
        got = settings.wire_dtype
        _refuse("masked sums have a format of their own", "wire-dtype", "float32", got, _SECURE)
    if settings.private and settings.dp_noise_on == "nodes":
        # Its noise is real numbers with no bound, which do not fit into integers of a fixed range.
        what = "noise of real numbers fits no masked sum"
        _refuse(what, "dp-noise-on", "server or secure", "nodes", _SECURE)


def _refuse(what: str, key: str, expected: str, got: object, todo: str = "") -> None:
    raise ConfigError(
        what,
        where=f"run-config key '{key}'",
        expected=expected,
        got=str(got),
        todo=todo
        or "differential privacy needs dp-clip-norm and dp-noise-multiplier > 0 with "
        "weighting='uniform' and aggregation='mean' or 'secure'",
    )
