"""What settings left to the data, by the data of all nodes.

The rules are from MovieLens and from Amazon's reviews (docs/log.md, "content in every item" and
"settings that validation chose").
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from server_app.nodes.census import Census
from server_app.record.schema import ByData
from shared_model.protocol.lengths import median_of
from shared_model.protocol.settings import Settings
from shared_model.stages import Stage

_SHORT = 20  # a median length below which histories are learned by heart
_LONG = 80  # a median length from which 32 of a user's targets are few of what there is to learn
_DROPOUT, _DROPOUT_SHORT = 0.2, 0.5
_TARGETS, _TARGETS_LONG = 32, 100


def fit(settings: Settings, stage: Stage, census: Census) -> Settings:
    """A stage's settings with nothing left open; once more changes nothing."""
    return fitted(settings, stage, census.dataset()["interactions"], census.lengths())


def fitted(
    settings: Settings, stage: Stage, interactions: int, lengths: Iterable[Mapping[int, int]]
) -> Settings:
    """The settings with what a stage leaves to the data: their own, or else the data's.

    ``lengths``: how many histories are how long, as nodes tell it; nothing, if they tell nothing.
    """
    median = median_of(lengths)
    short = median is not None and median < _SHORT
    long = median is not None and median >= _LONG
    dropout = _DROPOUT_SHORT if short else _DROPOUT
    return replace(
        settings,
        num_rounds=settings.num_rounds or stage.rounds_for(interactions),
        dropout=settings.dropout if settings.dropout >= 0 else dropout,
        targets_per_user=settings.targets_per_user or (_TARGETS_LONG if long else _TARGETS),
    )


def by_data(settings: Settings) -> ByData:
    """What the manifest keeps of the settings that may be left to the data."""
    return {
        "num_rounds": settings.num_rounds,
        "dropout": settings.dropout,
        "targets_per_user": settings.targets_per_user,
    }
