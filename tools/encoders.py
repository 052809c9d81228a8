"""The encoders: open_clip for pictures, sentence-transformers for texts. Nothing else imports them.

Weights come from a local file or folder, or from the Hugging Face hub; without a network a hub
name fails in seconds, with one line. Weights are tensors and nothing else.
"""

import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_model.errors import ConfigError, DataError

NETWORK_TIMEOUT = 5.0  # seconds until the hub counts as unreachable
TEXT_HOME = "sentence-transformers"  # the hub's owner of names without one
NOT_NEEDED = ["*.bin", "*.h5", "*.ot", "*.msgpack", "onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder: `encode` takes B pictures or texts and gives unit rows float16 [B, dim]."""

    name: str
    dim: int
    sha256: str  # of the weights' file
    versions: dict[str, str]  # of the packages that ran it
    encode: Callable[[Sequence[Any]], npt.NDArray[np.float16]]


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


def load_image_encoder(model: str, weights: str, device: str) -> Encoder:
    """An open_clip model by its built-in name, weights from a file or a hub tag.

    Raises DataError if the weights cannot be had or do not fit the model.
    """
    local = Path(weights).is_file()
    _require_local(weights, local)
    _use_network(not local)
    open_clip = _import("open_clip")
    import torch

    where = f"--image-model {model} --image-weights {weights}"
    with _loading(where, "a weights file of this model, with --image-weights FILE", local):
        file = Path(weights).resolve() if local else _fetch_clip(model, weights)
        source = str(file) if local else weights  # a tag also tells how pictures are prepared
        net, _, preprocess = open_clip.create_model_and_transforms(
            model, pretrained=source, device=device, weights_only=True
        )
    net.eval()

    def encode(pictures: Sequence[Any]) -> npt.NDArray[np.float16]:
        batch = torch.stack([preprocess(picture) for picture in pictures]).to(device)
        with torch.inference_mode():
            return unit_rows(net.encode_image(batch).float().cpu().numpy())

    from PIL import Image

    dim = encode([Image.new("RGB", (8, 8), "gray")]).shape[1]
    sha256 = hash_files([file])
    name = f"open_clip {model} ({Path(weights).name}, sha256 {sha256[:12]})"
    return Encoder(name, dim, sha256, _versions("open_clip_torch", "torch", "pillow"), encode)


def load_text_encoder(model: str, device: str) -> Encoder:
    """A sentence-transformers model from a folder or by its hub name; texts are cut at its limit.

    Raises DataError if the model cannot be had.
    """
    local = Path(model).is_dir()
    _require_local(model, local)
    _use_network(not local)
    sentence_transformers = _import("sentence_transformers")
    _import("transformers").utils.logging.disable_progress_bar()  # ours is enough

    with _loading(f"--text-model {model}", "a model folder, with --text-model FOLDER", local):
        folder = Path(model) if local else _fetch_text(model)
        files = sorted(folder.rglob("*.safetensors"))
        if not files:
            raise ValueError("no .safetensors file in the model's folder")
        net = sentence_transformers.SentenceTransformer(
            str(folder), device=device, model_kwargs={"use_safetensors": True}
        )

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float16]:
        rows = net.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return unit_rows(np.asarray(rows, dtype=np.float32))

    sha256 = hash_files(files)
    label = Path(model).resolve().name if local else model
    name = f"sentence-transformers {label} (sha256 {sha256[:12]})"
    used = _versions("sentence-transformers", "transformers", "torch")
    return Encoder(name, encode(["a"]).shape[1], sha256, used, encode)


def unit_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Rows of norm 1. Raises DataError for a NaN, infinity or zero row: the encoder is broken."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise DataError("the encoder gives no usable vectors", got="NaN, infinity or zero")
    unit: npt.NDArray[np.float16] = (rows / norms).astype(np.float16)
    return unit


def hash_files(files: list[Path]) -> str:
    """sha256 of the files' bytes, one after the other: of one file, the file's own."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            "the encoders are not installed",
            got=str(error),
            todo="install the extra: uv sync --extra features, or pip install 'feddmmr[features]'",
        ) from error


def _require_local(name: str, local: bool) -> None:
    """A name that looks like a path is one: it is not looked up on the hub."""
    if not local and (name.startswith((".", "/", "~")) or Path(name).suffix in (".pt", ".bin")):
        raise DataError("the weights do not exist", where=name, todo="check the path")
    if not local and Path(name).suffix in (".safetensors", ".npz"):
        raise DataError("the weights do not exist", where=name, todo="check the path")


def _use_network(wanted: bool) -> None:
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
            _import("huggingface_hub.constants").HF_HUB_OFFLINE = True


def _fetch_clip(model: str, tag: str) -> Path:
    pretrained = _import("open_clip.pretrained")
    if not (config := pretrained.get_pretrained_cfg(model, tag)):
        raise ValueError(f"open_clip knows no weights {tag!r} for the model {model!r}")
    return Path(pretrained.download_pretrained(config))


def _fetch_text(model: str) -> Path:
    from huggingface_hub import snapshot_download

    name = model if "/" in model else f"{TEXT_HOME}/{model}"
    return Path(snapshot_download(name, ignore_patterns=NOT_NEEDED))


@contextmanager
def _loading(where: str, local: str, is_local: bool) -> Iterator[None]:
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


def _versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}
