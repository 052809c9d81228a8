"""The encoders: what they all are, and sentence-transformers for texts; clip.py has the pictures'.

An item is encoded by itself. In a batch the last bits of a row depend on the batch's size and on
the longest text in it, and two sites that encode one catalogue would get different files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feddmmr.features import rows as feature_rows
from feddmmr.features.hub import (
    hash_files,
    import_library,
    loading,
    require_local,
    use_network,
    versions,
)
from shared_model.device import single_threaded
from shared_model.errors import ConfigError, DataError

TEXT_HOME = "sentence-transformers"  # the hub's owner of names without one
NOT_NEEDED = ["*.bin", "*.h5", "*.ot", "*.msgpack", "onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder. `encode` takes a text or picture and gives a float16 row [dim] of norm 1.

    `cut` says of a text or a picture's path whether a part of it is not seen, and `limit` names
    such ones to the reader. `settings` are how a text or picture is prepared, for the metadata.
    """

    name: str
    dim: int
    sha256: str  # of the weights' file
    versions: dict[str, str]  # of the packages that ran it
    encode: Callable[[Any], npt.NDArray[np.float16]]
    cut: Callable[[Any], bool]
    limit: str
    settings: dict[str, Any]


def choose_device(device: str) -> str:
    """cpu or cuda for auto, cpu or cuda. Raises ConfigError if there is no such device."""
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("no CUDA device", got="--device cuda", todo="pass --device cpu")
    return device


def load_text_encoder(model: str, device: str) -> Encoder:
    """A sentence-transformers model from a folder or by its hub name; texts are cut at its limit.

    Raises DataError if the model cannot be had.
    """
    local = Path(model).is_dir()
    require_local(model, local)
    use_network(not local)
    sentence_transformers = import_library("sentence_transformers")
    import_library("transformers").utils.logging.disable_progress_bar()  # ours is enough

    with loading(f"--text-model {model}", "a model folder, with --text-model FOLDER", local):
        folder = Path(model) if local else _fetch_text(model)
        files = sorted(folder.rglob("*.safetensors"))
        if not files:
            raise ValueError("no .safetensors file in the model's folder")
        net = sentence_transformers.SentenceTransformer(
            str(folder), device=device, model_kwargs={"use_safetensors": True}
        )
    limit = net.max_seq_length  # None: no limit
    prompt = net.prompts.get(net.default_prompt_name) or ""  # what the model puts before a text

    def encode(text: str) -> npt.NDArray[np.float16]:
        with single_threaded():  # on some processors the last bits depend on how many share it
            return unit_row(net.encode([text], batch_size=1, show_progress_bar=False))

    def cut(text: str) -> bool:
        tokens = net.tokenizer(prompt + text, truncation=False, verbose=False)["input_ids"]
        return bool(limit is not None and len(tokens) > limit)

    sha256 = hash_files(files)
    label = Path(model).resolve().name if local else model
    return Encoder(
        name=f"sentence-transformers {label} (sha256 {sha256[:12]})",
        dim=len(encode("a")),
        sha256=sha256,
        versions=versions("sentence-transformers", "transformers", "torch"),
        encode=encode,
        cut=cut,
        limit=f"texts are longer than {limit} tokens: the rest of them is not seen",
        settings={"max_tokens": limit},
    )


def unit_row(row: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """The row [1, dim] as [dim] of norm 1. Raises DataError for a NaN, infinity or zero row."""
    if not (np.isfinite(row).all() and row.any()):
        raise DataError("the encoder gives no usable vectors", got="NaN, infinity or zero")
    unit: npt.NDArray[np.float16] = feature_rows.unit_rows(row)[0]
    return unit


def _fetch_text(model: str) -> Path:
    from huggingface_hub import snapshot_download

    name = model if "/" in model else f"{TEXT_HOME}/{model}"
    return Path(snapshot_download(name, ignore_patterns=NOT_NEEDED))
