"""The accountant against closed forms of other people and published figures."""

import math
import re
import subprocess
import sys
from collections import Counter

import pytest
from scipy.special import comb
from typer.testing import CliRunner

from feddmmr.cli import app
from server_app.privacy.accountant import Mechanism, affordable, epsilon, noise_for, planned
from shared_model.errors import ConfigError
from tests.support.divergences import (
    gaussian_delta,
    sampled_delta,
)

DELTA = 1e-5


def moments_epsilon(rate: float, multiplier: float, rounds: int) -> float:
    """The moments accountant: Renyi divergence of the sampled Gaussian at whole orders (Mironov,
    Talwar and Zhang, 2019, section 3.3) and the conversion of Mironov (CSF 2017), proposition 3."""

    def divergence(order: int) -> float:
        terms = [
            math.log(comb(order, k, exact=True))
            + (order - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k * k - k) / (2 * multiplier**2)
            for k in range(order + 1)
        ]
        top = max(terms)
        return (top + math.log(sum(math.exp(t - top) for t in terms))) / (order - 1)

    return min(rounds * divergence(a) + math.log(1 / DELTA) / (a - 1) for a in range(2, 128))


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (4.0, 9), (20.0, 300), (0.7, 2)])
def test_without_sampling_it_is_the_gaussian_mechanism(multiplier: float, rounds: int) -> None:
    found = epsilon(Counter({Mechanism(1.0, multiplier): rounds}), DELTA)
    mu = math.sqrt(rounds) / multiplier
    assert gaussian_delta(found, mu) <= DELTA  # never less than it is
    assert gaussian_delta(found * 0.98, mu) > DELTA  # and not much more


@pytest.mark.parametrize(("rate", "multiplier"), [(0.1, 1.0), (0.01, 0.8), (0.5, 2.0), (0.1, 0.5)])
def test_one_sampled_round_has_its_closed_form(rate: float, multiplier: float) -> None:
    found = epsilon(Counter({Mechanism(rate, multiplier): 1}), DELTA)
    assert sampled_delta(found, rate, multiplier) <= DELTA * (1 + 1e-9)
    assert sampled_delta(found - 1e-3, rate, multiplier) > DELTA


@pytest.mark.parametrize(
    ("multiplier", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)]
)
def test_published_figures_of_the_moments_accountant(
    multiplier: float, epochs: int, published: float
) -> None:
    """TensorFlow Privacy's MNIST tutorial (tutorials/README.md, "Select Parameters"): 60,000
    examples, 256 a step. Ours tells less, as a tighter accountant has to (theirs here with whole
    orders only), but not much less."""
    rounds = epochs * 60000 // 256
    assert moments_epsilon(256 / 60000, multiplier, rounds) == pytest.approx(published, abs=0.04)
    found = epsilon(Counter({Mechanism(256 / 60000, multiplier): rounds}), DELTA)
    assert 0.65 * published < found < 0.82 * published


def test_rounds_and_stages_compose() -> None:
    first, second = Mechanism(0.1, 2.0), Mechanism(0.2, 3.0)
    alone = epsilon(Counter({first: 20}), DELTA)
    both = epsilon(Counter({first: 20, second: 10}), DELTA)
    assert alone < both < alone + epsilon(Counter({second: 10}), DELTA)
    assert epsilon(Counter({first: 40}), DELTA) > alone
    assert epsilon(Counter(), DELTA) == epsilon(Counter({first: 0}), DELTA) == 0.0


def test_as_many_rounds_as_the_budget_has_room_for() -> None:
    mechanism, before = Mechanism(0.2, 2.0), Counter({Mechanism(0.1, 2.0): 30})
    found = affordable(mechanism, 1000, 3.0, DELTA, before)
    assert 0 < found < 1000
    assert epsilon(before + Counter({mechanism: found}), DELTA) <= 3.0
    assert epsilon(before + Counter({mechanism: found + 1}), DELTA) > 3.0
    assert affordable(mechanism, found - 1, 3.0, DELTA, before) == found - 1
    assert affordable(mechanism, 9, 0.5, DELTA, before) == 0


def test_noise_that_keeps_a_budget() -> None:
    found = noise_for(0.1, 40, 2.0, DELTA)
    assert epsilon(Counter({Mechanism(0.1, found): 40}), DELTA) <= 2.0
    assert epsilon(Counter({Mechanism(0.1, found - 0.005): 40}), DELTA) > 2.0
    spread = noise_for(0.1, 40, 2.0, DELTA, 1.2)
    assert epsilon(planned(0.1, spread, 40, 1.2), DELTA) <= 2.0
    assert found / 1.2 < spread < found / 1.2 * 1.02  # the last round is counted without
    with pytest.raises(ConfigError, match="no noise keeps this budget"):
        noise_for(1.0, 9, 1e-9, DELTA)


def test_a_run_without_privacy_does_not_import_the_accountant() -> None:
    code = "import sys, server_app.app, feddmmr.cli; print('dp_accounting' in sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def plan(*options: str) -> str:
    return CliRunner().invoke(app, ["privacy", "plan", *options], catch_exceptions=False).output


STAGES = ("--users", "6040", "--fraction", "0.1", "--rounds", "20", "5", "9")


def test_plan_prints_the_noise_of_a_budget_and_the_epsilon_of_a_noise() -> None:
    told = plan(*STAGES, "--epsilon", "3")
    noise = noise_for(0.1, 34, 3.0, DELTA)
    assert f"dp-noise-multiplier={noise:g} " in told
    spent = [epsilon(Counter({Mechanism(0.1, noise): n}), DELTA) for n in (20, 25, 34)]
    assert [f"{value:.3f}" for value in spent] == re.findall(r"epsilon ([\d.]+)", told)
    assert 2.9 < spent[-1] <= 3.0
    assert "secure sum" not in told
    assert plan(*STAGES, "--multiplier", "2", "--sites", "10").endswith(
        "noise on a round's mean: 0.00396 of the clip norm a number\n"
        "that is a secure sum of all 10 sites; one of 7 has 0.00331\n"
        "each round without a site costs more; the last one is counted as of the fewest\n"
    )
    assert plan(*STAGES, "--epsilon", "3", "--sites", "10", "--threshold", "1") == told
    assert plan(*STAGES, "--multiplier", str(noise)) == told
    assert "note: delta" not in told
    assert "note: delta is not below 1/users" in plan(*STAGES, "--epsilon", "3", "--delta", "0.001")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "either --epsilon or --multiplier"),
        (("--epsilon", "1", "--multiplier", "1"), "either --epsilon or --multiplier"),
        (("--multiplier", "0.01"), "--multiplier; expected in [0.1, 65536]; got 0.01"),
        (("--multiplier", "inf"), "--multiplier; expected in [0.1, 65536]; got inf"),
        (("--epsilon", "8", "--fraction", "1e-320"), "--fraction"),
        (("--epsilon", "-1"), "--epsilon; expected > 0; got -1"),
        (("--epsilon", "1", "--delta", "2"), "--delta"),
        (("--epsilon", "1", "--fraction", "0"), "--fraction"),
        (("--epsilon", "1", "--rounds", "0"), "--rounds"),
    ],
)
def test_plan_refuses_in_one_line(options: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(*STAGES, *options)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
