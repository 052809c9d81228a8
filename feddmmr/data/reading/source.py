"""What the readers of all formats share: where columns are, what they are called, what comes out.

Every table's index is the line (or row) of its file, and says so in its name, for the messages.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from shared_model.errors import DataError

# What a column may be called in a file, the first one that is there; docs/data.md lists them.
NAMES = {
    "user_id": ("user_id", "userId", "reviewerID"),
    "item_id": ("item_id", "movieId", "parent_asin", "asin"),
    "timestamp": ("timestamp", "unixReviewTime"),
    "rating": ("rating", "overall"),
}
OPTIONS = {
    "user_id": "--user-column",
    "item_id": "--item-column",
    "timestamp": "--time-column",
    "rating": "--rating-column",
}


@dataclass(frozen=True)
class Layout:
    """Where things are in an interactions file; what is empty goes by NAMES or by the format."""

    user_column: str = ""
    item_column: str = ""
    time_column: str = ""
    rating_column: str = ""
    separator: str = ""
    columns: tuple[str, ...] = ()  # of a file without a header

    def named(self) -> dict[str, str]:
        """The columns that were named, by what they are."""
        given = (self.user_column, self.item_column, self.time_column, self.rating_column)
        return {role: name for role, name in zip(NAMES, given, strict=True) if name}


@dataclass(frozen=True)
class Interactions:
    """Interactions (with `rating`, if the file has it) and what else their format tells."""

    name: str
    table: pd.DataFrame
    file: Path
    items: Path | None = None  # the catalogue that belongs to them
    unordered: bool = False  # the format promises no time order: sort without being asked


@dataclass(frozen=True)
class Source:
    """A source as read: interactions (with rating, if it has one), catalogue and features."""

    name: str
    interactions: pd.DataFrame
    interactions_file: str
    items: pd.DataFrame | None = None  # None: the items of the interactions, without titles
    items_file: str = "items"
    features: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    feature_ids: npt.NDArray[Any] | None = None  # item ids of the feature rows; None: as `items`
    features_file: str = "the features"  # what messages call them
    encoders: dict[str, str] = field(default_factory=dict)
    unordered: bool = False  # as in Interactions


def select(
    table: pd.DataFrame, layout: Layout, path: Path, others: Iterable[str] = ()
) -> pd.DataFrame:
    """user_id, item_id, timestamp and, if it is there or was named, rating.

    Raises DataError for a missing column, with those that are there, `others` of the file included.
    """
    named, chosen = layout.named(), {}
    for role, names in NAMES.items():
        wanted = (named[role],) if role in named else names
        found = next((name for name in wanted if name in table), None)
        if found is not None:
            chosen[role] = table[found]
        elif role != "rating" or role in named:
            raise _no_column([*table.columns, *others], wanted, OPTIONS[role], path)
    return pd.DataFrame(chosen)


def with_item_id(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A catalogue with the column item_id, whichever of its names it has. Raises DataError."""
    names = NAMES["item_id"]
    found = next((name for name in names if name in table), None)
    if found is None:
        raise _no_column(list(table.columns), names, "", path)
    return table.rename(columns={found: "item_id"})


def check_names(names: list[str], path: Path) -> None:
    """Raise DataError if two columns of a file have the same name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            "a column name that comes twice", where=str(path), got=", ".join(map(repr, twice))
        )


def bare_suffix(path: Path) -> str:
    """The suffix of a file in small letters, without the .gz of a packed one."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def bare_stem(path: Path) -> str:
    """The name of a file without that suffix."""
    return Path(path.name.removesuffix(".gz")).stem


def _no_column(found: list[Any], names: tuple[str, ...], option: str, path: Path) -> DataError:
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    todo = f"name it with {option}" if option else ""
    if option and bare_suffix(path) in (".csv", ".tsv"):
        todo += "; a file without a header needs --columns, other separators need --separator"
    return DataError(
        f"no column {names[0]}",
        where=str(path),
        expected=" or ".join(names),
        got=", ".join(map(str, found[:20])) + more,
        todo=todo,
    )
