"""open_clip for pictures: each family of CLIP models wants them prepared in its own way.

open_clip lists, for the weights that it knows by a tag, how pictures are scaled and normalised and
whether the activation is QuickGELU. A weights file does not say, so a local one is told by a tag.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feddmmr.features.encoders import Encoder, unit_row
from feddmmr.features.files import Say
from feddmmr.features.hub import (
    hash_files,
    import_library,
    loading,
    require_local,
    use_network,
    versions,
)
from feddmmr.features.pictures import aspect_ratio, middle
from shared_model.device import single_threaded
from shared_model.errors import ConfigError, DataError

WIDE = 2  # to 1: of a longer picture less than half is in the middle square
Settings = dict[str, Any]


def load_image_encoder(model: str, weights: str, clip_tag: str, device: str, say: Say) -> Encoder:
    """An open_clip model by its built-in name, weights from a file or a hub tag.

    `clip_tag` is the tag of open_clip whose settings a local file gets; "" is for OpenAI's, which
    is said. Raises DataError if the weights cannot be had or do not fit the model, ConfigError for
    a tag that is not of this model or not needed, or that is needed.
    """
    local = Path(weights).is_file()
    require_local(weights, local)
    use_network(not local)
    open_clip = import_library("open_clip")
    if model not in open_clip.list_models():
        raise ConfigError("open_clip has no such model", got=f"--image-model {model}")
    if local:
        settings = _local_settings(model, weights, clip_tag, say)
    elif clip_tag:
        raise ConfigError(
            "a tag of open_clip tells its settings by itself",
            got=f"--clip-tag {clip_tag} --image-weights {weights}",
            todo="leave out --clip-tag, or pass a local file with --image-weights",
        )
    else:
        settings = _settings(model, weights)

    where = f"--image-model {model} --image-weights {weights}"
    with loading(where, "a weights file of this model, with --image-weights FILE", local):
        file = Path(weights).resolve() if local else _fetch(model, weights)
        net, _, preprocess = open_clip.create_model_and_transforms(
            model,
            pretrained=str(file) if local else weights,
            force_quick_gelu=settings["quick_gelu"],
            image_mean=settings["mean"],
            image_std=settings["std"],
            image_interpolation=settings["interpolation"],
            image_resize_mode=settings["resize_mode"],
            device=device,
            weights_only=True,
        )
    sha256 = hash_files([file])
    name = f"open_clip {model} ({Path(weights).name}, sha256 {sha256[:12]})"
    return _encoder(net.eval(), preprocess, settings, device, name, sha256)


def _encoder(
    net: Any, preprocess: Any, settings: Settings, device: str, name: str, sha256: str
) -> Encoder:
    import torch
    from PIL import Image

    crops = settings["resize_mode"] == "shortest"  # else the whole picture is seen

    def encode(picture: Image.Image) -> npt.NDArray[np.float16]:
        pixels = preprocess(middle(picture) if crops else picture)
        with torch.inference_mode(), single_threaded():
            return unit_row(net.encode_image(pixels[None].to(device)).float().cpu().numpy())

    def cut(path: Path) -> bool:
        try:
            return crops and aspect_ratio(path) > WIDE
        except (DataError, OSError):  # is said when the picture is to be encoded
            return False

    return Encoder(
        name=name,
        dim=len(encode(Image.new("RGB", (8, 8), "gray"))),
        sha256=sha256,
        versions=versions("open_clip_torch", "torch", "pillow"),
        encode=encode,
        cut=cut,
        limit=f"pictures are longer than {WIDE} to 1: only the square in the middle is seen",
        settings=settings,
    )


def _local_settings(model: str, weights: str, clip_tag: str, say: Say) -> Settings:
    """Those of the tag; without one OpenAI's, unless all known weights of the model have others."""
    tags = import_library("open_clip").list_pretrained_tags_by_model(model)
    if clip_tag:
        if clip_tag not in tags:
            raise ConfigError(
                f"open_clip knows no such weights of {model}",
                expected=", ".join(tags) or "no tag: it knows none",
                got=f"--clip-tag {clip_tag}",
            )
        return _settings(model, clip_tag)
    assumed = _settings(model, "")
    if tags and all(_unlike(assumed, _settings(model, tag)) for tag in tags):
        raise ConfigError(
            f"no known weights of {model} are run as OpenAI's CLIP",
            where=weights,
            expected=f"--clip-tag, one of {', '.join(tags)}",
            got=f"no --clip-tag; {tags[0]} has {_told(_settings(model, tags[0]))}",
        )
    say(
        f"{weights}: preprocessing and activation as OpenAI's CLIP are assumed "
        f"({_told(assumed)}); pass --clip-tag for another family"
    )
    return assumed


def _settings(model: str, tag: str) -> Settings:
    """How pictures are prepared for a tag's weights ("": OpenAI's), and whether QuickGELU is on.

    An architecture with QuickGELU keeps it: open_clip cannot turn it off, and its list lacks it for
    the weights of one such architecture.
    """
    open_clip = import_library("open_clip")
    transform = import_library("open_clip.transform")
    listed = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    if tag and not listed:
        raise DataError(
            f"open_clip knows no weights {tag!r} for the model {model!r}",
            todo="pass one of its tags or a local file with --image-weights",
        )
    found = transform.merge_preprocess_dict(transform.PreprocessCfg(), listed)
    kept = ("mean", "std", "interpolation", "resize_mode")
    own = open_clip.get_model_config(model)
    quick = own.get("quick_gelu", False) or listed.get("quick_gelu", False)
    return {"clip_tag": tag, "quick_gelu": quick} | {name: found[name] for name in kept}


def _unlike(one: Settings, other: Settings) -> bool:
    return one | {"clip_tag": ""} != other | {"clip_tag": ""}


def _told(settings: Settings) -> str:
    """The settings in a line."""
    mean = " ".join(f"{value:.3f}" for value in settings["mean"])
    activation = "QuickGELU" if settings["quick_gelu"] else "GELU"
    return f"mean {mean}, {settings['interpolation']}, {settings['resize_mode']}, {activation}"


def _fetch(model: str, tag: str) -> Path:
    open_clip = import_library("open_clip")
    return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(model, tag)))
