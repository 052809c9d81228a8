"""Who turns the wrong way, where losses are known: quadratic bowls, with noise."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from server_app.aggregation.turning import ROUNDS, Turning
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import TABLE

SHAPE = (30, 20)


def as_update(mean: Tensor, weight: float = 10.0) -> LocalUpdate:
    return LocalUpdate({"w": weight * mean, "b": torch.randn(1)}, weight, 0.0, 10, 10)


@dataclass
class World:
    """Nodes whose users want the model at different places; the server takes the mean."""

    nodes: int = 6
    apart: float = 1.0  # how far the last one's users are from all others'
    noise: float = 3.0
    few: float = 1.0  # times the noise of the first node, of so many users less
    signs: Callable[[int], float] = lambda round_: 1.0  # of node 1's update
    heeds: bool = True  # leaves out who is wrong
    turning: Turning = field(default_factory=Turning.begin)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(3)
        middle = torch.randn(SHAPE, generator=self.random)
        own = torch.randn(self.nodes, *SHAPE, generator=self.random) * 0.3
        self.wanted = middle + own
        self.wanted[-1] = middle + own[-1] - self.apart * 2 * middle
        self.model = torch.zeros(SHAPE)
        self.wrong: list[set[str]] = []
        self.cosines: list[float] = []  # of the last node with the others' sum

    def round(self, number: int) -> None:
        drawn = torch.randn(self.nodes, *SHAPE, generator=self.random)
        drawn[0] *= self.few
        sent = 0.2 * (self.wanted - self.model) + 0.1 * self.noise * drawn
        others = sent[:-1].sum(0)
        self.cosines.append(float((sent[-1] * others).sum() / sent[-1].norm() / others.norm()))
        sent[1] *= self.signs(number)
        weights = torch.full((self.nodes,), 100.0)
        weights[0] /= self.few**2
        wrong = set(self.turning.wrong)
        self.wrong.append(wrong)
        updates = {
            str(n): as_update(*one)
            for n, one in enumerate(zip(sent, weights.tolist(), strict=True))
        }
        after = self.turning.after(updates, 0)
        for node in wrong if self.heeds else ():
            weights[int(node)] = 0.0
        new = self.model + torch.tensordot(weights / weights.sum(), sent, dims=1)
        self.turning = after.moved({"w": self.model}, {"w": new}, None)
        self.model = new

    def run(self, rounds: int) -> "World":
        for number in range(rounds):
            self.round(number)
        return self


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0])
def test_no_honest_node_turns_the_wrong_way(apart: float) -> None:
    """However different its users are, also where it pulls against all others."""
    world = World(apart=apart).run(120)
    assert not any(world.wrong)
    if apart:
        assert sum(world.cosines[60:]) / 60 < -0.1  # a direction alone would accuse it


def test_a_node_of_few_users_is_no_liar() -> None:
    """Nearly all that it sends is noise: the cosine of its turns is a tenth of the others'."""
    assert not any(World(few=10.0).run(120).wrong)


def test_who_sends_the_opposite_is_found_and_returns_once_it_is_mended() -> None:
    world = World(signs=lambda number: -1.0 if 5 <= number < 90 else 1.0).run(160)
    found = [number for number, wrong in enumerate(world.wrong) if "1" in wrong]
    assert ROUNDS <= found[0] < 60
    assert 90 <= found[-1] < 150
    assert found == list(range(found[0], found[-1] + 1))
    assert set().union(*world.wrong) == {"1"}


def test_the_model_without_the_liar_is_where_the_others_want_it() -> None:
    def off(world: World) -> float:
        honest = torch.cat([world.wanted[:1], world.wanted[2:]]).mean(0)
        return float((world.model - honest).norm())

    flips = World(noise=0.3, signs=lambda number: -1.0).run(80)
    heedless = World(noise=0.3, signs=lambda number: -1.0, heeds=False).run(80)
    assert off(flips) < 0.3 * off(heedless)


def test_length_does_not_count() -> None:
    flips = World(signs=lambda number: -1.0).run(60)
    longer = World(signs=lambda number: -1.0).run(20)
    longer.signs = lambda number: -9.0
    longer.heeds = False
    longer.run(40)
    assert "1" in flips.turning.wrong
    assert "1" in longer.turning.wrong


def test_who_is_out_stays_so_while_nobody_can_be_judged() -> None:
    world = World(signs=lambda number: -1.0).run(60)
    assert set(world.turning.wrong) == {"1"}
    still = Turning(
        {n: replace(c, turns=c.turns * 0) for n, c in world.turning.nodes.items()},
        world.turning.model,
    )
    assert not still.standing
    assert set(still.after({}, 0).wrong) == {"1"}


def test_of_two_nodes_nobody_is_judged() -> None:
    assert not World(nodes=2, apart=0.0, signs=lambda number: -1.0).run(100).turning.standing


def test_what_is_kept_goes_on_as_before() -> None:
    """Through a checkpoint in the middle, to the bit."""
    whole = World(signs=lambda number: -1.0).run(50)
    cut = World(signs=lambda number: -1.0).run(25)
    cut.turning = Turning.of_arrays({n: a.clone() for n, a in cut.turning.arrays().items()})
    cut.run(25)
    assert cut.wrong == whole.wrong
    for name, array in whole.turning.arrays().items():
        assert torch.equal(cut.turning.arrays()[name].nan_to_num(), array.nan_to_num())
    assert not Turning.of_arrays({}).nodes


def test_a_node_is_passed_by_in_rounds_without_participants() -> None:
    nothing = LocalUpdate({"w": torch.zeros(SHAPE)}, 0.0, 0.0, 0, 0)
    something = as_update(torch.randn(SHAPE))
    turning = Turning.begin().after({"a": something, "b": nothing}, 0)
    assert set(turning.nodes) == {"a"}
    again = turning.after({"a": nothing}, 0)
    assert again.nodes["a"] is turning.nodes["a"]


def test_rows_of_a_table_count_as_the_table_with_zeros() -> None:
    rows, random = torch.tensor([2, 5, 9], dtype=torch.int32), torch.Generator().manual_seed(0)
    some, dense = Turning.begin(), Turning.begin()
    table: Arrays = {TABLE: torch.zeros(12, 8)}
    for _ in range(4):
        part = torch.randn(3, 8, generator=random)
        spread = torch.zeros(12, 8).index_copy_(0, rows.long(), part)
        of_rows = LocalUpdate({TABLE: part}, 1.0, 0.0, 1, 1, {}, rows)
        whole = LocalUpdate({TABLE: spread}, 1.0, 0.0, 1, 1, {})
        new = {TABLE: table[TABLE] + spread}
        some = some.after({"a": of_rows}, 12).moved(table, new, rows.long())
        dense = dense.after({"a": whole}, 12).moved(table, new, None)
        table = new
    for name, array in dense.arrays().items():
        found = some.arrays()[name].double()
        assert torch.allclose(found, array.double(), atol=1e-5, equal_nan=True), name
