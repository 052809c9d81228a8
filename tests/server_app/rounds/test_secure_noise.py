"""Rounds whose sites add their share of the noise: how much comes out, and by what it is drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client_app import secure as client_secure
from client_app.data.dataset import Dataset
from feddmmr.launch.in_process import InProcessGrid
from server_app.nodes.census import Census
from server_app.privacy.shares import require_shares
from shared_model.errors import ConfigError, NodeError, RoundError
from shared_model.model.recommender import Arrays
from shared_model.protocol import messages
from shared_model.protocol.config import parse_settings
from shared_model.protocol.masked_update import SiteNoise, packed, update_scale
from shared_model.protocol.node_report import NodeReport
from shared_model.protocol.plan import LocalUpdate
from shared_model.secure.noise import TAIL
from shared_model.stages import TABLE
from tests.support.secure_noise import FRACTION, PRIVATE, SGD, STD, USERS, noising
from tests.support.secure_rounds import SECURE, Rounds, differ, lose, rounds_of
from tests.support.strategy import DEFAULTS

Make = Callable[..., Rounds]


@pytest.fixture
def rounds(small_dataset: Dataset, tmp_path: Path) -> Make:
    def make(home: str = "home", **overrides: Any) -> Rounds:
        given = {**PRIVATE, **SGD, "noising": noising(), "hidden_size": 32} | overrides
        return rounds_of(small_dataset.folder, tmp_path / home, **given)

    return make


def _moved(rounds: Rounds) -> torch.Tensor:
    """By what a round of SGD of rate 1 moves the model: (sum + noise) / expected users."""
    start = rounds.arrays
    end = rounds.train().arrays
    moved = {name: end[name] - start[name] for name in sorted(start)}
    assert not moved[TABLE][0].any()  # padding's row is nobody's
    return torch.cat([value.flatten() for value in moved.values()]).double()


@pytest.mark.parametrize("against", ["lying", "curious"])
def test_the_sum_has_the_noise_of_those_that_are_in_it(
    rounds: Make, monkeypatch: pytest.MonkeyPatch, against: str
) -> None:
    """At the threshold, 3 of 4, what the ledger charges; with all 4 / 3 times the variance."""
    for lost in ([], [("train", 2)]):
        with monkeypatch.context() as patch:
            lose(patch, *lost)
            noised = _moved(rounds(secure_against=against))
            quiet = _moved(rounds(dp_noise_multiplier=0.0, dp_noise_on="server", noising=None))
        # The quiet round's sum is of another draw: it is small beside the noise.
        assert float(quiet.std()) < 0.2 * float(noised.std())
        expected = STD / (FRACTION * USERS) * ((4 - len(lost)) / 3) ** 0.5
        assert float(noised.std()) == pytest.approx(expected, rel=0.05)


def test_noise_is_the_sites_own_and_of_a_round_as_it_was(rounds: Make, tmp_path: Path) -> None:
    """Not of the run's seed, nor of anything that the server knows."""
    first, again, elsewhere = (rounds(home) for home in ("home", "home", "elsewhere"))
    ends = [asked.train().arrays for asked in (first, again, elsewhere)]
    assert differ(ends[0], ends[1]) == 0.0  # another session, other masks
    assert _noise_apart(ends[0], ends[2])
    other = rounds(noising=noising(b"o" * 32)).train().arrays  # another stage's draw
    assert _noise_apart(ends[0], other)
    kept = list((tmp_path / "home" / "noise").iterdir())
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600] * 4


def _noise_apart(one: Arrays, other: Arrays) -> bool:
    """Whether the noise is independent: the difference has twice the variance."""
    name = "item_embedding.weight"
    apart = (one[name] - other[name])[1:].double().std()
    return bool(apart > 1.3 * (4 / 3) ** 0.5 * STD / (FRACTION * USERS))


def test_a_server_that_asks_for_a_round_from_other_arrays_gets_other_noise() -> None:
    """A number that is changed in its last bit has another share of noise on all numbers."""
    noise, clip = SiteNoise(50.0, b"k" * 32), 1.0
    values = torch.zeros(4000)
    one = LocalUpdate({"a": values}, 1.0, 0.0, 0, 1)
    other = replace(one, arrays={"a": values.index_fill(0, torch.tensor([7]), 1e-30)})
    words = [packed(update, clip, 2.0**10, noise)[:-1].view("i4") for update in (one, one, other)]
    assert (words[0] == words[1]).all()
    assert (words[0] - words[2]).std() == pytest.approx(50 * 2**0.5, rel=0.05)
    assert packed(one, clip, 2.0**10, noise)[-1] == 1  # nothing is added to the participants


def test_a_plan_that_clips_to_another_norm_is_refused(
    rounds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rounds()
    settings = replace(asked.asking._strategy.settings, dp_clip_norm=5.0)
    monkeypatch.setattr(asked.asking._strategy, "settings", settings)
    with pytest.raises(RoundError, match="clipped to another norm than its noise is for"):
        asked.train()


def test_a_grid_on_which_noise_is_none_is_refused(
    rounds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lies about the scale."""
    seen: list[Message] = []
    original = InProcessGrid._handle

    def handle(self: InProcessGrid, message: Message) -> Message:
        if message.metadata.message_type == "train":
            message.content.config_records["secure"]["scale"] = 2.0**-10
            seen.append(original(self, message))
            return seen[-1]
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_handle", handle)
    with pytest.raises(RoundError, match="too few nodes answered"):
        rounds().train()
    with pytest.raises(NodeError, match="a share of the noise is no noise"):
        messages.check_reply(seen[0])


def test_the_sum_and_its_noise_fit() -> None:
    for users, std in ((6040, 1.6), (3, 1e4), (10**6, 0.1)):
        scale = update_scale(0.6, users, 10, std)
        most = (users * 0.6 * 1.001 + TAIL * std) * scale + 10
        assert 2**30 - 11 < most <= 2**31


def test_a_nonsense_sum_is_still_found(rounds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = client_secure.packed

    def spoilt(*args: Any) -> Any:
        words = original(*args)
        words[:500] += 2**26
        return words

    monkeypatch.setattr(client_secure, "packed", spoilt)
    with pytest.raises(RoundError, match=r"nonsense.*norm beyond"):
        rounds().train()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"aggregation": "mean"}, "sums of which nobody sees.*'aggregation'; expected secure"),
        ({"dp-noise-multiplier": 0.0}, "no node draws any.*'dp-noise-multiplier'"),
        ({"dp-noise-on": "nodes"}, "'dp-noise-on'; expected server or secure"),
        ({"dp-clip-norm": 0.0}, "'dp-clip-norm'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    fits = DEFAULTS | {key.replace("_", "-"): value for key, value in PRIVATE.items()}
    fits["stage"] = 1
    assert parse_settings(fits).shares_noise
    with pytest.raises(ConfigError, match=match) as raised:
        parse_settings(fits | change)
    assert "\n" not in str(raised.value)


def test_too_many_users_for_so_little_noise_are_refused() -> None:
    """Before anything starts."""
    node = NodeReport("a", 0, 4, 2000, 90000, 9, 0, "0", "", "", "{}", 0, 0, "", 2000)
    config = DEFAULTS | {key.replace("_", "-"): value for key, value in PRIVATE.items()}
    config |= {"stage": 1, "dp-noise-multiplier": 0.1}

    def census(users: int) -> Census:
        return Census({i: replace(node, name=f"{i}", users=users) for i in range(64)})

    require_shares(parse_settings(config), census(2000))
    with pytest.raises(ConfigError, match=r"32 bits hold no sum.*8 units.*64 nodes"):
        require_shares(parse_settings(config), census(200_000))
    bare = {key.replace("_", "-"): value for key, value in SECURE.items()}
    require_shares(parse_settings(DEFAULTS | bare), census(200_000))
