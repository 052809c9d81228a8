"""A stage's ranks as a parquet table, for anyone's own figures."""

from io import BytesIO

import pandas as pd

from feddmmr.runs.ranks import Table

# user: the 64-bit hash of its id as 16 hex digits, a text that no tool rounds. history: items in
# the input. rank: from 1. candidates: without the target.
COLUMNS = ("user", "split", "group", "protocol", "history", "rank", "candidates")


def frame_of(table: Table) -> pd.DataFrame:
    """The table with one row for each user, group and protocol, as ``COLUMNS``."""
    parts = [
        pd.DataFrame(
            {
                "user": [f"{key:016x}" for key in standing.users.tolist()],
                "split": "test",
                "group": group,
                "protocol": protocol,
                "history": standing.history,
                "rank": standing.ranks + 1,
                "candidates": standing.candidates,
            }
        )
        for (group, protocol), standing in table.items()
    ]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def parquet(frame: pd.DataFrame) -> bytes:
    """A table as a parquet file."""
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
