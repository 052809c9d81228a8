"""A small encoder of pictures, and `feddmmr features encode` in this process."""

from pathlib import Path
from typing import Any

from feddmmr.features.encode import EncodeOptions, encode_features

ARCHITECTURE = "ViT-S-32-alt"  # the smallest that open_clip has built in


def encoded(shop: Path, output: str = "out.safetensors", **options: Any) -> list[str]:
    """Encode the shop; returns what was said."""
    said: list[str] = []
    chosen = {"images": shop / "pictures", "device": "cpu"} | options
    settings = EncodeOptions(items=shop / "items.csv", output=shop / output, **chosen)
    encode_features(settings, said.append, lambda chunks, _: chunks)
    return said
