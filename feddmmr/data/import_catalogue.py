"""Which items an import keeps: those that its interactions are about, and new ones as cold items.

A new item has no interaction in the whole source. It stays, cold, if it has features to be reached
by or if the items file marks it cold. An item that lost all its interactions to a filter goes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client_app.data.compile import choose_cold
from feddmmr.features.files import FeatureFiles, align_features
from shared_model.errors import DataError

Features = dict[str, npt.NDArray[Any]]
Bools = npt.NDArray[np.bool_]


def known_interactions(table: pd.DataFrame, catalogue: pd.Series) -> pd.DataFrame:
    """The rows whose item is in the catalogue, their item ids of the catalogue's type."""
    text = table["item_id"].astype(str)
    known = text.isin(catalogue.astype(str))
    return table[known].assign(item_id=text[known].astype(catalogue.dtype))


def choose_items(
    catalogue: pd.DataFrame,
    read: pd.DataFrame,
    left: pd.DataFrame,
    files: FeatureFiles,
    new: bool,
    source: str,
) -> tuple[pd.DataFrame, Features, Bools]:
    """The catalogue's items that stay, [I], their features [I, dim], and which are new, [I] bool.

    `read` are all interactions with known items, `left` those that the filters left. New items stay
    if `new`. Order and columns are the catalogue's; `cold` becomes 1 for new items. Messages call
    the catalogue `source`.
    """
    kept = catalogue["item_id"].isin(left["item_id"]).to_numpy()
    unmet = ~catalogue["item_id"].isin(read["item_id"]).to_numpy() & new
    possible = kept | unmet
    items = catalogue[possible].reset_index(drop=True)
    features = align_features(files, items["item_id"], catalogue["item_id"], source)
    reached = items["cold"].to_numpy() == 1
    for rows in features.values():
        reached |= rows.any(axis=1)
    stays = kept[possible] | reached
    items = items[stays].reset_index(drop=True)
    is_new = unmet[possible][stays]
    items.loc[is_new, "cold"] = 1
    return items, {kind: rows[stays] for kind, rows in features.items()}, is_new


def hold_out(items: pd.DataFrame, new: Bools, fraction: float, seed: int, source: str) -> None:
    """Mark a share of the items cold, in place, chosen among those that have interactions.

    `new` [I] bool are those that have none. Raises DataError if any other is marked already.
    """
    if items.loc[~new, "cold"].any():
        raise DataError(
            "the items file marks cold items already",
            where=source,
            todo="drop --cold-fraction, or the column cold",
        )
    items.loc[~new, "cold"] = choose_cold(items.loc[~new, "item_id"], fraction, seed)
