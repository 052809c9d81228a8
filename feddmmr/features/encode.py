"""Encode a catalogue: pictures and texts, each by itself, into one features file.

A row depends on the item's content and the encoder alone: not on its place in the catalogue, on the
other items, nor on whether the run was interrupted and resumed.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.data.compile import refuse_existing
from feddmmr.features.clip import load_image_encoder
from feddmmr.features.encode_cache import Partial, content_key
from feddmmr.features.encoders import Encoder, choose_device, load_text_encoder
from feddmmr.features.files import Say
from feddmmr.features.output import catalogue, write_features
from feddmmr.features.pictures import find_pictures, open_picture
from shared_model.errors import ConfigError, DataError

Vectors = npt.NDArray[np.float16]
Track = Callable[[Sequence[Any], str], Iterable[Any]]  # a progress bar over chunks

CHUNK = 32  # items that are synced to disk at once: what an interruption costs at most
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode's controls, formats and separators


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What `feddmmr features encode` can be told; its --help explains each."""

    items: Path
    output: Path
    images: Path | None = None
    texts: bool = True
    text_column: str = ""
    image_model: str = "ViT-B-32"
    image_weights: str = "laion2b_s34b_b79k"
    clip_tag: str = ""
    text_model: str = "all-MiniLM-L6-v2"
    device: str = "auto"


def encode_features(options: EncodeOptions, say: Say, track: Track) -> dict[str, Vectors]:
    """Write `options.output`; returns its arrays float16 [I, dim] in the order of the items file.

    `say` gets a line for every picture that cannot be used (its row is zero). Raises DataError
    before any work for faults of the catalogue and the folder (ConfigError for an option that
    would be ignored), and for a full disk; what is finished by then stays in files beside the
    output, and the same command goes on from there.
    """
    refuse_existing(options.output)
    _refuse_ignored(options)
    items = catalogue(options.items)
    ids = items["item_id"].astype(str).tolist()
    pictures = _pictures(options, ids, say)
    texts = _texts(options, items, say)
    if pictures is None and texts is None:
        raise DataError("nothing to encode", todo="pass --images, or leave out --no-text")
    device = choose_device(options.device)
    sources = {
        kind: found for kind, found in (("visual", pictures), ("text", texts)) if found is not None
    }
    encoders = {kind: _load(kind, options, device, say) for kind in sources}
    for kind, encoder in encoders.items():
        _tell_cut(sources[kind], encoder, say)
    partials = {}
    try:
        for kind, encoder in encoders.items():
            partials[kind] = _open_partial(kind, encoder, options, device)
        arrays = {
            kind: _fill(kind, partial, encoders[kind], sources[kind], len(ids), say, track)
            for kind, partial in partials.items()
        }
        _write(options.output, arrays, encoders)
        for partial in partials.values():
            partial.delete()
    finally:
        for partial in partials.values():
            partial.close()
    return arrays


def _refuse_ignored(options: EncodeOptions) -> None:
    """Raise ConfigError for an option of pictures without pictures, or of texts without texts."""
    if options.clip_tag and options.images is None:
        raise ConfigError("no pictures to use it for", got=f"--clip-tag {options.clip_tag}")
    if options.text_column and not options.texts:
        raise ConfigError("no texts to use it for", got=f"--text-column {options.text_column}")


def _load(kind: str, options: EncodeOptions, device: str, say: Say) -> Encoder:
    if kind == "text":
        return load_text_encoder(options.text_model, device)
    return load_image_encoder(
        options.image_model, options.image_weights, options.clip_tag, device, say
    )


def _tell_cut(source: dict[int, Any], encoder: Encoder, say: Say) -> None:
    """Say how many texts or pictures have a part that the encoder does not see."""
    count = sum(encoder.cut(one) for one in source.values())
    if count:
        say(f"{count:,} of {len(source):,} {encoder.limit}")


def _pictures(options: EncodeOptions, ids: list[str], say: Say) -> dict[int, Any] | None:
    """Paths by row of the catalogue, in its order."""
    if options.images is None:
        return None
    found, others = find_pictures(options.images, ids)
    if others:
        say(f"{options.images}: {len(others)} files are no pictures, {others[0].name} for one")
    return {row: found[item] for row, item in enumerate(ids) if item in found}


def _texts(options: EncodeOptions, items: pd.DataFrame, say: Say) -> dict[int, Any] | None:
    """Texts by row of the catalogue; blank ones are missing."""
    if not options.texts:
        return None
    wanted = [options.text_column] if options.text_column else ["text", "title"]
    column = next((name for name in wanted if name in items), None)
    if column is None:
        raise DataError(
            "no column with texts",
            where=str(options.items),
            expected=" or ".join(wanted),
            got=", ".join(map(str, items.columns)),
            todo="pass --text-column, or --no-text",
        )
    say(f"{options.items}: texts from the column {column}")
    values = items[column].fillna("").astype(str).str.strip()
    return {row: text for row, text in enumerate(values) if _is_visible(text)}


def _is_visible(text: str) -> bool:
    """Whether a text has more than spaces and characters without a shape, as U+200B."""
    return any(unicodedata.category(character) not in INVISIBLE for character in text)


def _open_partial(kind: str, encoder: Encoder, options: EncodeOptions, device: str) -> Partial:
    identity = {
        "encoder": encoder.name,
        "sha256": encoder.sha256,
        "versions": encoder.versions,
        "dim": encoder.dim,
        "settings": encoder.settings,
        "device": device,
    }
    path = options.output.with_name(f"{options.output.name}.{kind}.partial")
    return Partial(path, identity, encoder.dim)


def _fill(
    kind: str,
    partial: Partial,
    encoder: Encoder,
    source: dict[int, Any],
    num_items: int,
    say: Say,
    track: Track,
) -> Vectors:
    """All rows of one modality: [I, dim], zero where there is nothing or nothing usable."""
    array = np.zeros((num_items, encoder.dim), dtype=np.float16)
    finished = len(partial.known)
    if finished:
        say(f"{kind}: {finished} finished items taken from {partial.path}")
    for rows in track(list(_chunks(list(source))), kind):
        array[rows] = _encode_chunk([source[row] for row in rows], partial, encoder, say)
    unusable = len(source) - int(array.any(axis=1).sum())
    if unusable:
        say(f"{kind}: {unusable} of {len(source)} could not be used; their rows are zero")
    return array


def _chunks(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]


def _encode_chunk(chunk: list[Any], partial: Partial, encoder: Encoder, say: Say) -> Vectors:
    """Vectors [C, dim] of paths or texts; what is new is encoded and kept in the partial file."""
    keys = [content_key(_content(one)) for one in chunk]
    new: dict[bytes, Vectors] = {}
    for key, one in zip(keys, chunk, strict=True):
        known = partial.known.get(key, new.get(key))
        if known is None:
            new[key] = _encode_one(one, encoder, say)
        elif not known.any():
            _open(one, say)  # says again what is wrong with it
    if new:
        partial.append(list(new), np.stack(list(new.values())))
    return np.stack([partial.known[key] for key in keys])


def _encode_one(one: str | Path, encoder: Encoder, say: Say) -> Vectors:
    """The vector [dim] of a text or picture; zero if it cannot be used."""
    opened = _open(one, say)
    return np.zeros(encoder.dim, np.float16) if opened is None else encoder.encode(opened)


def _content(one: str | Path) -> bytes:
    """Bytes of a text or picture; none of an unreadable picture, which `_open` reports."""
    if isinstance(one, str):
        return one.encode()
    try:
        return one.read_bytes()
    except OSError:
        return b""


def _open(one: str | Path, say: Say) -> Any:
    """The text, or the picture; None if it cannot be used, which is said."""
    if isinstance(one, str):
        return one
    try:
        picture, remark = open_picture(one)
    except (DataError, OSError) as error:
        say(f"warning: {error}")
        return None
    if remark:
        say(remark)
    return picture


def _write(output: Path, arrays: dict[str, Vectors], encoders: dict[str, Encoder]) -> None:
    names = {kind: encoder.name for kind, encoder in encoders.items()}
    facts = {
        "weights_sha256": {kind: encoder.sha256 for kind, encoder in encoders.items()},
        "versions": {kind: encoder.versions for kind, encoder in encoders.items()},
        "settings": {kind: encoder.settings for kind, encoder in encoders.items()},
    }
    write_features(output, arrays, names, facts)
