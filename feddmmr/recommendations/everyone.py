"""The best items of every user of a dataset, as one table: batch by batch, whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from client_app.data.dataset import Dataset, Rows
from feddmmr.features.output import disk_faults
from feddmmr.progress import Progress
from feddmmr.recommendations.adviser import Adviser, best
from feddmmr.recommendations.titles import Catalogue
from shared_model.errors import DataError
from shared_model.files import replacing

BATCH = 64


def write_everyone(
    adviser: Adviser, catalogue: Catalogue, out: Path, top: int, *, seen: bool = False
) -> int:
    """Write the best ``top`` items of each user to a parquet file; returns its number of rows.

    Its columns are user_id, rank (from 1), item_id, title, score and cold; ids are of the types
    that the dataset has. Fewer rows for who has met nearly everything. ``DataError`` if ``out``
    cannot be written: then it is as it was.
    """
    dataset = adviser.dataset
    users, schema = _users(dataset), _schema(dataset)
    progress, count = Progress("recommend"), 0
    progress.expect("users", "user", dataset.num_users)
    with (
        disk_faults(out),
        replacing(out, rivals=True) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
    ):
        for start in range(0, dataset.num_users, BATCH):
            rows = np.arange(start, min(start + BATCH, dataset.num_users))
            found = list(_best_of(adviser, rows, top, seen))
            writer.write_table(_table(found, users, catalogue, dataset, schema))
            count += len(found)
            progress.step("users", len(rows))
    return count


def _best_of(
    adviser: Adviser, rows: Rows, top: int, seen: bool
) -> Iterator[tuple[int, int, int, float]]:
    """Row of the user, rank, item and score."""
    dataset = adviser.dataset
    count = top + (0 if seen else int(dataset.lengths(rows).max()))
    for row, scores in zip(rows.tolist(), adviser.scores(rows, count), strict=True):
        history = dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]].tolist()
        for rank, item in enumerate(best(scores, top, [] if seen else history), 1):
            yield row, rank, item, float(scores[item])


def _table(
    found: list[tuple[int, int, int, float]],
    users: pa.Array,
    catalogue: Catalogue,
    dataset: Dataset,
    schema: pa.Schema,
) -> pa.Table:
    rows, ranks, items, scores = zip(*found, strict=True) if found else ((), (), (), ())
    columns = [
        users.take(pa.array(rows, pa.int64())),
        pa.array(ranks, pa.int32()),
        pa.array([catalogue.ids[item] for item in items], pa.string()).cast(schema.types[2]),
        pa.array([catalogue.titles[item] for item in items], pa.string()),
        pa.array(scores, pa.float32()),
        pa.array([bool(dataset.cold[item]) for item in items], pa.bool_()),
    ]
    return pa.table(columns, schema=schema)


def _users(dataset: Dataset) -> pa.Array:
    """The users' ids by row."""
    path = dataset.folder / "arrays" / "user_ids.parquet"
    try:
        return pq.read_table(path).column(0).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError("the users' ids cannot be read", where=str(path), got=str(error)) from error


def _schema(dataset: Dataset) -> pa.Schema:
    path = dataset.folder / "interactions.parquet"
    try:
        items = pq.read_schema(path).field("item_id").type
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError("unreadable table", where=str(path), got=str(error)) from error
    columns = [("user_id", _users(dataset).type), ("rank", pa.int32()), ("item_id", items)]
    return pa.schema(
        [*columns, ("title", pa.string()), ("score", pa.float32()), ("cold", pa.bool_())]
    )
