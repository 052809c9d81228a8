"""Encode a catalogue: pictures and texts, batch by batch, into one features file.

Batches are fixed by the catalogue alone, and a batch is either finished or done again: so a run
that was interrupted and resumed ends in the same bytes as one that was not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.compile import refuse_existing
from shared_model.errors import DataError
from tools.encoders import Encoder, choose_device, load_image_encoder, load_text_encoder
from tools.feature_output import catalogue, write_features
from tools.partial import Partial, content_key
from tools.pictures import find_pictures, open_picture

Vectors = npt.NDArray[np.float16]
Say = Callable[[str], None]
Track = Callable[[Sequence[Any], str], Iterable[Any]]  # a progress bar over batches


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
    text_model: str = "all-MiniLM-L6-v2"
    batch_size: int = 32
    device: str = "auto"


def encode_features(options: EncodeOptions, say: Say, track: Track) -> dict[str, Vectors]:
    """Write `options.output`; returns its arrays float16 [I, dim] in the order of the items file.

    `say` gets a line for every picture that cannot be used (its row is zero). Raises DataError
    before any work for faults of the catalogue and the folder, and for a full disk; what is
    finished by then stays in files beside the output, and the same command goes on from there.
    """
    refuse_existing(options.output)
    items = catalogue(options.items)
    ids = items["item_id"].astype(str).tolist()
    pictures = _pictures(options, ids, say)
    texts = _texts(options, items, say)
    if pictures is None and texts is None:
        raise DataError("nothing to encode", todo="pass --images, or leave out --no-text")
    device = choose_device(options.device)
    encoders: dict[str, Encoder] = {}
    if pictures is not None:
        encoders["visual"] = load_image_encoder(options.image_model, options.image_weights, device)
    if texts is not None:
        encoders["text"] = load_text_encoder(options.text_model, device)
    sources = {"visual": pictures, "text": texts}
    partials = {}
    try:
        for kind, encoder in encoders.items():
            partials[kind] = _open_partial(kind, encoder, options, device)
        arrays = {
            kind: _fill(kind, partial, encoders[kind], sources[kind] or {}, len(ids), options,
                        say, track)
            for kind, partial in partials.items()
        }  # fmt: skip
        _write(options.output, arrays, encoders)
        for partial in partials.values():
            partial.delete()
    finally:
        for partial in partials.values():
            partial.close()
    return arrays


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
    return {row: text for row, text in enumerate(values) if text}


def _open_partial(kind: str, encoder: Encoder, options: EncodeOptions, device: str) -> Partial:
    identity = {
        "encoder": encoder.name,
        "sha256": encoder.sha256,
        "versions": encoder.versions,
        "dim": encoder.dim,
        "batch": options.batch_size,
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
    options: EncodeOptions,
    say: Say,
    track: Track,
) -> Vectors:
    """All rows of one modality: [I, dim], zero where there is nothing or nothing usable."""
    array = np.zeros((num_items, encoder.dim), dtype=np.float16)
    finished = len(partial.known)
    if finished:
        say(f"{kind}: {finished} finished items taken from {partial.path}")
    for rows in track(list(_batches(list(source), options.batch_size)), kind):
        array[rows] = _encode_batch(rows, source, partial, encoder, say)
    unusable = len(source) - int(array.any(axis=1).sum())
    if unusable:
        say(f"{kind}: {unusable} of {len(source)} could not be used; their rows are zero")
    return array


def _batches(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _encode_batch(
    rows: list[int], source: dict[int, Any], partial: Partial, encoder: Encoder, say: Say
) -> Vectors:
    """Vectors [B, dim] of paths or texts, from the partial file if it has the whole batch."""
    batch = [source[row] for row in rows]
    keys = [content_key(row, _content(one)) for row, one in zip(rows, batch, strict=True)]
    if all(key in partial.known for key in keys):
        vectors = np.stack([partial.known[key] for key in keys])
        for one, vector in zip(batch, vectors, strict=True):
            if not vector.any():
                _open(one, say)  # says again what is wrong with it
        return vectors
    opened = [_open(one, say) for one in batch]
    usable = [place for place, one in enumerate(opened) if one is not None]
    vectors = np.zeros((len(batch), encoder.dim), dtype=np.float16)
    if usable:
        vectors[usable] = encoder.encode([opened[place] for place in usable])
    partial.append(keys, vectors)
    return vectors


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
    }
    write_features(output, arrays, names, facts)
