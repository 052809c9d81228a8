"""FedDMMR's command and Python API (api.py): everything that is done offline, and runs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feddmmr.api import open_run as open_run
    from feddmmr.api import recommend as recommend
    from feddmmr.api import run as run

__all__ = ["open_run", "recommend", "run"]


def __getattr__(name: str) -> Any:
    """The API, loaded once it is used: torch comes with it, and `feddmmr.site` needs none."""
    if name not in __all__:
        raise AttributeError(f"module 'feddmmr' has no attribute {name!r}")
    from feddmmr import api

    return getattr(api, name)
