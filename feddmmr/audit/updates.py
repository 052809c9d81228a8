"""What is seen of a node's answer: the update of chosen users, under each defence.

Letters: U users of a cohort, W warm items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from client_app.data.dataset import Dataset, Rows
from client_app.training.clipping import with_noise
from client_app.training.train import Mixing, train_round
from feddmmr.audit.defences import CLIPPING, NOISE, UNDEFENDED, Privacy
from feddmmr.audit.scores import Bools, Floats
from shared_model.model.recommender import Arrays, Recommender
from shared_model.protocol.config import Settings
from shared_model.protocol.plan import LocalUpdate, RoundPlan
from shared_model.seeds import rng

SHARE, ALONE = "noise share", "noise alone"
SEEN = (UNDEFENDED, CLIPPING, NOISE, SHARE)
VIEWS = (*SEEN, ALONE)
SHADOWS = 20  # made-up users
Score = Callable[[Arrays], dict[str, Floats]]  # of what is seen: [W] by the score's name


@dataclass(frozen=True)
class Attacker:
    """Who knows the model of a round, and sees what a node answers."""

    dataset: Dataset
    settings: Settings  # of the stage
    privacy: Privacy
    secret: bytes  # of the noise
    model: Recommender
    names: tuple[str, ...]  # of the arrays that are looked at
    mixing: Mixing | None = None  # in Stages 2 and 3

    @property
    def warm(self) -> Rows:
        """The items that can be trained on. [W]"""
        items: Rows = np.flatnonzero(self.dataset.warm)
        return items

    def views(self, rows: Rows) -> dict[str, Arrays]:
        """What is seen of the sum of users ``rows`` [U], by defence.

        "clipping + noise" has the noise of a whole round, as if nobody else had taken part;
        "noise share" a node's part of it, as nodes that draw it send it; "noise alone" no update.
        """
        everyone = self.dataset.num_users
        plain = self.trained(rows, self.plan(self.settings.weighting))
        plan = replace(
            self.plan("uniform"),
            clip_norm=self.privacy.clip_norm,
            noise_std=self.privacy.clip_norm * self.privacy.multiplier,
            total_users=everyone,
            draw=f"audit {self.dataset.user_keys[rows[0]]} of {len(rows)}",
        )
        clipped = self.trained(rows, replace(plan, draw=""))
        zeros = {name: torch.zeros_like(array) for name, array in clipped.arrays.items()}
        seen = {
            UNDEFENDED: plain,
            CLIPPING: clipped,
            NOISE: with_noise(clipped, plan, self.secret, everyone),
            SHARE: with_noise(clipped, plan, self.secret, len(rows)),
            ALONE: with_noise(replace(clipped, arrays=zeros), plan, self.secret, everyone),
        }
        return {view: update.arrays for view, update in seen.items()}

    def met(self, rows: Rows) -> Bools:
        """Which warm items users ``rows`` trained on, as targets or inputs. [W]"""
        ends, most = self.dataset.indptr[rows + 1] - 2, self.settings.max_length + 1
        starts = np.maximum(self.dataset.indptr[rows], ends - most)
        histories = [self.dataset.items[start:end] for start, end in zip(starts, ends, strict=True)]
        found: Bools = np.isin(self.warm, np.concatenate(histories))
        return found

    def shadows(self) -> Iterator[tuple[Arrays, Bools]]:
        """What is seen of each of the ``dataset``'s users alone, and which items it met [W]: for an
        attacker on users that it made up."""
        for row in range(self.dataset.num_users):
            rows = np.array([row])
            update = self.trained(rows, self.plan("uniform"))
            yield update.arrays, self.met(rows)

    def trained(self, rows: Rows, plan: RoundPlan) -> LocalUpdate:
        """What a node answers, of the arrays that are looked at."""
        size = self.settings.users_per_batch
        update = train_round(self.model, self.dataset, rows, plan, size, self.mixing)
        return replace(update, arrays={name: update.arrays[name].cpu() for name in self.names})

    def plan(self, weighting: str) -> RoundPlan:
        """Round 1 of everyone who is asked, undefended."""
        plan = self.settings.round_plan(self.model.stage.number, 1)
        return replace(plan, fraction=1.0, weighting=weighting, clip_norm=0.0)


def made_up_users(dataset: Dataset, warm: Rows, seed: int) -> Dataset:
    """SHADOWS users of the usual length, whose items are drawn uniformly and never twice."""
    usual = int(np.median(np.diff(dataset.indptr)))
    length = max(4, min(usual, len(warm) // 2))
    histories = [rng(seed, "shadow", n).permutation(warm)[:length] for n in range(SHADOWS)]
    return replace(
        dataset,
        user_keys=np.arange(SHADOWS, dtype=np.uint64),
        indptr=np.arange(SHADOWS + 1, dtype=np.int64) * length,
        items=np.concatenate(histories).astype(np.int32),
        cold_target=np.zeros(SHADOWS, np.int32),
        cold_length=np.zeros(SHADOWS, np.int32),
    )
