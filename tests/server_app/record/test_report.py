"""What a run prints: the line of a round, a row a stage that fits a terminal, and its intervals."""

from typing import Any

import pytest
from rich.console import Console
from scipy.stats import binomtest

from server_app.record.report import round_line
from server_app.record.results import WIDTH, results_table
from server_app.record.selection import selected, without_say
from shared_model.protocol.intervals import wilson, with_interval

HITS = {"hr@10": 0.75, "ndcg@10": 0.5, "users": 400.0}
MISSES = {"hr@10": 0.0, "ndcg@10": 0.0, "users": 326.0}
VALID = {"all": {"uniform-100": HITS, "full": HITS}, "as-cold": {"full": HITS | {"ndcg@10": 0.125}}}
ROUND: Any = {"round": 10, "participants": 7, "loss": 1.5, "seconds": 12345.6, "dropped": []}
ROUND |= {"bytes_down": 987_654_321_000, "bytes_up": 12, "valid": VALID}


@pytest.mark.parametrize("users", [1, 7, 326, 6040])
@pytest.mark.parametrize("share", [0, 0.3, 0.9, 1])
def test_intervals_are_wilsons(users: int, share: float) -> None:
    hits = round(share * users)
    expected = binomtest(hits, users).proportion_ci(0.95, method="wilson")
    assert wilson(hits / users, users) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nobody_has_no_interval() -> None:
    with pytest.raises(ValueError, match="nobody"):
        wilson(0.5, 0)
    assert with_interval(None) == "-"
    assert with_interval(HITS) == "0.750 .705-.790"
    assert with_interval({"hr@10": 1.0, "users": 100}) == "1.000 .963-1.000"


def test_a_round_tells_what_the_best_one_is_chosen_by() -> None:
    line = round_line(2, 30, ROUND)
    assert line.startswith("stage 2 round 10/30  7 users  loss 1.5000  ")
    assert "valid NDCG@10 0.5000 + 0.1250 as-cold HR@10 0.7500  " in line
    assert selected(ROUND) == 0.625


def test_content_that_has_no_say_in_the_choice_is_told() -> None:
    """On Amazon Office "as-cold" is at chance in full ranking: 0.0018 beside 0.0540 +- 0.0032."""
    office = {"ndcg@10": 0.0540, "users": 4905.0}
    cold = {"ndcg@10": 0.0018, "users": 4905.0}
    valid = {"all": {"full": office}, "as-cold": {"full": cold}}
    told = without_say(valid)
    assert told.startswith("as-cold, full: NDCG@10 0.0018 is below the standard error of 'all'")
    assert "(0.0540 +- 0.0032)" in told
    # On MovieLens-1M it has one, and in Stage 1 there is no content.
    movies = {"all": {"full": {"ndcg@10": 0.144, "users": 6040.0}}}
    assert without_say(movies | {"as-cold": {"full": {"ndcg@10": 0.031, "users": 6040.0}}}) == ""
    assert without_say(movies) == without_say({}) == ""


def test_a_row_a_stage_fits_80_columns() -> None:
    """With the longest status, four digits of rounds, hours, gigabytes, and baselines below."""
    test = {"all": {"uniform-100": HITS, "full": HITS}, "cold": {"uniform-100": MISSES}}
    record = {"status": "complete", "best_round": 1000, "valid": VALID, "test": test}
    stages = {"1": record | {"rounds": [ROUND]}, "2": record | {"rounds": [ROUND] * 8}}
    stages["3"] = record | {"status": "running", "rounds": [], "valid": {}, "test": {}}
    document: Any = {"run": "a-run-with-a-name", "stages": stages}
    baselines = {"popularity": {"uniform-100": MISSES}, "markov": {"full": HITS}}
    with (console := Console(width=WIDTH)).capture() as said:
        console.print(results_table(document, baselines))
    lines = [line.split() for line in said.get().splitlines()]
    figures = ["1000", "0.625", "0.750", ".705-.790", "0.000", ".000-.012"]
    assert lines[-5:] == [
        ["stage", "1", *figures, "3", "h", "987.7", "GB"],
        ["stage", "2", *figures, "27", "h", "7.9", "TB"],
        ["stage", "3", "…", "1000", "-", "-", "-", "0.0", "s", "0", "B"],
        ["popularity", "0.000", ".000-.012"],
        ["markov", "-"],
    ]
