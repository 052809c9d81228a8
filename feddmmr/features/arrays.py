"""`feddmmr features import`: arrays made elsewhere, to a file in the catalogue's order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.data.compile import refuse_existing
from feddmmr.features.files import IDS, FeatureFiles, align_features
from feddmmr.features.output import catalogue, write_features
from feddmmr.features.rows import check_ids, places_of
from shared_model.errors import DataError

Array = npt.NDArray[Any]
SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")


@dataclass(frozen=True, kw_only=True)
class ImportArrays:
    """What `feddmmr features import` can be told; its --help explains each."""

    items: Path
    output: Path
    visual: Path | None = None
    text: Path | None = None
    item_ids: Path | None = None
    visual_encoder: str = "unknown"
    text_encoder: str = "unknown"


def import_arrays(options: ImportArrays) -> dict[str, npt.NDArray[np.float16]]:
    """Write `options.output` from arrays; returns them, float16 [I, dim], rows of norm 1 or 0.

    Raises DataError for an output that exists, a file that cannot be read, an item id that is
    unknown or comes twice, a wrong number of rows, or a NaN; then nothing is written.
    """
    refuse_existing(options.output)
    ids = catalogue(options.items)["item_id"]
    sources = {"visual": options.visual, "text": options.text}
    arrays: dict[str, npt.NDArray[np.float16]] = {}
    for kind, path in sources.items():
        if path is not None:
            found = read_arrays(path)
            rows = _item_ids(options.item_ids, found)
            source = f"{path} with {options.item_ids}" if options.item_ids else str(path)
            if rows is not None:
                _refuse_unknown(rows, source, ids)
            files = FeatureFiles({kind: _matrix(found, kind, path)}, rows, source=source)
            arrays |= align_features(files, ids, ids, str(options.items))
    if not arrays:
        raise DataError("nothing to import", todo="pass --visual FILE, --text FILE or both")
    encoders = {"visual": options.visual_encoder, "text": options.text_encoder}
    write_features(options.output, arrays, {kind: encoders[kind] for kind in arrays}, {})
    return arrays


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file by name; a lone nameless one is called "". Nothing is executed."""
    if path.suffix not in SUFFIXES:
        raise DataError("no known format of arrays", where=str(path), expected=", ".join(SUFFIXES))
    try:
        if path.suffix in (".npy", ".npz"):
            return _read_numpy(path)
        return _read_tensors(path)
    # What torch refuses to execute is a plain Exception.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            "the arrays cannot be read",
            where=str(path),
            expected="arrays of numbers only",
            got=reason,
        ) from error


def _read_numpy(path: Path) -> dict[str, Array]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"": loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def _read_tensors(path: Path) -> dict[str, Array]:
    """Tensors by name; a float that numpy lacks, such as bfloat16, becomes float32."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        content: Any = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)  # nothing is executed
    named = content if isinstance(content, dict) else {"": content}
    if not all(isinstance(tensor, torch.Tensor) for tensor in named.values()):
        raise ValueError("something else than tensors in the file")
    return {str(name): _as_numpy(tensor.detach()) for name, tensor in named.items()}


def _as_numpy(tensor: Any) -> Array:
    """Floats that numpy lacks as float32; float64, which float32 could not hold, as it is."""
    known = ("torch.float16", "torch.float32", "torch.float64")
    if tensor.is_floating_point() and str(tensor.dtype) not in known:
        tensor = tensor.float()
    array: Array = tensor.numpy()
    return array


def _matrix(found: dict[str, Array], kind: str, path: Path) -> Array:
    """The array of this kind: the one called so, or the only one besides the ids."""
    others = [name for name in found if name != IDS]
    name = kind if kind in found else others[0] if len(others) == 1 else None
    if name is None:
        raise DataError(
            f"which array is {kind}?",
            where=str(path),
            expected=f"one array, or one called {kind!r}",
            got=", ".join(map(repr, sorted(found))),
        )
    return found[name]


def _item_ids(path: Path | None, found: dict[str, Array]) -> Array | None:
    """The item of each row, from --item-ids or beside the array; None: as in the items file."""
    if path is None:
        return found.get(IDS)
    named = read_arrays(path)
    if IDS not in named and len(named) != 1:
        raise DataError("which array is item_ids?", where=str(path), got=", ".join(named))
    return named.get(IDS, next(iter(named.values())))


def _refuse_unknown(rows: Array, source: str, ids: pd.Series) -> None:
    """Raise DataError for a row of no item; that all are such is for `align_features` to say."""
    named = check_ids(rows, f"{source}, {IDS}")
    unknown = places_of(named, ids) < 0
    if unknown.any() and not unknown.all():
        place = int(np.flatnonzero(unknown)[0])
        raise DataError(
            "unknown item id",
            where=f"{source}, row {place + 1} of the arrays (and {int(unknown.sum()) - 1} more)",
            got=repr(named.iloc[place]),
            todo="drop the row, or add the item to the items file",
        )
