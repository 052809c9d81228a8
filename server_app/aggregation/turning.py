"""A node that sends the opposite of what it learned, told from one whose users are just different.

An honest update is, on average, the negative gradient of the node's own loss. Where the model has
moved by d since, that gradient has changed by H d (H: the loss's Hessian), so the update by -H d,
and <change, d> is below 0 wherever the loss curves upwards along the way: the node turns against
the way. That holds whatever its users like, near a minimum, too, where honest nodes pull against
one another. Of an update with the other sign it is above 0. A round says little, 20 of them much.
(Zhang et al., "FLDetector", KDD 2022, predict each client's next update by an estimate
of the Hessian, and suspect whose differs; here the sign along the way taken is enough.)

Lengths do not count: they have a limit of their own (``robust.py``). Nor do single numbers: what a
few users bring about one of them can have most of an update's norm. docs/faults.md measures it.
Letters: P nodes, W rounds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from server_app.aggregation.sketch import BUCKETS, sketch
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import TABLE

ROUNDS = 20  # W: that many of a node's are judged together, never fewer
_FORGET = 0.1  # of what was before, each round: changes are from some ten rounds ago
ENOUGH = 3  # nodes: of two that turn otherwise nobody can say which is wrong
HONEST = 0.25  # of the usual turn: who turns less, or the other way, and surely so, is out
_CLEARED = 0.5  # of it: who is out, and turns so much, is in again
_SURE = 5.0  # standard errors


@dataclass(frozen=True)
class Course:
    """What is remembered of a node, between rounds that it took part in."""

    update: Tensor  # [BUCKETS] mean of its updates, each a mean over its users
    model: Tensor  # [BUCKETS] where the model was, on average over the same rounds
    turns: Tensor  # [<= W] its last ones: how far updates changed along the model's way
    rounds: int = 1
    wrong: float = math.nan  # the share of the usual turn for which it is out; or it is in

    def change(self, update: Tensor, model: Tensor) -> tuple[float, float]:
        """From what is remembered to another update, of the model as it was then: its length, and
        how far it goes along the way that the model went since."""
        changed, way = update - self.update, model - self.model
        length = float(way.norm())
        return float(changed.norm()), float(changed @ way) / length if length else 0.0

    def after(self, update: Tensor, model: Tensor, turn: float) -> "Course":
        """With another round's."""
        share = max(_FORGET, 1 / (self.rounds + 1))
        return replace(
            self,
            update=self.update + share * (update - self.update),
            model=self.model + share * (model - self.model),
            turns=torch.cat([self.turns, self.turns.new_tensor([turn])])[-ROUNDS:],
            rounds=self.rounds + 1,
        )

    def judged(self, found: "Standing") -> "Course":
        """Out, in again, or as it was."""
        if found.share < HONEST and found.errors > _SURE:
            return replace(self, wrong=found.share)
        return replace(self, wrong=math.nan) if found.share >= _CLEARED else self


class Standing(NamedTuple):
    """A node's mean turn beside the usual one, which is the nodes' median."""

    share: float  # of the usual one
    errors: float  # of its own standard errors from there, towards the wrong way


@dataclass(frozen=True)
class Turning:
    """The courses of nodes by name, and where the model is: all since a stage began."""

    nodes: Mapping[str, Course]
    model: Tensor

    @classmethod
    def begin(cls) -> "Turning":
        """Nothing is known of anybody."""
        return cls({}, torch.zeros(BUCKETS, dtype=torch.float64))

    def after(self, updates: Mapping[str, LocalUpdate], items: int) -> "Turning":
        """With a round's updates by the model as it is; whoever had no participant is passed by."""
        means = {
            name: sketch(_matrices(update.arrays), update.rows, items) / update.weight
            for name, update in updates.items()
            if update.weight
        }
        changes = {
            name: self.nodes[name].change(mean, self.model)
            for name, mean in means.items()
            if name in self.nodes
        }
        # One scale for all: of few users' mean, most is noise, and so it would be of a cosine.
        scale = float(np.median([length for length, _ in changes.values()])) if changes else 0.0
        nodes = dict(self.nodes)
        for name, mean in means.items():
            if name in changes:
                turn = changes[name][1] / scale if scale else 0.0
                nodes[name] = nodes[name].after(mean, self.model, turn)
            else:
                nodes[name] = Course(mean, self.model, mean.new_zeros(0))
        after = replace(self, nodes=nodes)
        judged = {name: nodes[name].judged(found) for name, found in after.standing.items()}
        return replace(after, nodes=nodes | judged)

    def moved(self, old: Arrays, new: Arrays, rows: Tensor | None) -> "Turning":
        """After a server optimizer's step, of ``rows`` [U] of the item table alone if there are."""
        before, after = _matrices(old), _matrices(new)
        if rows is not None:
            before |= {TABLE: before[TABLE][rows]}
            after |= {TABLE: after[TABLE][rows]}
        step = {name: after[name] - before[name] for name in after}
        items = len(new[TABLE]) if TABLE in new else 0
        return replace(self, model=self.model + sketch(step, rows, items))

    def arrays(self) -> Arrays:
        """All that is known, as a checkpoint holds it."""
        held = {"model": self.model}
        for name, course in self.nodes.items():
            held[f"update/{name}"], held[f"turns/{name}"] = course.update, course.turns
            held[f"model/{name}"] = course.model.clone()  # several may have one, which no file may
            held[f"rounds/{name}"] = torch.tensor(course.rounds)
            held[f"wrong/{name}"] = torch.tensor(course.wrong, dtype=torch.float64)
        return held

    @classmethod
    def of_arrays(cls, held: Arrays) -> "Turning":
        """The reverse; of nothing, ``begin``."""
        names = [key.removeprefix("rounds/") for key in held if key.startswith("rounds/")]
        nodes = {
            name: Course(
                held[f"update/{name}"],
                held[f"model/{name}"],
                held[f"turns/{name}"],
                int(held[f"rounds/{name}"]),
                float(held[f"wrong/{name}"]),
            )
            for name in names
        }
        return cls(nodes, held["model"]) if held else cls.begin()

    @cached_property
    def standing(self) -> dict[str, Standing]:
        """Of the nodes whose turns are known for long enough; of none while they hardly turn, or
        are too few: then there is nothing to compare with."""
        known = {n: c.turns.numpy() for n, c in self.nodes.items() if len(c.turns) == ROUNDS}
        if len(known) < ENOUGH:
            return {}
        turns = np.array(list(known.values()))  # [P, W]
        means = turns.mean(1)
        usual = float(np.median(means))
        errors = turns.std(1, ddof=1) / ROUNDS**0.5
        if usual >= -_SURE * float(np.median(errors)):
            return {}
        return {
            name: Standing(float(mean / usual), float((mean - usual) / error) if error else 0.0)
            for name, mean, error in zip(known, means, errors, strict=True)
        }

    @property
    def wrong(self) -> dict[str, float]:
        """Who is out, and for what share of the usual turn; as the last judgement had it."""
        return {n: course.wrong for n, course in self.nodes.items() if not math.isnan(course.wrong)}


def _matrices(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if array.dim() > 1}
