"""Find the pictures of a catalogue, and open any of them as 8-bit RGB.

What cannot be opened is a DataError that names the file; the caller leaves that item out.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared_model.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 8  # to 1: what is scaled up of a picture whose middle square alone is seen
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

    Raises DataError for an empty, broken, unreadable or huge file, and for numbers that no
    brightness is defined for.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        image.seek(0)
        upright = ImageOps.exif_transpose(to_rgb(image, str(path)))
    remark = f"{path}: animated, the first of {frames} frames is used" if frames > 1 else ""
    return upright, remark


def aspect_ratio(path: Path) -> float:
    """The long side by the short one, from the file's header alone. Raises as `open_picture`."""
    with _opened(path) as image:
        return max(image.size) / min(image.size)


def middle(picture: "Image.Image") -> "Image.Image":
    """The middle of a picture longer than LONGEST to 1, any other one as it is.

    For encoders that look at the middle square alone: they scale the short side up first, which
    makes gigabytes of a strip of pixels.
    """
    longest = LONGEST * min(picture.size)
    width, height = (min(side, longest) for side in picture.size)
    if (width, height) == picture.size:
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


@contextmanager
def _opened(path: Path) -> Iterator["Image.Image"]:
    """The file as Pillow opens it, with every fault of it as a DataError that names it."""
    from PIL import Image

    if path.stat().st_size == 0:
        raise DataError("an empty picture file", where=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A few kilobytes can decode to gigabytes: Pillow warns by the size in the header.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise DataError("a huge picture", where=str(path), expected=limit) from error
    except (OSError, *DAMAGE, struct.error, zlib.error, MemoryError) as error:
        reason = "no known picture format" if "cannot identify" in str(error) else str(error)
        raise DataError("a broken picture", where=str(path), got=reason) from error


def to_rgb(image: "Image.Image", where: str) -> "Image.Image":
    """Any mode as RGB: 16 bits scaled, not clipped; transparency over white; CMYK converted.

    Floating point numbers are a brightness from 0 to 1. Raises DataError for numbers beyond that
    or beyond 16 bits.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # I;16 and its byte orders, or I: 16 bits in 32
        rgb = _from_numbers(image, 0xFFFF, where)
    elif image.mode == "F":
        rgb = _from_numbers(image, 1, where)
    elif image.has_transparency_data:
        _mend_transparent_colour(image)
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        rgb = Image.alpha_composite(white, layer).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info["exif"] = image.info.get("exif", b"")  # says how to turn it
    return rgb


def _from_numbers(image: "Image.Image", white: int, where: str) -> "Image.Image":
    """Numbers from 0 to `white` scaled to 8 bits; the transparent one, if it is named, is white."""
    from PIL import Image

    numbers = np.asarray(image)
    if not ((numbers >= 0) & (numbers <= white)).all():  # a NaN is not, either
        raise DataError(
            "a picture of numbers without a defined brightness",
            where=where,
            expected=f"0 to {white} (mode {image.mode})",
            got=f"{numbers.min()} to {numbers.max()}",
            todo="save it with 8 bits",
        )
    grey = np.rint(numbers * np.float32(255 / white)).astype(np.uint8)
    # Pillow clips to 8 bits and forgets the transparency if it is to convert these itself.
    if "transparency" in image.info:
        grey[numbers == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _mend_transparent_colour(image: "Image.Image") -> None:
    """Bring a PNG's transparent colour to 8 bits, as its pixels are.

    Pillow leaves it in the file's own bit depth, so that no pixel would be equal to it.
    """
    tiles = getattr(image, "tile", [])
    raw = tiles[0].args if tiles else None
    color = image.info.get("transparency")
    if raw in ("L;2", "L;4") and isinstance(color, int):
        image.info["transparency"] = color * {"L;2": 85, "L;4": 17}[raw]
    elif raw == "RGB;16B" and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)  # as Pillow cuts pixels
