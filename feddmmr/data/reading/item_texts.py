"""One text about an item, made of what a catalogue says about it."""

from typing import Any

import pandas as pd


def texts_of(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """One text for each row, of the columns in this order; missing ones are left out."""
    rows = table[columns].fillna("").itertuples(index=False, name=None)
    return [sentences([str(value).strip() for value in row]) for row in rows]


def sentences(parts: list[str]) -> str:
    """Texts one after the other, each with a full stop; empty ones are left out."""
    return " ".join(
        part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part
    )


def joined(value: Any) -> str:
    """A text, or the texts of a list of whatever depth, as one; nothing of what is missing."""
    if isinstance(value, list):
        return ", ".join(part for part in map(joined, value) if part)
    return "" if value is None else " ".join(str(value).split())
