"""Weights of encoders: local files, or the Hugging Face hub if there is a network.

Without a network a hub name fails in seconds, with one line.
"""

import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared_model.errors import DataError

NETWORK_TIMEOUT = 5.0  # seconds until the hub counts as unreachable


def hash_files(files: list[Path]) -> str:
    """sha256 of the files' bytes, one after the other: of one file, the file's own."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def import_library(name: str) -> Any:
    """A module of the extra `features`. Raises DataError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            "the encoders are not installed",
            got=str(error),
            todo="install the extra: uv sync --extra features, or pip install 'feddmmr[features]'",
        ) from error


def require_local(name: str, local: bool) -> None:
    """Raise DataError for a name that looks like a path: it is not looked up on the hub."""
    if not local and (name.startswith((".", "/", "~")) or Path(name).suffix in (".pt", ".bin")):
        raise DataError("the weights do not exist", where=name, todo="check the path")
    if not local and Path(name).suffix in (".safetensors", ".npz"):
        raise DataError("the weights do not exist", where=name, todo="check the path")


def use_network(wanted: bool) -> None:
    """Go offline if the hub is wanted and away.

    The client alone tries each file several times, with growing waits, before it gives up.
    """
    if wanted and os.environ.get("HF_HUB_OFFLINE") != "1":
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        try:
            urllib.request.urlopen(endpoint, timeout=NETWORK_TIMEOUT).close()  # noqa: S310
        except urllib.error.HTTPError:
            return  # it answers
        except (OSError, ValueError):
            os.environ["HF_HUB_OFFLINE"] = "1"
            # The client reads the variable when it is imported, which may be over.
            import_library("huggingface_hub.constants").HF_HUB_OFFLINE = True


@contextmanager
def loading(where: str, local: str, is_local: bool) -> Iterator[None]:
    """One line instead of a traceback and of what the libraries log on the way."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.CRITICAL)
    try:
        yield
    # The libraries raise whatever they like, a bare assertion for weights of another model too.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        offline = os.environ.get("HF_HUB_OFFLINE") == "1" and not is_local
        raise DataError(
            "the encoder cannot be loaded",
            where=where,
            got=f"no network, and not in the local cache ({reason})" if offline else reason,
            todo=f"pass {local}",
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package."""
    return {package: version(package) for package in packages}
