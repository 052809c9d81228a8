"""Attack 3: users who want everyone to be shown one item.

Malicious users join a federation that already has a model, and stay for some rounds. Either their
nodes are honest, and train those that are drawn into a round on made-up histories, or their node is
theirs, and answers every round with crafted updates (audit_poison.py).

Measured is the exposure of the target (ER@10, Zhang et al., "PipAttack", WSDM 2022): the share of
honest users who never met it and have it among the first ten of what they have not met.

Letters: N users, B of a batch, I items.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from client_app.data.dataset import Dataset, Ints, membership, pad_batch
from client_app.data.split import train_places
from client_app.evaluation.cases import warm_candidates
from feddmmr.audit.poison import (
    HONEST,
    MALICIOUS,
    Crafter,
    CraftingGrid,
    made_up_histories,
    random_inputs,
    write_site,
)
from feddmmr.audit.run import STAGE, AuditedRun
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import Census, take_census
from server_app.privacy.mechanism import Noising
from server_app.rounds.exchange import Asking
from server_app.rounds.strategy import StageStrategy
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import Arrays, Recommender
from shared_model.protocol.config import Settings, Value, parse_settings
from shared_model.protocol.gaussian import derive
from shared_model.seeds import rng

SHARES = (0.01, 0.05)  # of the honest users
KINDS = (MADE_UP, CRAFTED) = ("made-up histories", "crafted updates")
PROMOTION = "promotion"  # what the progress calls it
TOP = 10
_LONGEST = 200  # interactions that a malicious user makes up
_BATCH = 64


def promotion_attack(
    run: AuditedRun, defences: dict[str, dict[str, Value]], rounds: int
) -> list[dict[str, Any]]:
    """Both kinds of attack by both shares of users, on the run's twin under each defence."""
    target = unpopular_item(run.dataset, run.settings.seed)
    models = {name: run.twin(name, overrides).arrays for name, overrides in defences.items()}
    chance = TOP / int(warm_candidates(run.dataset).sum())
    facts = {"attack": PROMOTION, "metric": f"ER@{TOP}", "chance": chance, "target": target}
    before = {name: exposure(run.model(a), run.dataset, target) for name, a in models.items()}
    table = [facts | {"case": "before"} | before]
    for share in SHARES:
        users = max(1, round(share * run.dataset.num_users))
        for kind in KINDS:
            attack = Promotion(run, target, users, kind, rounds)
            after = {
                name: exposure(
                    run.model(attack.poisoned(models[name], overrides)), run.dataset, target
                )
                for name, overrides in defences.items()
            }
            table.append(facts | {"case": f"{kind}, {users} users", "rounds": rounds} | after)
    return table


@dataclass(frozen=True)
class Promotion:
    """One attack: who promotes what, how, and for how many rounds."""

    run: AuditedRun
    target: int
    users: int
    kind: str
    rounds: int

    def poisoned(self, arrays: Arrays, overrides: dict[str, Value]) -> Arrays:
        """The arrays after the attack's rounds under a defence, at the stage's own full rate."""
        config = self.run.config | overrides | self._further()
        settings, grid = parse_settings(config), self._grid(config)
        with self.run.log():
            census = take_census(grid, settings)
            strategy = StageStrategy(
                STAGE,
                settings,
                census,
                ServerOptimizer(settings.server_optimizer),
                noising=self._noising(settings, census),
                dense=True,  # malicious nodes see, and answer with, the whole table
            )
            asking = Asking(grid, strategy)
            for round_ in range(self._done + 1, self._done + self.rounds + 1):
                arrays = asking.train(round_, arrays).arrays
                self.run.progress.step(PROMOTION)
        return arrays

    @property
    def _done(self) -> int:
        """The run's last round: those of the attack draw other participants."""
        return int(self.run.released.record["rounds"][-1]["round"])

    def _further(self) -> dict[str, Value]:
        return {
            "home": str(self.run.work),
            "dataset": str(self.run.dataset.folder),
            "num-rounds": self._done + self.rounds,
            "server-schedule": "constant",
            "dp-noise-on": "server",
            "wire-dtype": "float32",
        }

    def _noising(self, settings: Settings, census: Census) -> Noising | None:
        if not settings.private:
            return None
        return Noising(
            key=derive(self.run.noise_key, "promotion", self.kind, self.users),
            clip_norm=settings.dp_clip_norm,
            std=settings.noise_std,
            users=int(census.dataset()["users"]),
            fraction=settings.fraction_train,
            noise_on="server",
        )

    def _grid(self, config: dict[str, Value]) -> InProcessGrid:
        """One node of all honest users, and one of the malicious ones."""
        dataset, settings = self.run.dataset, parse_settings(config)
        others = np.flatnonzero(dataset.warm)
        pool = others[others != self.target]
        length, seed = min(settings.max_length, _LONGEST), settings.seed
        histories = made_up_histories(pool, self.target, self.users, length, seed)
        site = write_site(self.run.work, dataset, histories)
        nodes: list[dict[str, Value]] = [
            {"data-dir": str(dataset.folder), "name": HONEST},
            {"data-dir": str(site), "name": MALICIOUS},
        ]
        if self.kind == MADE_UP:
            return InProcessGrid(nodes, config)
        inputs = random_inputs(pool, length, seed).to(settings.device)
        crafter = Crafter(settings, self.run.model(), self.target, self.users, inputs)
        return CraftingGrid(nodes, config, crafter)


def train_counts(dataset: Dataset) -> Ints:
    """How often each item is trained on, over all users. int64 [I + 1]"""
    train = dataset.items[train_places(dataset.indptr)]
    counts: Ints = np.bincount(train, minlength=dataset.num_items + 1)
    return counts


def unpopular_item(dataset: Dataset, seed: int) -> int:
    """A warm item that is trained on least, but at all; by hash among equals."""
    counts = train_counts(dataset)
    rarest = np.flatnonzero(counts == counts[counts > 0].min())
    return int(rng(seed, "promoted").choice(rarest))


@torch.no_grad()
def exposure(model: Recommender, dataset: Dataset, target: int) -> float:
    """ER@10: share of the users without the target that have it in their first ten. Ties: not."""
    device = model.item_embedding.weight.device
    candidates = warm_candidates(dataset)
    shown = counted = 0
    for start in range(0, dataset.num_users, _BATCH):
        rows = np.arange(start, min(start + _BATCH, dataset.num_users))
        met = torch.from_numpy(membership(dataset, rows, dataset.lengths(rows)))  # [B, I + 1]
        inputs, _ = pad_batch(dataset, rows, "test", model.shape.max_length)
        hidden = model(torch.from_numpy(inputs).to(device), Dropout())[:, -1]
        scores = model.score(hidden).cpu()
        ahead = (scores >= scores[:, target, None]) & candidates & ~met
        ahead[:, target] = False
        without = ~met[:, target]
        shown += int((ahead.sum(1)[without] < TOP).sum())
        counted += int(without.sum())
    return shown / max(1, counted)
