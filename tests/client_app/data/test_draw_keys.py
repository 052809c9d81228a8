"""Names by which users are drawn under differential privacy."""

from typing import Any

import numpy as np

from tests.support.histories import Histories, rows_of


def test_users_are_drawn_by_id_and_training_part(
    make_dataset: Any, small_histories: Histories
) -> None:
    """Two sites that give two people one id do not draw them together; topology changes nothing."""

    def keys(histories: Histories, cold: set[int] = set()) -> dict[int, int]:  # noqa: B006
        dataset = make_dataset(histories, num_items=30, cold=cold)
        found = dataset.draw_keys(rows_of(dataset)).tolist()
        return dict(zip(sorted(histories), found, strict=True))

    here = keys(small_histories)
    assert len(set(here.values())) == len(here)
    assert keys(dict(reversed(small_histories.items()))) == here
    dataset = make_dataset(small_histories, num_items=30, cold=set())
    rows = np.array([4, 0, 4])
    assert dataset.draw_keys(rows).tolist() == [list(here.values())[row] for row in rows]
    user = max(small_histories, key=lambda user: len(small_histories[user]))
    history = small_histories[user]
    others = {
        "first": [history[1], history[0], *history[2:]],
        "last of training": [*history[:-4], history[-3], history[-4], *history[-2:]],
        "shorter": history[1:],
    }
    for what, other in others.items():
        there = keys(small_histories | {user: other})
        assert there.pop(user) != here[user], what
        assert there == {name: key for name, key in here.items() if name != user}
    held_out = [*history[:-2], history[-1], history[-2]]
    assert keys(small_histories | {user: held_out}) == here
