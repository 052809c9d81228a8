"""A round's sum under noise: what is refused, and that nobody taking part is not to be seen."""

import pytest
import torch

from server_app.noising import Noising
from shared_model.errors import NodeError
from shared_model.node_report import NodeReport
from shared_model.plan import LocalUpdate


def test_a_sum_beyond_its_participants_clip_norms_is_refused() -> None:
    node = NodeReport("a", 0, 1, 50, 900, 9, 0, "0", "", "", "{}", 0, 0, "")
    for on_nodes, most in ((False, 1.0), (True, 1.0 + 1.5 * (10.0 + 10.0))):
        noising = Noising(b"k" * 32, 0.5, 3.0, 200, 0.1, on_nodes)  # a quarter of the users
        for norm, refused in ((0.999 * most, False), (1.002 * most, True)):
            update = LocalUpdate({"a": torch.full((100,), norm / 10)}, 2.0, 0.0, 0, 2)
            if refused:
                with pytest.raises(NodeError, match="beyond clipping"):
                    noising.check(update, node)
            else:
                noising.check(update, node)


def test_a_round_without_users_is_noised_like_any_other() -> None:
    noising = Noising(b"k" * 32, 0.5, 1.0, 200, 0.1, False)
    like = {"a": torch.zeros(5000)}
    nobody = noising.mean([LocalUpdate(like, 0.0, 0.0, 0, 0)], like, 1, [])
    assert float(nobody.delta["a"].std()) == pytest.approx(1.0 / 20, rel=0.05)
    assert nobody.participants == 0
    other = noising.mean([], like, 2, [])
    assert (nobody.delta["a"] != other.delta["a"]).all()
