"""What settings left to the data, by the data of all nodes.

Both rules are from MovieLens and from Amazon's reviews (docs/log.md, "content in every item").
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from server_app.nodes.census import Census
from shared_model.protocol.lengths import median_of
from shared_model.protocol.settings import Settings
from shared_model.stages import Stage

_SHORT = 20  # a median length below which histories are learned by heart
_DROPOUT, _DROPOUT_SHORT = 0.2, 0.5


def fit(settings: Settings, stage: Stage, census: Census) -> Settings:
    """A stage's settings with nothing left open; once more changes nothing."""
    return fitted(settings, stage, census.dataset()["interactions"], census.lengths())


def fitted(
    settings: Settings, stage: Stage, interactions: int, lengths: Iterable[Mapping[int, int]]
) -> Settings:
    """The settings with the rounds and the dropout of a stage: their own, or else the data's.

    ``lengths``: how many histories are how long, as nodes tell it; nothing, if they tell nothing.
    """
    median = median_of(lengths)
    short = median is not None and median < _SHORT
    by_data = _DROPOUT_SHORT if short else _DROPOUT
    return replace(
        settings,
        num_rounds=settings.num_rounds or stage.rounds_for(interactions),
        dropout=settings.dropout if settings.dropout >= 0 else by_data,
    )
