"""What the data decides where settings leave it open."""

import dataclasses

import numpy as np
import pytest

from server_app.nodes.fitting import by_data, fitted
from shared_model.errors import ConfigError
from shared_model.protocol.config import parse_settings
from shared_model.protocol.lengths import count_lengths, median_of, read_lengths
from shared_model.stages import STAGES
from tests.support.strategy import DEFAULTS

OPEN = parse_settings(DEFAULTS)
SHORT, LONG = {6: 30, 7: 25, 40: 5}, {5: 10, 96: 40, 180: 9}


@pytest.mark.parametrize(("stage", "rounds", "few"), [(1, 300, 60), (2, 60, 30), (3, 100, 30)])
def test_rounds_follow_how_much_there_is(stage: int, rounds: int, few: int) -> None:
    assert fitted(OPEN, STAGES[stage], 30_000, [LONG]).num_rounds == rounds
    assert fitted(OPEN, STAGES[stage], 29_999, [LONG]).num_rounds == few


def test_short_histories_have_more_dropout() -> None:
    for parts, dropout in (([SHORT], 0.5), ([LONG], 0.2), ([SHORT, LONG, LONG], 0.2), ([], 0.2)):
        assert fitted(OPEN, STAGES[1], 50_000, parts).dropout == dropout


def test_targets_follow_the_lengths() -> None:
    for parts, found in (([SHORT], 32), ([LONG], 100), ([], 32)):
        settings = fitted(OPEN, STAGES[2], 50_000, parts)
        assert settings.targets_per_user == settings.mixing("", 0.3).targets == found


def test_what_is_set_stays_and_nothing_else_changes() -> None:
    given = dataclasses.replace(OPEN, num_rounds=7, dropout=0.0, targets_per_user=3)
    assert fitted(given, STAGES[3], 10**6, [SHORT]) == given
    once = fitted(OPEN, STAGES[3], 10**6, [SHORT])
    assert fitted(once, STAGES[3], 10, []) == once
    left_open = {field: getattr(OPEN, field) for field in by_data(OPEN)}
    assert dataclasses.replace(once, **left_open) == OPEN  # type: ignore[arg-type]


def test_nobody_trains_by_open_settings() -> None:
    with pytest.raises(ConfigError, match="open settings"):
        OPEN.round_plan(1, 1)
    with pytest.raises(ConfigError, match="open settings"):
        OPEN.mixing("", 0.3)
    assert fitted(OPEN, STAGES[1], 1, [SHORT]).round_plan(1, 1).dropout == 0.5


def test_the_median_is_that_of_all_users_wherever_they_are() -> None:
    lengths = np.random.default_rng(0).integers(1, 19, 501)  # each length has a step of its own
    parts = [read_lengths(count_lengths(part)) for part in np.array_split(lengths, 7)]
    assert median_of(parts) == np.median(lengths)
    assert median_of([]) is None
