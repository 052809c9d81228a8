"""Read JSON lines: interactions, and catalogues such as the metadata of Amazon Reviews."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from feddmmr.data.reading.delimited import open_source
from feddmmr.data.reading.item_texts import joined, sentences
from feddmmr.data.reading.source import NAMES, Interactions, Layout, bare_stem, select, with_item_id
from shared_model.errors import DataError

# What describes an item in Amazon's metadata of 2018 and 2023, in the order of the text.
DESCRIPTION = (
    *("title", "store", "brand", "categories", "category", "features", "feature", "description"),
)


def read_interactions(path: Path, layout: Layout) -> Interactions:
    """One object a line, such as a review; only the columns that are needed are kept."""
    wanted = {name for names in NAMES.values() for name in names} | set(layout.named().values())
    others: set[str] = set()  # of the first object, for the message about a missing column

    def keep(found: dict[str, Any]) -> dict[str, Any]:
        others.update(() if others else found.keys() - wanted)
        return {name: value for name, value in found.items() if name in wanted}

    table = select(read_json_lines(path, keep), layout, path, sorted(others))
    return Interactions(bare_stem(path), table, path, unordered=True)


def read_items(path: Path) -> pd.DataFrame:
    """item_id, title, text (its own, or else what describes the item) and, if it is there, cold."""
    return with_item_id(read_json_lines(path, _item), path)


def read_json_lines(path: Path, keep: Callable[[dict[str, Any]], dict[str, Any]]) -> pd.DataFrame:
    """What `keep` makes of the object of each line, NaN where it has no such key. DataError."""
    columns: dict[str, list[Any]] = defaultdict(list)
    number = 0
    with open_source(path) as file:
        for number, found in enumerate(_objects(file, path), 1):
            for name, value in keep(found).items():
                if isinstance(value, str) and not value.isascii():
                    _check_text(value, path, number)
                missing = number - 1 - len(columns[name])
                columns[name] += [*[None] * missing, value]
    lines = pd.RangeIndex(1, number + 1, name="line")
    full = {name: values + [None] * (number - len(values)) for name, values in columns.items()}
    return pd.DataFrame({name: pd.Series(full[name], lines, object) for name in full}, lines)


def _objects(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        try:
            found = json.loads(
                line.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number
            )
        except (ValueError, RecursionError) as error:
            raise _bad_line(path, number, str(error)) from error
        if not isinstance(found, dict):
            raise _bad_line(path, number, f"{line[:40]!r}")
        yield found


def _check_text(value: str, path: Path, number: int) -> None:
    """Raise DataError for half a character, which an escape of JSON may be."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _bad_line(path, number, str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(
            f"a key that comes twice among {', '.join(name for name, _ in pairs):.200}"
        )
    return found


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _bad_line(path: Path, number: int, got: str) -> DataError:
    return DataError(
        "not JSON lines",
        where=f"{path}, line {number}",
        expected="one JSON object in every line",
        got=got,
        todo="convert a JSON list, or Python's notation (metadata of 2014), to JSON lines",
    )


def _item(found: dict[str, Any]) -> dict[str, Any]:
    ids = {name: found[name] for name in NAMES["item_id"] if name in found}
    text = joined(found.get("text")) or sentences([joined(found.get(name)) for name in DESCRIPTION])
    item = ids | {"title": joined(found.get("title")), "text": text}
    return item | ({"cold": found["cold"]} if "cold" in found else {})
