"""Import a source: read it, clean and filter the interactions, choose cold items, write a dataset.

The steps in order: values, unknown items, ratings, time order, ties, repeated pairs, k-core. The
catalogue is what the k-core is about, and new items. Then the most active users and the last N
interactions of each may be chosen: a part of the same data, among the same candidates, so that
figures stay comparable. Whatever is dropped is counted (import_record.py).
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from client_app.data.columns import clean_numbers
from client_app.data.compile import (
    publish,
    refuse_existing,
    temporary_sibling,
    write_dataset,
)
from client_app.data.dataset import open_dataset
from client_app.data.tables import (
    check_items,
    clean_interactions,
    refuse_repeated,
    refuse_strangers,
    sort_by_user,
)
from feddmmr.data import filters
from feddmmr.data.grouping import By, owners
from feddmmr.data.import_catalogue import (
    Bools,
    Features,
    choose_items,
    hold_out,
    known_interactions,
)
from feddmmr.data.import_options import ImportOptions as ImportOptions
from feddmmr.data.import_record import ImportRecord
from feddmmr.data.reading import readers
from feddmmr.data.reading.source import Layout, Source
from feddmmr.data.ties import order_ties
from feddmmr.features.files import FeatureFiles, read_features
from shared_model.errors import DataError


def import_dataset(source: Path, output: Path, options: ImportOptions) -> dict[str, Any]:
    """Import `source` into the new folder `output`; returns the content of its dataset.json.

    Raises DataError with the file and line at fault; then nothing is written.
    """
    refuse_existing(output)
    read = _read(source, options)
    listed = None if read.items is None else check_items(read.items, read.items_file)
    table = clean_interactions(read.interactions, read.interactions_file)
    record = ImportRecord(table, None if listed is None else listed["item_id"])
    if listed is not None:
        refuse_strangers(
            table["item_id"], listed["item_id"], read.interactions_file, read.items_file
        )
        table = known_interactions(table, listed["item_id"])
        record.unknown(table)
    core = core_interactions(clean_source(read, table, options, record), options.k_core)
    record.filtered(f"k-core of {options.k_core}", core)
    if listed is None:
        listed = check_items(core[["item_id"]].drop_duplicates().sort_values("item_id"))
        core = table = known_interactions(core, listed["item_id"])
    items, features, new = _catalogue(read, listed, table, core, options)
    record.chosen(_without_interactions(options), len(items))
    part = _part(core, options, record)
    return write_dataset(
        output,
        part,
        items,
        features,
        options.name or read.name,
        _encoders(read, options),
        read.interactions_file,
        popularity=True,
        imported=record.content(part, items, new, options.ties),
    )


def split_dataset(
    dataset: Path, output: Path, num_partitions: int, by: By = "row"
) -> list[dict[str, Any]]:
    """Write `output`/part-0, part-1, ...: datasets of the users that are a part's by `owners`.

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
    owner = source.interactions["user_id"].map(pd.Series(owners(whole, num_partitions, by), users))
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


def clean_source(
    source: Source, table: pd.DataFrame, options: ImportOptions, record: ImportRecord
) -> pd.DataFrame:
    """Of the checked `table`, no pair twice, by user, time and the rule for ties. DataError."""
    file = source.interactions_file
    if options.min_rating is not None:
        table = table[_ratings(source).loc[table.index] >= options.min_rating]
        record.filtered(f"rating below {options.min_rating:g}", table)
    if options.sort or source.unordered:
        table = table.sort_values("timestamp", kind="stable")
    table = sort_by_user(table, file)
    if options.ties == "hash":
        table = order_ties(table)
    if options.duplicates == "refuse":
        refuse_repeated(table, file)
    else:
        table = filters.one_of_each_pair(table, options.duplicates)
        record.filtered("repeated (user, item) pair", table)
    return table


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
        if not found.arrays:
            raise DataError(
                "no features there",
                where=str(options.features),
                expected="a .safetensors file, or a folder with visual.npy or text.npy",
                todo="make some with `feddmmr features encode`, or drop --features",
            )
        source = replace(
            source,
            features=found.arrays,
            feature_ids=found.item_ids,
            features_file=found.source,
            encoders=found.encoders,
        )
    return source


def _encoders(source: Source, options: ImportOptions) -> dict[str, str]:
    """What made the features, by kind: as the options say, else as the source does."""
    told = {"visual": options.visual_encoder, "text": options.text_encoder}
    return source.encoders | {kind: encoder for kind, encoder in told.items() if encoder}


def _ratings(source: Source) -> pd.Series:
    if "rating" not in source.interactions:
        raise DataError(
            "no column rating",
            where=source.interactions_file,
            todo="drop --min-rating, or name the column with --rating-column",
        )
    return clean_numbers(source.interactions, "rating", source.interactions_file)


def _catalogue(
    source: Source,
    listed: pd.DataFrame,
    read: pd.DataFrame,
    core: pd.DataFrame,
    options: ImportOptions,
) -> tuple[pd.DataFrame, Features, Bools]:
    """The items of the dataset with `cold`, their features, and which of them are new: [I] each."""
    files = FeatureFiles(source.features, source.feature_ids, source=source.features_file)
    items, features, new = choose_items(
        listed, read, core, files, options.new_items == "cold", source.items_file
    )
    if options.cold_fraction > 0:
        hold_out(items, new, options.cold_fraction, options.seed, source.items_file)
    return items, features, new


def _without_interactions(options: ImportOptions) -> str:
    """Why an item that nobody met is not in the catalogue."""
    if options.new_items == "drop":
        return "no interactions (--new-items drop)"
    return "no interactions and no features"


def _part(core: pd.DataFrame, options: ImportOptions, record: ImportRecord) -> pd.DataFrame:
    """What --most-active and --last leave of the core."""
    part = core
    if options.most_active is not None:
        part = filters.most_active(part, options.most_active)
        record.filtered(f"not of the {options.most_active} most active users", part)
    if options.last is not None:
        part = filters.last_of_each_user(part, options.last)
        record.filtered(f"before the last {options.last} of a user", part)
    return part
