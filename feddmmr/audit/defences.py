"""The defences that an audit compares, each a few run-config keys over those of the run."""

from dataclasses import dataclass

from shared_model.protocol.config import Settings, Value

UNDEFENDED, CLIPPING, NOISE = "undefended", "clipping", "clipping + noise"
DEFENCES = (UNDEFENDED, CLIPPING, NOISE)


@dataclass(frozen=True)
class Privacy:
    """Norm to which each user's update is clipped, and the std of a round's noise in such norms."""

    clip_norm: float
    multiplier: float


def privacy_of(settings: Settings, clip_norm: float, multiplier: float) -> Privacy:
    """The run's own clipping and noise where it had some, else the given ones."""
    return Privacy(settings.dp_clip_norm or clip_norm, settings.dp_noise_multiplier or multiplier)


def overrides(settings: Settings, privacy: Privacy) -> dict[str, dict[str, Value]]:
    """The run-config keys of each defence over those of the run; none where it had that defence.

    Undefended is the run without clipping of users and without noise; what it says of nodes
    (``aggregation``) stays.
    """
    off: dict[str, Value] = {"dp-noise-multiplier": 0.0, "dp-epsilon": 0.0}
    off |= {"dp-noise-on": "server"}
    sums: dict[str, Value] = {"weighting": "uniform", "aggregation": "mean"}
    clip: dict[str, Value] = sums | off | {"dp-clip-norm": privacy.clip_norm}
    noise: dict[str, Value] = clip | {"dp-noise-multiplier": privacy.multiplier}
    own = {CLIPPING: settings.dp_clip_norm > 0, NOISE: settings.dp_noise_multiplier > 0}
    return {
        UNDEFENDED: off | {"dp-clip-norm": 0.0},
        CLIPPING: {} if own[CLIPPING] and not own[NOISE] else clip,
        NOISE: {} if own[NOISE] else noise,
    }
