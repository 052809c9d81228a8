"""Read text files with a separator: CSV, TSV and their like, packed or not."""

import codecs
import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pandas as pd

from feddmmr.data.reading.source import check_names
from shared_model.errors import DataError, DataWarning

_UNPARSABLE = (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError)


def read_delimited(
    path: Path, separator: str, names: tuple[str, ...] = (), latin1: bool = False
) -> pd.DataFrame:
    """Text columns, empty cells missing, with line numbers. `names`: the file has no header.

    Fields may be quoted where commas or semicolons separate them, as is usual. `latin1`: an older
    file, which may be in Latin-1. Raises DataError; warns if another file is no UTF-8.
    """
    with open_source(path) as file:
        raw = file.read()
    if separator == "::":  # a tab, which pandas reads fast, and which no field of these files has
        raw, separator = raw.replace(b"::", b"\t"), "\t"
    cells = _cells(_utf8(raw, path, latin1), separator, path)
    if names:
        _check_width(cells, names, path)
        cells.columns = pd.Index(names)
        cells.index = pd.RangeIndex(1, len(cells) + 1, name="line")
        return cells
    table = cells.iloc[1:].copy()
    header = [str(name).strip() for name in cells.iloc[0].fillna("")]
    table.columns = pd.Index([name or f"column {at}" for at, name in enumerate(header, 1)])
    check_names(table.columns.tolist(), path)
    table.index = pd.RangeIndex(2, len(table) + 2, name="line")
    return table


@contextmanager
def open_source(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is called .gz. Raises DataError while it is read, too."""
    try:
        packed = path.suffix == ".gz"
        with cast("IO[bytes]", gzip.open(path) if packed else path.open("rb")) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError("the file cannot be read", where=str(path), got=reason) from error


def _utf8(raw: bytes, path: Path, latin1: bool) -> bytes:
    """The text of a file as UTF-8 without a byte order mark."""
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        if not latin1:
            warnings.warn(f"{path}: no UTF-8, so read as Latin-1", DataWarning, stacklevel=2)
        text = raw.decode("latin-1")
    return text.encode()


def _cells(text: bytes, separator: str, path: Path) -> pd.DataFrame:
    """All rows of a file, the header among them."""
    header = text.partition(b"\n")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of fields that it drops
            return pd.read_csv(
                io.BytesIO(text),
                sep=separator,
                header=None,
                index_col=False,
                dtype=str,
                encoding="utf-8",
                skip_blank_lines=False,
                # "a, b" is written so in all rows or in none; our own files have no such header.
                skipinitialspace=separator.encode() + b" " in header,
                quoting=csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE,
                keep_default_na=False,
                na_values=[""],
                on_bad_lines="error",
            )
    except (*_UNPARSABLE, UnicodeError, ValueError) as error:
        raise DataError("the file cannot be parsed", where=str(path), got=str(error)) from error


def _check_width(cells: pd.DataFrame, names: tuple[str, ...], path: Path) -> None:
    check_names(list(names), path)
    if cells.shape[1] != len(names):
        raise DataError(
            "another number of columns",
            where=str(path),
            expected=f"{len(names)}: {', '.join(names)}",
            got=f"{cells.shape[1]}: {', '.join(map(str, cells.iloc[0])):.80}",
            todo="name all columns of the file, in its order",
        )
