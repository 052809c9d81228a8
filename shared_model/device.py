"""Which device a process uses, how many threads, and arrays on their way there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared_model.errors import ConfigError


def torch_device(setting: str) -> str:
    """The setting ``device`` by torch's name; "auto" is the first GPU that this process sees."""
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return setting


def take_device(device: str, node: str) -> None:
    """Make a GPU that was chosen by number this process's own; ``ConfigError`` if it has none."""
    if not device.startswith("cuda"):
        return
    number, there = torch.device(device).index or 0, torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            "no such GPU on this node",
            where=f"{node}, key 'device' of its node config or of the run config",
            expected=f"cuda:0 to cuda:{there - 1}" if there else "cpu: it has none",
            got=device,
            todo="use device='cpu', or give the node a GPU (client-resources-num-gpus)",
        )
    torch.cuda.set_device(number)  # or what names no device would take memory of the first one


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array of the processor as a tensor on ``device``; nothing waits for a GPU's other work."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Torch's operators use one thread each in here, and in threads that start in here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
