"""Ten sites, some lost at any step: the plain sum to the bit, or nothing.

SECURE_CASES=4000 draws a thousand sums, in minutes.
"""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from shared_model.errors import FedDMMRError, NodeError, RoundError
from shared_model.secure import opening
from shared_model.secure.masks import Words
from tests.support.secure_sites import Sites, drawn_words

SITES, THRESHOLD, LENGTH = 10, 7, 24
CASES = int(os.environ.get("SECURE_CASES", "24"))
STEPS = 8


class Federation(RuleBasedStateMachine):
    """Sums of one session, with sites that are lost and come back, and a server that tries more."""

    @initialize(self_masked=st.booleans())
    def begin(self, self_masked: bool) -> None:
        self.sites = Sites.of(SITES, THRESHOLD, self_masked)
        self.names = list(self.sites.identities)

    @rule(data=st.data(), seed=st.integers(0, 2**32 - 1))
    def sum_without_some(self, data: Any, seed: int) -> None:
        lost = data.draw(st.lists(st.sampled_from(self.names), unique=True, max_size=5))
        steps = data.draw(
            st.lists(st.sampled_from(range(3)), min_size=len(lost), max_size=len(lost))
        )
        at = [[name for name, step in zip(lost, steps, strict=True) if step == s] for s in range(3)]
        vectors = dict(zip(self.names, drawn_words(SITES, LENGTH, seed), strict=True))
        there = [name for name in self.names if name not in at[0] + at[1]]
        needs_shares = self.sites.self_masked or bool(at[1])
        helpers = SITES - len(lost) if needs_shares else len(there)
        if min(helpers, len(there)) < THRESHOLD:
            with pytest.raises(FedDMMRError):
                self.sites.total(vectors, *at)
        else:
            total = self.sites.total(vectors, *at)
            assert total.tolist() == _plain(vectors[name] for name in there)

    @rule(data=st.data())
    def come_back_without_keys(self, data: Any) -> None:
        self.sites.draw(data.draw(st.sampled_from(self.names)))

    @rule(data=st.data(), seed=st.integers(0, 2**32 - 1))
    def ask_for_both_secrets(self, data: Any, seed: int) -> None:
        """A server that has opened a sum asks again with one site more on the list of the lost."""
        use = self.sites.use()
        words = drawn_words(SITES, LENGTH, seed)
        came = {
            name: self.sites.mask(name, use, one)
            for name, one in zip(self.names, words, strict=True)
        }
        helper, victim = data.draw(
            st.lists(st.sampled_from(self.names), unique=True, min_size=2, max_size=2)
        )
        self.sites.reveal(helper, use, [], opening.envelopes_for(helper, came))
        del came[victim]
        with pytest.raises(NodeError, match="opened already"):
            self.sites.reveal(helper, use, [victim], opening.envelopes_for(helper, came))

    @rule(data=st.data())
    def ask_for_a_mask_again(self, data: Any) -> None:
        name, words = data.draw(st.sampled_from(self.names)), drawn_words(1, LENGTH, 0)[0]
        use = self.sites.use()
        self.sites.mask(name, use, words)
        with pytest.raises(NodeError, match="serve twice"):
            self.sites.mask(name, use, words)


def _plain(vectors: Any) -> list[int]:
    return [sum(column) % 2**32 for column in zip(*(v.tolist() for v in vectors), strict=True)]


TestFederation = Federation.TestCase
TestFederation.settings = settings(
    max_examples=max(1, CASES // STEPS),
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize("lost", [3, 4])
def test_three_may_be_lost_and_four_stop_the_round(step: int, lost: int) -> None:
    sites = Sites.of(SITES, THRESHOLD)
    vectors = dict(zip(sites.identities, drawn_words(SITES, LENGTH, 1), strict=True))
    at: list[list[str]] = [[], [], []]
    at[step] = list(vectors)[2 : 2 + lost]
    there = [name for name in vectors if name not in at[0] + at[1]]
    if lost == 3:
        assert sites.total(vectors, *at).tolist() == _plain(vectors[name] for name in there)
    else:
        error = NodeError if step == 0 else RoundError
        with pytest.raises(error, match=r"threshold|too few sites sent"):
            sites.total(vectors, *at)


def test_one_wrong_share_never_gives_the_sum() -> None:
    sites = Sites.of(4, 3)
    vectors = dict(zip(sites.identities, drawn_words(4, LENGTH, 2), strict=True))
    use = sites.use()
    came = {name: sites.mask(name, use, words) for name, words in vectors.items()}
    given = {
        name: sites.reveal(name, use, [], opening.envelopes_for(name, came)) for name in vectors
    }
    right: Words = opening.opened_sum(use, came, [], given)
    given["site-00"]["site-01"] = bytes(16)
    assert not np.array_equal(opening.opened_sum(use, came, [], given), right)
