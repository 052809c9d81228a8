"""Histories cut into tenths by length, from counts that add up over nodes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from shared_model.errors import NodeError
from shared_model.protocol.lengths import (
    STEPS,
    count_lengths,
    cuts_of,
    groups_by_length,
    length_groups,
    read_lengths,
)
from shared_model.protocol.node_report import NodeReport, check_report

REPORT = NodeReport("a", 0, 2, 5, 50, 9, 1, "ff", "cat", "", "{}", 512, 384, "app", 5)


def lengths_of(users: int) -> np.ndarray:
    return np.random.default_rng(users).geometric(0.05, users) + 1


def test_short_lengths_have_a_step_of_their_own_and_long_ones_five_percent() -> None:
    assert STEPS[:20].tolist() == list(range(1, 21))
    assert (np.diff(STEPS) <= np.maximum(1, np.ceil(0.05 * STEPS[1:]))).all()
    assert STEPS[-1] > 2e9


@pytest.mark.parametrize("nodes", [1, 3, 400])
def test_cuts_depend_on_all_users_and_not_on_who_hosts_them(nodes: int) -> None:
    lengths = lengths_of(400)
    counts = [read_lengths(count_lengths(lengths[node::nodes])) for node in range(nodes)]
    cuts = cuts_of(counts)
    assert cuts == cuts_of([read_lengths(count_lengths(lengths))])
    sizes = [int(members.sum()) for members in groups_by_length(lengths, cuts).values()]
    assert len(sizes) == 10
    assert sum(sizes) == 400
    assert min(sizes) >= 25
    assert max(sizes) <= 55


def test_equal_lengths_stay_together_and_parts_are_named_by_what_is_in_them() -> None:
    lengths = np.array([5] * 60 + [6] * 20 + [7] * 10 + [9] * 10)
    cuts = cuts_of([read_lengths(count_lengths(lengths))])
    groups = groups_by_length(lengths, cuts)
    assert {name: int(members.sum()) for name, members in groups.items()} == {
        "length-1-5": 60,
        "length-6-6": 20,
        "length-7-7": 10,
        "length-8-up": 10,
    }
    assert length_groups(["all", "length-100-up", "length-20-99", "length-1-19"]) == [
        "length-1-19",
        "length-20-99",
        "length-100-up",
    ]


def test_users_of_one_length_are_one_part() -> None:
    assert cuts_of([{7: 12}]) == []
    assert {n: m.tolist() for n, m in groups_by_length(np.array([7, 7]), []).items()} == {
        "length-1-up": [True, True]
    }


@pytest.mark.parametrize("text", ["[]", "{}", "7", '{"27": 5}', '{"7": 4}', '{"7": true}', "nope"])
def test_counts_that_cannot_be_of_a_nodes_users_are_refused(text: str) -> None:
    check_report(replace(REPORT, lengths=json.dumps({"7": 2, "8": 3})))
    with pytest.raises(NodeError, match=r"cannot be true.*lengths"):
        check_report(replace(REPORT, lengths=text))
