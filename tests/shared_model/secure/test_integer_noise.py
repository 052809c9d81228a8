"""Sites' shares of noise: their distribution, that of their sums, and what sums tell."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.stats import chi2, norm

from shared_model.errors import NodeError
from shared_model.secure import noise
from shared_model.secure.noise import Floats, Ints, Noise, share_of
from tests.support.divergences import gaussian_delta, sampled_delta

KEY = bytes(range(32))


def mass(centre: float, std: float, reach: int) -> Floats:
    """The discrete Gaussian of the integers from -reach to reach, by its definition."""
    weights = np.exp(-((np.arange(-reach, reach + 1) - centre) ** 2) / (2 * std**2))
    return np.asarray(weights / weights.sum())


def surprise(drawn: Ints, expected: Floats) -> float:
    """p of the chi-square test of integers around 0 against their probabilities."""
    reach = len(expected) // 2
    counts, wanted = np.bincount(drawn + reach, minlength=len(expected)), len(drawn) * expected
    inner = wanted > 10
    rest = np.array([counts[~inner].sum() - wanted[~inner].sum()]) ** 2 / wanted[~inner].sum()
    parts = np.append((counts - wanted)[inner] ** 2 / wanted[inner], rest)
    return float(chi2.sf(parts.sum(), len(parts) - 1))


@pytest.mark.parametrize(("centre", "std"), [(0.0, 8.0), (0.37, 9.3), (-0.5, 21.7)])
def test_numbers_have_the_probabilities_that_they_should(centre: float, std: float) -> None:
    drawn = Noise(std, KEY).around(np.full(200_000, centre))
    assert surprise(drawn, mass(centre, std, 300)) > 0.01
    assert surprise(drawn, mass(centre + 0.03 * std, std, 300)) < 1e-4  # what the test can see
    assert surprise(drawn, mass(centre, 1.03 * std, 300)) < 1e-4


def test_of_many_units_it_is_a_gaussian_around_each_number() -> None:
    """At the size that shares have, over several blocks."""
    centres = np.random.default_rng(0).uniform(-1e6, 1e6, 2 * noise._BLOCK + 5)
    for std in (3.2e5, 2.0**28.9):
        off = Noise(std, KEY).around(centres) - centres
        counts = np.histogram(norm.cdf(off / std), bins=256, range=(0, 1))[0]
        wanted = len(centres) / 256
        assert chi2.sf(((counts - wanted) ** 2 / wanted).sum(), 255) > 0.01


def test_noise_is_a_function_of_its_key() -> None:
    one, other = (Noise(20.0, key).around(np.zeros(1000)) for key in (KEY, b"k" * 32))
    assert np.array_equal(one, Noise(20.0, KEY).around(np.zeros(1000)))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert len(Noise(20.0, KEY).around(np.empty(0))) == 0


def test_what_floating_point_cannot_decide_is_decided_by_more_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it may decide nothing, the same comes out."""
    centres = np.random.default_rng(1).uniform(-3, 3, 3000)
    expected = Noise(9.3, KEY).around(centres)
    monkeypatch.setattr(noise, "_DOUBT", 2.0**60)
    assert np.array_equal(Noise(9.3, KEY).around(centres), expected)


def test_the_exact_decision_is_between_the_right_numbers() -> None:
    """Around exp(-1/2) = 0.60653065971263342360... of a step of one std, and twice that."""
    digits = 60653065971263342360379953499118045
    uniform, more = divmod(digits * 2 ** (53 + 256) // 10**35, 2**256)
    for halvings, times in ((0, 1), (1, 2)):
        threshold = times * ((uniform << 256) + more)
        for shift, accepted in ((-(2**200), True), (2**200, False)):
            at = divmod(threshold + shift, 2**256)
            assert noise._decided(16, 0.0, halvings, at[0], 16.0, at[1]) is accepted


@pytest.mark.parametrize("std", [0.0, 7.9, 2.0**30, float("nan"), float("inf")])
def test_a_share_that_is_no_noise_is_refused(std: float) -> None:
    with pytest.raises(NodeError, match="a share of the noise is no noise"):
        Noise(std, KEY).around(np.zeros(3))


@pytest.mark.parametrize("sites", [3, 4])
def test_sums_of_the_threshold_have_what_was_asked_for_and_of_more_more(sites: int) -> None:
    """Threshold 3; the sites' numbers lie between integers."""
    share, centres = share_of(20.0, 1.0, 3), np.array([0.3, -1.6, 0.45, 0.1])[:sites]
    keys = [bytes([i]) * 32 for i in range(sites)]
    sums = sum(
        Noise(share, key).around(np.full(200_000, centre))
        for key, centre in zip(keys, centres, strict=True)
    )
    assert isinstance(sums, np.ndarray)
    one_gaussian = mass(centres.sum(), math.sqrt(sites) * share, 300)
    assert surprise(sums, one_gaussian) > 0.01
    by_convolution = np.array([1.0])
    for centre in centres:
        by_convolution = np.convolve(by_convolution, mass(centre, share, 150))
    middle = slice(len(by_convolution) // 2 - 100, len(by_convolution) // 2 + 101)
    assert by_convolution[middle] == pytest.approx(one_gaussian[200:401], rel=1e-10, abs=1e-14)
    variance = share_of(20.0, 1.0, 3) ** 2 * sites
    assert sums.var() == pytest.approx(variance, rel=0.02)
    assert variance >= 20.0**2 * sites / 3


def hockey_stick(
    without: Floats, with_user: Floats, rate: float, eps: float
) -> tuple[float, float]:
    """Of a user removed and one added, who takes part with this probability."""
    mixed = (1 - rate) * without + rate * with_user
    removed = np.maximum(0, mixed - math.exp(eps) * without).sum()
    return float(removed), float(np.maximum(0, without - math.exp(eps) * mixed).sum())


CASES = list(itertools.product((0.01, 0.3, 1.0), (0.1, 0.5, 1.0, 3.0)))


@pytest.mark.parametrize(("threshold", "multiplier"), [(2, 0.8), (2, 3.0), (5, 2.0)])
@pytest.mark.parametrize("start", [0.0, 0.21, -0.5])
@pytest.mark.parametrize(("units", "least"), [(noise.LEAST_SHARE, 0.2), (80.0, 0.97)])
def test_a_sum_tells_no_more_than_the_gaussian_that_the_ledger_charges(
    threshold: int, multiplier: float, start: float, units: float, least: float
) -> None:
    """By the divergences of convolved probabilities, at the fewest units that are allowed, and at
    more, where it tells hardly less, either.

    One number; one site's user moves it by the clip norm, to wherever between two integers.
    """
    std = math.sqrt(threshold * units**2 - noise._SMOOTHING)
    share, clip, reach = share_of(std, 1.0, threshold), std / multiplier, int(16 * units)
    others = mass(0.4, share, reach)
    for _ in range(threshold - 2):
        others = np.convolve(others, mass(-0.3, share, reach))
    sums = [np.convolve(others, mass(start + moved, share, reach)) for moved in (0.0, clip)]
    for rate, eps in CASES:
        promised = sampled_delta(eps, rate, multiplier)
        found = max(hockey_stick(sums[0], sums[1], rate, eps))
        assert found <= promised * (1 + 1e-7) + 1e-12
        assert found > least * promised - 1e-9


def test_a_user_that_moves_two_numbers_tells_no_more() -> None:
    """By the clip norm in both together, at threshold 2."""
    share, std = noise.LEAST_SHARE, math.sqrt(2 * 64 - 16)
    moved, multiplier = std / 1.5 / math.sqrt(2), 1.5

    def sums(by: float) -> Floats:
        one = [np.convolve(mass(at + by, share, 90), mass(0.1, share, 90)) for at in (0.2, -0.4)]
        return np.outer(*one)

    for rate, eps in CASES:
        found = max(hockey_stick(sums(0.0), sums(moved), rate, eps))
        assert found <= sampled_delta(eps, rate, multiplier) * (1 + 1e-7) + 1e-12


def test_noise_on_what_was_rounded_before_tells_more() -> None:
    """Why noise is drawn around numbers: rounded, two that are the clip norm apart are farther."""
    share, std = noise.LEAST_SHARE, math.sqrt(2 * 64 - 16)
    numbers = np.rint([0.25, 0.25 + std / 2.0])  # 5.3 apart, and then 6
    sums = [np.convolve(mass(0, share, 150), mass(number, share, 150)) for number in numbers]
    assert hockey_stick(sums[0], sums[1], 1.0, 1.0)[0] > 1.01 * sampled_delta(1.0, 1.0, 2.0)


def test_googles_discrete_gaussian_agrees() -> None:
    """Its privacy losses, for clip norms of whole units, at the noise of the threshold's sum."""
    for units, multiplier in ((60, 1.0), (30, 3.0)):
        share = share_of(units * multiplier, 1.0, 4)
        losses = pld.from_discrete_gaussian_mechanism(
            2 * share, sensitivity=units, value_discretization_interval=1e-5
        )
        for eps in (0.1, 0.5, 1.0):
            delta = losses.get_delta_for_epsilon(eps)
            assert delta <= gaussian_delta(eps, 1 / multiplier)
            assert delta > 0.98 * gaussian_delta(eps, 1 / multiplier)
