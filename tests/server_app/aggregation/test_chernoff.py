"""The bound on participants, against the exact binomial."""

import numpy as np
import pytest
from scipy import stats

from server_app.aggregation.chernoff import participation_nats


@pytest.mark.parametrize("users", [1, 2, 3, 10, 117, 2000])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_it_is_a_bound_and_a_tight_one(users: int, fraction: float) -> None:
    """From below it is off by sqrt(8 k (1 - k/n)) at most (Ash, Information Theory, lemma 4.7.2),
    and exact where everybody takes part."""
    people = np.arange(users + 1)
    nats = np.array([participation_nats(count, users, fraction) for count in people.tolist()])
    exact = -stats.binom.logsf(people - 1, users, fraction)  # nats of that many or more
    told = np.isfinite(exact)  # smaller probabilities have no float
    above = people > fraction * users
    assert (nats[~above] == 0).all()
    assert (nats[told] <= exact[told] + 1e-9 * (1 + exact[told])).all()
    some = above & told & (people < users)
    slack = 0.5 * np.log(8 * people * (1 - people / users), where=some, out=np.zeros(users + 1))
    assert (exact[some] <= nats[some] + slack[some] + 1e-9).all()
    assert nats[-1] == pytest.approx(-users * np.log(fraction), abs=1e-9)
    assert (np.diff(nats) >= 0).all()


def test_a_node_without_users_surprises_nobody() -> None:
    assert participation_nats(0, 0, 0.1) == 0.0
