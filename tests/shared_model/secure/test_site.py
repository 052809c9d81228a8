"""What a site refuses, and what it sends: uniform words, of another mask each time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from shared_model.errors import NodeError
from shared_model.secure import opening, site
from shared_model.secure.masks import Words, add_mask
from shared_model.secure.use import least_threshold
from tests.support.secure_sites import Sites, drawn_words

ZEROS: Words = np.zeros(8, dtype=np.uint32)


def test_masked_words_are_uniform() -> None:
    """A million words of a site that sends zeros, as bytes and as pairs of bytes: chi-square."""
    sites = Sites.of(3, 2)
    masked = sites.mask("site-01", sites.use(), np.zeros(10**6, dtype=np.uint32))
    for bits in (masked.words.view(np.uint8), masked.words.view(np.uint16)):
        cells = 2 ** (8 * bits.itemsize)
        counts = np.bincount(bits, minlength=cells)
        expected = bits.size / cells
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert 1e-6 < chi2.sf(statistic, cells - 1) < 1 - 1e-6
    assert len(np.unique(masked.words)) > 0.999 * 10**6  # 116 pairs expected to coincide


def test_no_two_masks_are_the_same() -> None:
    """Of two uses, two sessions, and two sites; with pairs alone, where no own mask is drawn."""
    seen = []
    for _ in range(2):
        sites = Sites.of(3, 2, self_masked=False)
        for use in (sites.use(), sites.use()):
            seen += [sites.mask(name, use, ZEROS).words.tobytes() for name in sites.identities]
    assert len(set(seen)) == len(seen) == 12


def test_a_counter_that_goes_back_is_refused() -> None:
    sites = Sites.of(3, 2)
    first, second = sites.use(), sites.use()
    sites.mask("site-00", second, ZEROS)
    for use in (second, first):
        with pytest.raises(NodeError, match="a mask would serve twice"):
            sites.mask("site-00", use, ZEROS)
    # The same counter by the state that was there before: what the refusal is for.
    sites.sessions["site-00"] = replace(sites.sessions["site-00"], number=0)
    sites.mask("site-00", second, ZEROS)


def test_a_round_is_opened_once() -> None:
    sites = Sites.of(3, 2)
    use = sites.use()
    came = {name: sites.mask(name, use, ZEROS) for name in sites.identities}
    sites.reveal("site-00", use, [], opening.envelopes_for("site-00", came))
    again = replace(sites.use(), round=use.round)
    with pytest.raises(NodeError, match="opened already"):
        sites.mask("site-00", again, ZEROS)


def test_new_keys_of_a_session_forget_nothing_of_it() -> None:
    """Or a server would ask for new keys, and then for the sum of a round once more."""
    sites = Sites.of(3, 2)
    use = sites.use()
    came = {name: sites.mask(name, use, ZEROS) for name in sites.identities}
    sites.reveal("site-00", use, [], opening.envelopes_for("site-00", came))
    sites.draw("site-00")
    for again, match in (
        (use, "serve twice"),
        (replace(sites.use(), round=use.round), "opened already"),
    ):
        with pytest.raises(NodeError, match=match):
            sites.mask("site-00", again, ZEROS)


def test_a_round_whose_sum_stayed_closed_is_tried_again() -> None:
    sites = Sites.of(3, 2)
    use = sites.use()
    sites.mask("site-00", use, ZEROS)
    sites.mask("site-00", replace(sites.use(), round=use.round), ZEROS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"session": "other"}, "session"),
        ({"threshold": 1}, "threshold"),
        ({"threshold": 6}, "threshold"),
        ({"sites": ("site-00",)}, "threshold"),
        ({"sites": ("site-01", "site-00", "site-02")}, "not in order"),
        ({"sites": ("site-02", "site-03", "site-04")}, "not asked"),
    ],
)
def test_a_use_that_hides_too_little_is_refused(change: dict[str, Any], match: str) -> None:
    sites = Sites.of(5, 4)
    use = replace(sites.use(), **change)
    if len(use.sites) < 5:
        use = replace(use, threshold=2)
    with pytest.raises(NodeError, match=match):
        sites.mask("site-00", use, ZEROS)


def test_two_of_three_sites_are_enough_and_two_pinned_ones_are_not() -> None:
    sites = Sites.of(3, 2)
    vectors = dict(zip(list(sites.keys)[:2], drawn_words(2, 8, 4), strict=True))
    assert np.array_equal(sites.total(vectors), sum(vectors.values()))
    identity = sites.identities["site-00"]
    pins = {name: key.identity for name, key in sites.keys.items()}
    for count, threshold, match in ((2, 2, "hides nothing"), (3, 1, "threshold")):
        known = dict(list(pins.items())[:count])
        sites.identities["site-00"] = replace(identity, pins=known)
        use = replace(sites.use(list(vectors)), threshold=threshold)
        with pytest.raises(NodeError, match=match):
            sites.mask("site-00", use, ZEROS)


def test_shares_are_refused_of_what_was_not_masked_last() -> None:
    sites = Sites.of(4, 3)
    old, use = sites.use(), sites.use()
    came = {name: sites.mask(name, use, ZEROS) for name in sites.identities}
    sealed = opening.envelopes_for("site-00", came)
    for other in (old, replace(use, threshold=2), replace(use, round=9)):
        with pytest.raises(NodeError, match="masked last"):
            sites.reveal("site-00", other, [], sealed)
    with pytest.raises(NodeError, match="cannot be lost"):
        sites.reveal("site-00", use, ["site-00"], sealed)
    with pytest.raises(NodeError, match="too few sites"):
        sites.reveal("site-00", use, ["site-01", "site-02"], sealed)
    with pytest.raises(NodeError, match="not one envelope"):
        sites.reveal("site-00", use, ["site-01"], sealed)
    changed = sealed | {"site-01": sealed["site-02"]}
    with pytest.raises(NodeError, match="did not seal"):
        sites.reveal("site-00", use, [], changed)
    assert sites.reveal("site-00", use, [], sealed)


def test_envelopes_of_another_use_do_not_open() -> None:
    sites = Sites.of(3, 2)
    came = {name: sites.mask(name, use, ZEROS) for use in [sites.use()] for name in sites.keys}
    later = sites.use()
    sites.mask("site-00", later, ZEROS)
    with pytest.raises(NodeError, match="did not seal"):
        sites.reveal("site-00", later, [], opening.envelopes_for("site-00", came))


def test_a_lost_vector_stays_masked_though_it_comes_late() -> None:
    """What a server can take off it: all pair masks. The site's own mask is left."""
    for self_masked in (True, False):
        sites = Sites.of(4, 3, self_masked)
        vectors = dict(zip(sites.keys, drawn_words(4, 8, 3), strict=True))
        use = sites.use()
        came = {name: sites.mask(name, use, words) for name, words in vectors.items()}
        late = came.pop("site-03")
        helpers = list(came)
        given = {
            n: sites.reveal(n, use, ["site-03"], opening.envelopes_for(n, came)) for n in helpers
        }
        bare = late.words.copy()
        at = int(self_masked)
        for place, name in enumerate(helpers):
            shares = {use.place(h): given[h][name][16 * at : 16 * at + 16] for h in helpers}
            add_mask(bare, opening.combine(shares, 3), 1)
            assert place < use.place("site-03")  # so it took these masks off
        assert np.array_equal(bare, vectors["site-03"]) == (not self_masked)


def test_two_thirds_are_rounded_up() -> None:
    assert [least_threshold(n) for n in (3, 4, 5, 6, 10, 64)] == [2, 3, 4, 4, 7, 43]


def test_a_session_is_begun_with_new_keys() -> None:
    identity = Sites.of(1, 1).identities["site-00"]
    first, second = (site.begin("s", identity) for _ in range(2))
    assert first[0].public != second[0].public
    assert first[1].private != second[1].private
