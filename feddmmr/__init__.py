"""FedDMMR's command and Python API (api.py): everything that is done offline, and runs."""

from feddmmr.api import open_run, recommend, run

__all__ = ["open_run", "recommend", "run"]
