"""Updates that have some rows of the item table alone, brought to the same ones.

What a node says nothing of counts as zeros: so all that is done with dense updates is done with the
rows that any node has, at a cost that does not grow with the catalogue.

Letters: K rows of an update, U rows of all together, I items, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import TABLE


def check_rows(rows: Tensor | None, height: int) -> None:
    """``NodeError`` unless an update to a table of that height says rightly which rows it has.

    They are int32 [K], rising, and never padding's. ``height`` 0: it has to have them all.
    """
    if height == 0 and rows is None:
        return
    if height == 0 or rows is None:
        expected = "the whole item table" if height == 0 else "rows of the item table"
        raise NodeError("an update of another form", expected=expected)
    fits = rows.dtype == torch.int32 and rows.dim() == 1
    if fits and len(rows):
        fits = int(rows[0]) > 0 and int(rows[-1]) < height and bool((rows.diff() > 0).all())
    if not fits:
        raise NodeError(
            "unusable rows", expected=f"rising int32 from 1 to {height - 1}", got=f"{rows!s:.200}"
        )


def aligned(
    updates: Sequence[LocalUpdate], arrays: Arrays
) -> tuple[Sequence[LocalUpdate], Arrays, Tensor | None]:
    """The updates and ``arrays`` with the table's rows [U] of any update, and which these are.

    All of them say which rows they have, or none does: then everything is as it was.
    """
    said = [update.rows for update in updates if update.rows is not None]
    if not said:
        return updates, arrays, None
    rows = torch.from_numpy(np.unique(torch.cat(said).long().numpy()))  # rising
    table = arrays[TABLE]
    spread = [_spread(update, rows) for update in updates]
    return spread, arrays | {TABLE: table[rows]}, rows


def _spread(update: LocalUpdate, rows: Tensor) -> LocalUpdate:
    """The update with these rows [U], among which are its own."""
    some = update.arrays[TABLE]
    table = some.new_zeros((len(rows), some.shape[1]))
    if update.rows is not None:
        table[torch.searchsorted(rows, update.rows.long())] = some
    return replace(update, arrays=update.arrays | {TABLE: table}, rows=None)
