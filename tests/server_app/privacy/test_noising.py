"""A round's sum under noise: what is refused, and that nobody taking part is not to be seen."""

from dataclasses import replace

import pytest
import torch

from server_app.privacy.mechanism import Noising
from shared_model.errors import NodeError
from shared_model.protocol.node_report import NodeReport
from shared_model.protocol.plan import LocalUpdate


def test_a_sum_beyond_its_participants_clip_norms_is_refused() -> None:
    node = NodeReport("a", 0, 1, 50, 900, 9, 0, "0", "", "", "{}", 0, 0, "", 50)
    for noise_on, most in (("server", 1.0), ("nodes", 1.0 + 1.5 * (10.0 + 10.0))):
        noising = Noising(b"k" * 32, 0.5, 3.0, 200, 0.1, noise_on)  # a quarter of the users
        for norm, refused in ((0.999 * most, False), (1.002 * most, True)):
            update = LocalUpdate({"a": torch.full((100,), norm / 10)}, 2.0, 0.0, 0, 2)
            if refused:
                with pytest.raises(NodeError, match="beyond clipping"):
                    noising.check(update, node)
            else:
                noising.check(update, node)


def test_a_round_without_users_is_noised_like_any_other() -> None:
    noising = Noising(b"k" * 32, 0.5, 1.0, 200, 0.1, "server")
    like = {"a": torch.zeros(5000)}
    nobody = noising.mean([LocalUpdate(like, 0.0, 0.0, 0, 0)], like, 1, ())
    assert float(nobody.delta["a"].std()) == pytest.approx(1.0 / 20, rel=0.05)
    assert nobody.participants == 0
    other = noising.mean([], like, 2, ())
    assert (nobody.delta["a"] != other.delta["a"]).all()


def test_noise_depends_on_which_users_were_absent_and_its_name_tells_when_it_is_the_same() -> None:
    """ "partition-1" is someone else where there are more partitions; its digest is, too."""
    noising, like = Noising(b"k" * 32, 0.5, 1.0, 200, 0.1, "server"), {"a": torch.zeros(100)}
    node = NodeReport("partition-1", 1, 2, 50, 900, 9, 0, "ab", "", "", "{}", 0, 0, "", 50)
    others = [replace(node, name="b"), replace(node, history_digest="cd")]
    cases = [(1, ()), (2, ()), (1, (node,)), *((1, (other,)) for other in others)]
    cases += [(1, (node, others[0])), (1, (replace(node, name='partition-1", "ab'),))]
    noises = [noising.mean([], like, *case).delta["a"] for case in cases]
    names = [noising.release(*case)["noise"] for case in cases]
    assert len(set(names)) == len(cases) == len({tuple(noise.tolist()) for noise in noises})
    assert noising.release(1, (node,)) == {"round": 1, "absent": [node.name], "noise": names[2]}
