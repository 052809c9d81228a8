"""Read a source or a catalogue, whatever its format; nothing is filtered or sorted here."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from feddmmr.data.reading import json_lines, movielens, recbole
from feddmmr.data.reading.delimited import read_delimited
from feddmmr.data.reading.source import (
    OPTIONS,
    Interactions,
    Layout,
    Source,
    bare_stem,
    bare_suffix,
    check_names,
    select,
    with_item_id,
)
from feddmmr.features.files import FeatureFiles, read_features
from shared_model.errors import ConfigError, DataError

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".inter": "recbole",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_TEXT = ("csv", "tsv")  # formats with a separator and, perhaps, without a header
_CATALOGUES = ("items.csv", *movielens.TITLES)


def read_source(path: Path, format_: str, layout: Layout, items: Path | None = None) -> Source:
    """The source at `path` in one of the formats, with the catalogue `items` or else its own.

    Raises DataError for what cannot be read, ConfigError for an option that the format lacks.
    """
    _refuse_unused(format_, layout)
    read = _READERS[format_](path, layout)
    catalogue = items or read.items
    features = read_features(path) if format_ == "folder" else FeatureFiles()
    return Source(
        name=read.name,
        interactions=read.table,
        interactions_file=str(read.file),
        items=None if catalogue is None else read_items(catalogue),
        items_file="items" if catalogue is None else str(items_file(catalogue)),
        features=features.arrays,
        feature_ids=features.item_ids,
        features_file=features.source,
        encoders=features.encoders,
        unordered=read.unordered,
    )


def read_items(path: Path) -> pd.DataFrame:
    """A catalogue: item_id and any other columns, as text; `path` is a file or a folder with one.

    Of MovieLens, RecBole's .item and metadata in JSON lines, title and text are made if need be.
    """
    file = items_file(path)
    suffix = bare_suffix(file)
    if file.name in movielens.TITLES:
        return movielens.read_items(file)
    if suffix == ".item":
        return recbole.read_items(file)
    if SUFFIXES.get(suffix) == "jsonl":
        return json_lines.read_items(file)
    if SUFFIXES.get(suffix) in _TEXT:
        return with_item_id(read_delimited(file, _separator(suffix[1:], Layout())), file)
    raise DataError(
        "no known format of items",
        where=str(file),
        expected=f"{', '.join(movielens.TITLES)}, or a .csv, .tsv, .jsonl or .item file",
    )


def items_file(path: Path) -> Path:
    """The file with the catalogue: `path` itself, or the only one in that folder. DataError."""
    if not path.is_dir():
        return path
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    found = [file for file in files if file.name in _CATALOGUES or file.suffix == ".item"]
    if len(found) != 1:
        raise DataError(
            "which file has the items?" if found else "no file with items",
            where=str(path),
            expected=f"one of {', '.join(_CATALOGUES)} or *.item",
            got=", ".join(file.name for file in found),
            todo="pass the file itself",
        )
    return found[0]


def detect_format(path: Path) -> str:
    """The format of what lies at `path`, by names alone. Raises DataError."""
    if not path.exists():
        raise DataError("the source does not exist", where=str(path), todo="check the path")
    if path.is_dir():
        return _format_of_folder(path)
    titles = movielens.RATINGS.get(path.name)
    if path.name in ("ratings.dat", "u.data") or (titles and (path.parent / titles).is_file()):
        return "movielens"
    if bare_suffix(path) in SUFFIXES:
        return SUFFIXES[bare_suffix(path)]
    raise _unknown_format(path)


def _format_of_folder(path: Path) -> str:
    names = {file.name for file in path.iterdir() if file.is_file()}
    signs = {
        "folder": "interactions.parquet" in names,
        "movielens": not names.isdisjoint(movielens.RATINGS),
        "recbole": any(name.endswith(".inter") for name in names),
    }
    found = [format_ for format_, is_there in signs.items() if is_there]
    if len(found) > 1:
        raise DataError(
            "which format?", where=str(path), got=" and ".join(found), todo="pass --format"
        )
    if not found:
        raise _unknown_format(path)
    return found[0]


def _unknown_format(path: Path) -> DataError:
    files = f"interactions.parquet, {', '.join(movielens.RATINGS)} or *.inter"
    return DataError(
        "no known format",
        where=str(path),
        expected=f"a folder with {files}, or a {', '.join(SUFFIXES)} file (text also with .gz)",
        todo="pass --format with the file itself as SOURCE",
    )


def _refuse_unused(format_: str, layout: Layout) -> None:
    """Raise ConfigError for an option that would be ignored."""
    named = [OPTIONS[role] for role in layout.named()] if format_ == "movielens" else []
    if format_ not in _TEXT:
        named += [f"--{name}" for name in ("separator", "columns") if getattr(layout, name)]
    if named:
        raise ConfigError(f"{named[0]} means nothing here", where=f"a source of format {format_}")


def _separator(format_: str, layout: Layout) -> str:
    given = layout.separator.replace("\\t", "\t")
    if given and len(given) != 1 and given != "::":
        raise ConfigError(
            "no separator", where="--separator", expected="one character, or ::", got=repr(given)
        )
    return given or {"csv": ",", "tsv": "\t"}[format_]


def _read_csv(path: Path, layout: Layout) -> Interactions:
    table = read_delimited(path, _separator("csv", layout), layout.columns)
    return Interactions(bare_stem(path), select(table, layout, path), path)


def _read_tsv(path: Path, layout: Layout) -> Interactions:
    table = read_delimited(path, _separator("tsv", layout), layout.columns)
    return Interactions(bare_stem(path), select(table, layout, path), path)


def _read_recbole(path: Path, layout: Layout) -> Interactions:
    files = sorted(path.glob("*.inter")) if path.is_dir() else [path]
    if len(files) != 1:
        raise DataError(
            "not one .inter file", where=str(path), got=", ".join(file.name for file in files)
        )
    return recbole.read_interactions(files[0], layout)


def _read_folder(path: Path, layout: Layout) -> Interactions:
    """interactions.parquet with items.csv and, if there, features (see feature_files.py)."""
    read = _read_parquet(path / "interactions.parquet", layout)
    return Interactions(path.resolve().name, read.table, read.file, items=path / "items.csv")


def _read_parquet(path: Path, layout: Layout) -> Interactions:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError("the file cannot be read", where=str(path), got=str(error)) from error
    # Columns that pandas wrote as an index are columns of the file like the others.
    if named := [name for name in table.index.names if name and name not in table]:
        table = table.reset_index(level=named)
    check_names([str(name) for name in table.columns], path)
    table.index = pd.RangeIndex(len(table), name="row")
    return Interactions(path.stem, select(table, layout, path), path)


_READERS: dict[str, Callable[[Path, Layout], Interactions]] = {
    "movielens": movielens.read_interactions,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "jsonl": json_lines.read_interactions,
    "recbole": _read_recbole,
    "folder": _read_folder,
}
