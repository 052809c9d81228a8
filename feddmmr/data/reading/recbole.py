"""Read RecBole's atomic files: tab separated, with the type of each column in the header."""

from pathlib import Path

import pandas as pd

from feddmmr.data.reading.delimited import read_delimited
from feddmmr.data.reading.item_texts import texts_of
from feddmmr.data.reading.source import Interactions, Layout, check_names, select, with_item_id
from shared_model.errors import DataError

TEXTS = ("token", "token_seq")


def read_interactions(path: Path, layout: Layout) -> Interactions:
    """A `.inter` file; the `.item` file of the same name, if it is there, is the catalogue."""
    table, _ = _typed(path)
    items = path.with_suffix(".item")
    return Interactions(
        name=path.stem,
        table=select(table, layout, path),
        file=path,
        items=items if items.is_file() else None,
        unordered=True,
    )


def read_items(path: Path) -> pd.DataFrame:
    """A `.item` file: item_id, title, its other columns, and text: all words about the item.

    The title is the column `title`, or the only one whose name ends so, such as movie_title.
    """
    typed, kinds = _typed(path)
    words = [name for name, kind in kinds.items() if kind in TEXTS]
    titles = [name for name in words if name.endswith("title")]
    if "title" not in typed and len(titles) == 1:
        typed = typed.rename(columns={titles[0]: "title"})
        words[words.index(titles[0])] = "title"
    table = with_item_id(typed, path)
    words = [name for name in words if name in table and name != "item_id"]
    if "text" not in table and words:
        words.sort(key=lambda name: name != "title")
        table["text"] = texts_of(table, words)
    return table


def _typed(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table, and the type of each column, as the header `name:type` says."""
    table = read_delimited(path, "\t")
    pairs = [str(column).rpartition(":") for column in table.columns]
    if bad := [kind or name for name, _, kind in pairs if not name]:
        raise DataError(
            "no RecBole header",
            where=str(path),
            expected="columns such as user_id:token, separated by tabs",
            got=bad[0],
            todo="pass --format tsv or csv if it is another kind of file",
        )
    check_names([name for name, _, _ in pairs], path)
    table.columns = pd.Index([name for name, _, _ in pairs])
    return table, {name: kind for name, _, kind in pairs}
