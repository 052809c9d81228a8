"""Find the pictures of a catalogue, and open any of them as 8-bit RGB.

What cannot be opened is a DataError that names the file; the caller leaves that item out.
"""

import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared_model.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# What decoders raise on damaged files, besides OSError and Pillow's own.
DAMAGE = (ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError)


def find_pictures(folder: Path, item_ids: list[str]) -> tuple[dict[str, Path], list[Path]]:
    """Pictures by item id (the file's name without suffix), and files that are no pictures.

    Raises DataError if the folder is missing or has no pictures, if a file is named after no item,
    or if two are named after the same one.
    """
    if not folder.is_dir():
        raise DataError("the folder of pictures does not exist", where=str(folder))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    others = [path for path in files if path.suffix.lower() not in SUFFIXES]
    known = set(item_ids)
    found: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem not in known:
            raise DataError(
                "unknown item id",
                where=str(path),
                expected="pictures named after an item_id of the items file",
                got=repr(path.stem),
                todo="rename or remove the picture, or add the item",
            )
        if path.stem in found:
            raise DataError(
                "an item has two pictures",
                where=f"{found[path.stem]} and {path.name}",
                todo="remove one of them",
            )
        found[path.stem] = path
    if not found:
        raise DataError("no pictures", where=str(folder), expected=", ".join(SUFFIXES))
    return found, others


def open_picture(path: Path) -> tuple["Image.Image", str]:
    """The picture as RGB, upright, and a remark ("" or that only the first frame is used).

    Raises DataError for an empty, broken, unreadable or huge file.
    """
    from PIL import Image, ImageOps

    if path.stat().st_size == 0:
        raise DataError("an empty picture file", where=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A few kilobytes can decode to gigabytes: Pillow warns by the size in the header.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                frames = getattr(image, "n_frames", 1)
                image.seek(0)
                upright = ImageOps.exif_transpose(to_rgb(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise DataError("a huge picture", where=str(path), expected=limit) from error
    except (OSError, *DAMAGE, struct.error, zlib.error, MemoryError) as error:
        reason = "no known picture format" if "cannot identify" in str(error) else str(error)
        raise DataError("a broken picture", where=str(path), got=reason) from error
    remark = f"{path}: animated, the first of {frames} frames is used" if frames > 1 else ""
    return upright, remark


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Any mode as RGB: 16 bits scaled, not clipped; transparency over white; CMYK converted."""
    from PIL import Image

    if image.mode.startswith("I"):  # I;16 and its byte orders, or I: 16 bits in 32
        deep = np.asarray(image).astype(np.int64)
        if deep.min(initial=0) < 0 or deep.max(initial=0) > 0xFFFF:
            raise ValueError(f"values beyond 16 bits (mode {image.mode})")
        rgb = Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    elif image.mode == "F":
        raise ValueError("a picture of floating point numbers has no defined brightness")
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        rgb = Image.alpha_composite(white, layer).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info["exif"] = image.info.get("exif", b"")  # says how to turn it
    return rgb
