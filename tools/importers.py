"""Import a source: read it, clean and filter the interactions, choose cold items, write a dataset.

The steps in order: values, ratings, time order, repeated pairs, k-core. The catalogue is what the
k-core is about. Then the most active users and the last N interactions of each may be chosen: a
part of the same data, among the same candidates, so that figures stay comparable.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client_app.columns import clean_numbers
from client_app.compile import (
    choose_cold,
    publish,
    refuse_existing,
    temporary_sibling,
    write_dataset,
)
from client_app.data import open_dataset
from client_app.tables import (
    check_items,
    clean_interactions,
    refuse_repeated,
    refuse_strangers,
    sort_by_user,
)
from shared_model.errors import DataError
from tools import filters, readers
from tools.feature_files import FeatureFiles, align_features, read_features
from tools.source import Layout, Source


@dataclass(frozen=True)
class ImportOptions:
    """What `feddmmr data import` can be told; its --help explains each."""

    format: str = "auto"
    items: Path | None = None
    features: Path | None = None
    visual_encoder: str = ""
    text_encoder: str = ""
    user_column: str = ""
    item_column: str = ""
    time_column: str = ""
    rating_column: str = ""
    separator: str = ""
    columns: tuple[str, ...] = ()
    min_rating: float | None = None
    duplicates: str = "refuse"
    sort: bool = False
    most_active: int | None = None
    last: int | None = None
    k_core: int = 5
    cold_fraction: float = 0.0
    seed: int = 0
    name: str = ""


def import_dataset(source: Path, output: Path, options: ImportOptions) -> dict[str, Any]:
    """Import `source` into the new folder `output`; returns the content of its dataset.json.

    Raises DataError with the file and line at fault; then nothing is written.
    """
    refuse_existing(output)
    read = _read(source, options)
    table = core_interactions(clean_source(read, options), options.k_core)
    items, features = _catalogue(read, table, options)
    if options.most_active is not None:
        table = filters.most_active(table, options.most_active)
    if options.last is not None:
        table = filters.last_of_each_user(table, options.last)
    encoders = {"visual": options.visual_encoder, "text": options.text_encoder}
    named = read.encoders | {kind: encoder for kind, encoder in encoders.items() if encoder}
    name = options.name or read.name
    return write_dataset(
        output, table, items, features, name, named, read.interactions_file, popularity=True
    )


def split_dataset(dataset: Path, output: Path, num_partitions: int) -> list[dict[str, Any]]:
    """Write `output`/part-0, part-1, ...: datasets of the users whose row modulo parts is theirs.

    Each has the whole catalogue and all features, as SuperNodes with a folder of their own do.
    Raises DataError if there are more partitions than users; then nothing is written.
    """
    refuse_existing(output)
    whole = open_dataset(dataset.resolve())
    if not 1 <= num_partitions <= whole.num_users:
        raise DataError(
            "the users cannot be split so",
            expected=f"1 to {whole.num_users} partitions",
            got=str(num_partitions),
        )
    source = readers.read_source(whole.folder, "folder", Layout())
    items = readers.read_items(whole.folder / "items.csv")
    users = pd.read_parquet(whole.folder / "arrays" / "user_ids.parquet")["user_id"]
    owner = source.interactions["user_id"].map(pd.Series(users.index % num_partitions, users))
    temporary = temporary_sibling(output)
    try:
        contents = [
            write_dataset(
                temporary / f"part-{part}",
                source.interactions[owner == part],
                items,
                source.features,
                f"{whole.info['name']}, part {part} of {num_partitions}",
                source.encoders,
            )
            for part in range(num_partitions)
        ]
        publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return contents


def clean_source(source: Source, options: ImportOptions) -> pd.DataFrame:
    """Checked interactions, no pair twice, by user and then time. Raises DataError."""
    file = source.interactions_file
    table = clean_interactions(source.interactions, file)
    if options.min_rating is not None:
        table = table[_ratings(source, table) >= options.min_rating]
    if options.sort or source.unordered:
        table = table.sort_values("timestamp", kind="stable")
    if options.duplicates == "refuse":
        refuse_repeated(table, file)
    else:
        table = filters.one_of_each_pair(table, options.duplicates)
    return sort_by_user(table, file)


def core_interactions(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """The k-core. Raises DataError if nothing is left."""
    core = filters.k_core(table, k)
    if core.empty:
        raise DataError(
            "no interactions are left",
            expected=f"users and items with at least {k} interactions each",
            todo="choose a smaller --k-core or --min-rating",
        )
    return core


def _read(path: Path, options: ImportOptions) -> Source:
    format_ = readers.detect_format(path) if options.format == "auto" else options.format
    layout = Layout(
        options.user_column,
        options.item_column,
        options.time_column,
        options.rating_column,
        options.separator,
        options.columns,
    )
    source = readers.read_source(path, format_, layout, options.items)
    if options.features is not None:
        found = read_features(options.features)
        source = replace(
            source, features=found.arrays, feature_ids=found.item_ids, encoders=found.encoders
        )
    return source


def _ratings(source: Source, table: pd.DataFrame) -> pd.Series:
    if "rating" not in source.interactions:
        raise DataError(
            "no column rating",
            where=source.interactions_file,
            todo="drop --min-rating, or name the column with --rating-column",
        )
    return clean_numbers(source.interactions, "rating", source.interactions_file)


def _catalogue(
    source: Source, table: pd.DataFrame, options: ImportOptions
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The items that `table` is about, with `cold`, and their features in the same order."""
    ids = pd.DataFrame({"item_id": np.sort(table["item_id"].unique())})
    whole = check_items(ids if source.items is None else source.items, source.items_file)
    refuse_strangers(ids["item_id"], whole["item_id"], source.interactions_file, source.items_file)
    items = whole[whole["item_id"].astype(str).isin(ids["item_id"].astype(str))]
    items = items.reset_index(drop=True)
    if options.cold_fraction > 0:
        if items["cold"].any():
            raise DataError(
                "the items file marks cold items already",
                where=source.items_file,
                todo="drop --cold-fraction, or the column cold",
            )
        items["cold"] = choose_cold(items["item_id"], options.cold_fraction, options.seed)
    files = FeatureFiles(source.features, source.feature_ids)
    return items, align_features(files, items["item_id"], whole["item_id"])
