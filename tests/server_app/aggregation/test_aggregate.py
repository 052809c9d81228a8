"""Reduction of updates: exact sums, order-free weights, unusable updates refused."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom

from server_app.aggregation.aggregate import check_update, reduce_updates
from server_app.rounds.logs import mixture_logs
from shared_model.errors import FedDMMRError
from shared_model.model.recommender import Arrays
from shared_model.protocol.config import default_config, parse_settings
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import MIXTURE_LOGS, LocalUpdate
from tests.support.paths import ROOT

ARRAYS = {"a": torch.tensor([1.0, 2.0, 3.0])}
CONFIG = {"fraction-train": 0.9, "max-length": 20}
SETTINGS = replace(
    parse_settings(default_config(ROOT / "pyproject.toml") | CONFIG), targets_per_user=32
)
NODE = NodeReport("partition-0", 0, 3, 5, 50, 9, 0, "00", "cat", "", "{}", 0, 0, "app", 5)


def update(values: list[float], weight: float, loss: float = 1.0) -> LocalUpdate:
    return LocalUpdate(
        {"a": torch.tensor(values, dtype=torch.float32)}, weight, loss, targets=2, participants=1
    )


def test_the_mean_is_sum_over_weight() -> None:
    mean = reduce_updates([update([2, 0, 4], 1, 3.0), update([4, 0, 2], 3, 5.0)], ARRAYS)
    assert mean is not None
    assert mean.delta["a"].tolist() == [1.5, 0.0, 1.5]
    assert (mean.loss, mean.targets, mean.participants) == (2.0, 4, 2)


def test_sums_are_float64() -> None:
    tiny = [update([1e8, 0, 0], 1), update([1, 0, 0], 1), update([-1e8, 0, 0], 1)]
    mean = reduce_updates(tiny, ARRAYS)
    assert mean is not None
    assert mean.delta["a"][0] == pytest.approx(1 / 3)  # float32 sums would lose the one


def test_an_empty_round_is_none() -> None:
    assert reduce_updates([update([0, 0, 0], 0.0)], ARRAYS) is None
    assert reduce_updates([], ARRAYS) is None


def sums(
    weight: float, targets: int, participants: int, arrays: Arrays | None = None, loss: float = 1.0
) -> LocalUpdate:
    given = {"a": torch.ones(3)} if arrays is None else arrays
    return LocalUpdate(given, weight, loss, targets, participants)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (update([float("nan"), 0, 0], 2), "not finite"),
        (update([0, float("-inf"), 0], 2), "not finite"),
        (update([1.0], 2), r"misshapen: \['a \[1\]"),
        (sums(2, 2, 1, {"b": torch.zeros(3)}), "missing.*unexpected"),
        (sums(2, 2, 1, {"a": torch.zeros(3), "b": torch.zeros(3)}), "unexpected"),
        (sums(2, 2, 1, {"a": torch.zeros(3).double()}), "float64"),
        (sums(2, 2, 1, {"a": torch.zeros(3).half()}), "float16"),
        (sums(2, 2, 1, {"a": torch.zeros(3, dtype=torch.int32)}), "int32"),
        (sums(-1, 2, 1), "unusable weight"),
        (sums(0, 2, 1), "unusable weight"),
        (sums(3, 2, 1), "unusable weight"),
        (sums(1e300, 2, 1), "unusable weight"),
        (sums(float("nan"), 2, 1), "unusable weight"),
        (sums(float("inf"), 2, 1), "unusable weight"),
        (sums(0, 0, 1), "without weight"),
        (sums(51, 51, 4), "unusable targets"),
        (sums(21, 21, 1), "unusable targets"),
        (sums(-1, -1, 1), "unusable targets"),
        (sums(2, 2, 0), "unusable targets"),
        (sums(6, 6, 6), "unusable participants"),
        (sums(2, 2, 1, loss=float("nan")), "unusable loss"),
    ],
)
def test_what_no_honest_node_can_send_is_refused(bad: LocalUpdate, what: str) -> None:
    with pytest.raises(FedDMMRError, match=what):
        check_update(bad, ARRAYS, NODE, SETTINGS)


def test_what_an_honest_node_sends_is_not() -> None:
    check_update(update([1, 2, 3], 2), ARRAYS, NODE, SETTINGS)
    check_update(sums(0, 0, 0, {"a": torch.zeros(3)}), ARRAYS, NODE, SETTINGS)
    check_update(sums(50, 50, 5), ARRAYS, NODE, SETTINGS)


def test_a_uniform_weight_is_the_number_of_participants() -> None:
    settings = replace(SETTINGS, weighting="uniform")
    check_update(sums(2, 9, 2), ARRAYS, NODE, settings)
    for weight in (1, 3, 9, 0):
        with pytest.raises(FedDMMRError, match="unusable weight"):
            check_update(sums(weight, 9, 2), ARRAYS, NODE, settings)


def test_a_sum_beyond_what_clipping_leaves_is_refused() -> None:
    """Each of the users is clipped before its weight: at most weight times the clip norm."""
    for weighting, weight in (("targets", 9), ("uniform", 2)):
        settings = replace(SETTINGS, weighting=weighting, dp_clip_norm=0.5)
        largest = torch.tensor([0.5 * weight, 0.0, 0.0])
        check_update(sums(weight, 9, 2, {"a": largest}), ARRAYS, NODE, settings)
        with pytest.raises(FedDMMRError, match="update norm beyond clipping"):
            check_update(sums(weight, 9, 2, {"a": largest * 1.01}), ARRAYS, NODE, settings)


def test_a_mixtures_weight_counts_targets_that_were_not_sampled() -> None:
    """Of a user's up to 20 targets (max-length), 4 are trained: weight 4 to 20 a user."""
    settings = replace(SETTINGS, targets_per_user=4)
    for weight, targets, fits in ((8, 8, 1), (40, 8, 1), (7, 8, 0), (41, 8, 0), (40, 9, 0)):
        logs = dict.fromkeys(MIXTURE_LOGS, 1.0)
        given = LocalUpdate({"mixture.gate": torch.tensor(0.5)}, weight, 1.0, targets, 2, logs)
        with nullcontext() if fits else pytest.raises(FedDMMRError, match="unusable"):
            check_update(given, GATE, NODE, settings)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.9, 1.0])
def test_only_an_impossible_number_of_participants_is_implausible(fraction: float) -> None:
    """The limit lies where the exact binomial tail is below 1e-15: no honest node meets it."""
    settings = replace(SETTINGS, fraction_train=fraction, weighting="uniform")
    for users in (1, 5, 20, 600, 100_000):
        node = replace(NODE, users=users, interactions=20 * users)
        most = int(binom.isf(1e-15, users, fraction))
        check_update(sums(most, most, most), ARRAYS, node, settings)
    if fraction < 0.5:
        with pytest.raises(FedDMMRError, match="implausibly many"):
            check_update(sums(users, users, users), ARRAYS, node, settings)


GATE = {"mixture.gate": torch.tensor(0.75)}


def mixture_update(participants: int, **logs: float) -> LocalUpdate:
    """A node's update of Stage 2 whose logs are 1, 2, 3, ... in order, but for those given."""
    sums = {name: float(n) for n, name in enumerate(MIXTURE_LOGS, start=1)} | logs
    arrays = {"mixture.gate": torch.tensor(0.5)}
    return LocalUpdate(arrays, 1.0, 1.0, 1, participants, sums if participants else {})


def test_a_mixture_tells_all_its_logs_and_a_backbone_none() -> None:
    check_update(mixture_update(2), GATE, NODE, SETTINGS)
    nobody = LocalUpdate({"mixture.gate": torch.tensor(0.0)}, 0.0, 0.0, 0, 0)
    check_update(nobody, GATE, NODE, SETTINGS)
    for fault in ({"alignment": float("nan")}, {"more": 1.0}):
        with pytest.raises(FedDMMRError, match="unusable logs"):
            check_update(mixture_update(2, **fault), GATE, NODE, SETTINGS)
    some = mixture_update(2)
    del some.logs["memory_left"]
    with pytest.raises(FedDMMRError, match="unusable logs"):
        check_update(some, GATE, NODE, SETTINGS)
    extra = LocalUpdate({"a": torch.zeros(3)}, 1, 1, 1, 1, {"alignment": 1.0})
    with pytest.raises(FedDMMRError, match="unusable logs"):
        check_update(extra, ARRAYS, NODE, SETTINGS)


def test_a_rounds_logs_are_means_over_its_participants() -> None:
    updates = [
        mixture_update(3, memory_left=30, memory_written=6, alignment=4.0),
        mixture_update(0),
        mixture_update(1, memory_left=10, memory_written=4, alignment=2.0),
    ]
    mean = reduce_updates(updates, GATE)
    assert mean is not None
    logs = mixture_logs(GATE, mean)
    assert logs["gate"] == 0.75
    assert logs["losses"] == {"alignment": 6 / 4, "load_balance": 2 * 2 / 4}
    assert logs["router"] == {"visual": 2 * 3 / 4, "text": 2 * 4 / 4, "entropy": 2 * 5 / 4}
    assert logs["memory"] == {"write_rate": 10 / 40, "short_term": 2 * 8 / 4, "long_term": 18 / 4}


def test_memories_that_nothing_left_wrote_nothing() -> None:
    mean = reduce_updates([mixture_update(2, memory_left=0, memory_written=0)], GATE)
    assert mean is not None
    assert mixture_logs(GATE, mean)["memory"]["write_rate"] == 0.0
