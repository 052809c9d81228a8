"""The grid of secure sums, and whether the sites' shares of the noise fit on it."""

from server_app.nodes.census import Census
from shared_model.errors import ConfigError
from shared_model.protocol.config import Settings
from shared_model.protocol.masked_update import sum_noise, update_scale
from shared_model.secure.noise import LEAST_SHARE, share_of
from shared_model.secure.use import threshold_of


def scale_of(settings: Settings, census: Census) -> float:
    """By what numbers are multiplied so that the sum of all sites, and its noise, fits 32 bits."""
    sites, users = len(census.nodes), sum(node.users for node in census.nodes.values())
    std = settings.noise_std if settings.shares_noise else 0.0
    noise = sum_noise(std, sites, _threshold(settings, census))
    return update_scale(settings.dp_clip_norm, users, sites, noise)


def require_shares(settings: Settings, census: Census) -> None:
    """``ConfigError`` if a site's share of the noise would be too small for integers."""
    if not settings.shares_noise:
        return
    share = share_of(settings.noise_std, scale_of(settings, census), _threshold(settings, census))
    if share < LEAST_SHARE:
        raise ConfigError(
            "32 bits hold no sum of so many users with so little noise of each site",
            where="run-config key 'dp-noise-on'",
            expected=f"{LEAST_SHARE:g} units of noise of a site",
            got=f"{share:.2g} with {census.dataset()['users']} users on {len(census.nodes)} nodes",
            todo="take a larger dp-noise-multiplier or fewer nodes, or dp-noise-on='server'",
        )


def _threshold(settings: Settings, census: Census) -> int:
    return threshold_of(settings.secure_threshold, len(census.nodes))
