"""Updates with all rows of the item table."""

import dataclasses

from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import TABLE


def dense(update: LocalUpdate, height: int) -> LocalUpdate:
    """The same with zeros in the rows that the update says nothing of."""
    assert update.rows is not None
    some = update.arrays[TABLE]
    table = some.new_zeros((height, some.shape[1]))
    table[update.rows.long()] = some
    return dataclasses.replace(update, arrays=update.arrays | {TABLE: table}, rows=None)
