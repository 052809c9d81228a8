"""A round's sum under differential privacy: bounded, noised, over a fixed number of users.

DP-FedAvg with a fixed denominator, McMahan et al., "Learning Differentially Private Recurrent
Language Models" (ICLR 2018), estimator (i) of section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from server_app.aggregation.aggregate import RoundUpdate, noise_norm, require_norm
from server_app.privacy.releases import Ledger
from server_app.record.schema import Release
from shared_model.model.recommender import Arrays
from shared_model.model.sasrec import PAD
from shared_model.protocol.config import Settings
from shared_model.protocol.gaussian import array_noise, derive
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import LocalUpdate
from shared_model.secure.use import threshold_of
from shared_model.stages import TABLE


@dataclass(frozen=True)
class Noising:
    """The noise of one stage, a function of its training's secret and a round.

    And of who was absent, by name and data: the same round of other users gets other noise, or
    their difference would be a node's sum without any.
    """

    key: bytes
    clip_norm: float
    std: float  # of the noise on a round's sum
    users: int  # of all nodes
    fraction: float
    noise_on: str  # who draws it: server, nodes, or secure (each site its share of a secure sum)
    nodes: int = 0  # that draw it, if the server does not
    threshold: int = 0  # the fewest sites of a secure sum, which then has ``std``

    @property
    def on_nodes(self) -> bool:
        """Whether each node's own sum is noised."""
        return self.noise_on == "nodes"

    @property
    def in_sums(self) -> bool:
        """Whether secure sums come out with noise in them."""
        return self.noise_on == "secure"

    def plan(self, round_: int) -> dict[str, Any]:
        """What a round plan says under differential privacy.

        ``draw`` is not public: sampling hides a user only from those who do not know the sample.
        """
        return {
            "draw": derive(self.key, "participation", round_).hex(),
            "noise_std": self.std if self.on_nodes else 0.0,
            "total_users": self.users,
        }

    def check(self, update: LocalUpdate, node: NodeReport) -> None:
        """``NodeError`` if a node's sum is more than its participants can make it.

        No comparison with other nodes: who is left out must not depend on what others sent.
        """
        noise = 0.0
        if self.on_nodes:
            numbers = sum(value.numel() for value in update.arrays.values())
            share = self.std * math.sqrt(node.users / self.users)
            noise = noise_norm(share, numbers)
        require_norm(update, update.participants * self.clip_norm, noise)

    def release(self, round_: int, absent: Sequence[NodeReport]) -> Release:
        """What the ledger says of a round. ``noise`` names its noise, of which it tells nothing.

        Sites do not know who will be absent when they add their share: it is the round's, and a
        sum has those of all who are in it.
        """
        key = self._round_key(round_, () if self.in_sums else absent)
        names = [node.name for node in absent]
        release: Release = {
            "round": round_,
            "absent": names,
            "noise": derive(key, "fingerprint").hex(),
        }
        if self.in_sums:
            shares = (self.nodes - len(names)) / self.threshold
            release["multiplier"] = self.std / self.clip_norm * math.sqrt(shares)
        return release

    def mean(
        self,
        updates: Sequence[LocalUpdate],
        arrays: Arrays,
        round_: int,
        absent: Sequence[NodeReport],
    ) -> RoundUpdate:
        """The round's update, shaped like ``arrays``, float32: (sum + noise) / expected users.

        Of no users, too: that nobody took part is nobody's business. Float64, in the order given.
        """
        key, delta = self._round_key(round_, absent), {}
        for name, like in arrays.items():
            total = torch.zeros_like(like, dtype=torch.float64)
            for update in updates:
                total += update.arrays[name]
            if self.noise_on == "server":
                total += array_noise(key, name, like.shape, self.std)
            if self.in_sums and name == TABLE:
                total[PAD] = 0.0  # nobody's: it is as it was, whatever noise came out on it
            delta[name] = (total / (self.fraction * self.users)).float()
        return RoundUpdate(delta, 0.0, 0, sum(update.participants for update in updates), {})

    def _round_key(self, round_: int, absent: Sequence[NodeReport]) -> bytes:
        who = [text for node in absent for text in (node.name, node.history_digest)]
        return derive(self.key, "noise", round_, *who)


def noising_of(settings: Settings, ledger: Ledger, stage: int) -> Noising:
    """The noise of a stage whose ledger is open."""
    nodes = len(ledger.record["nodes"])
    threshold = threshold_of(settings.secure_threshold, nodes) if settings.shares_noise else 0
    return Noising(
        key=derive(ledger.secret, "stage", stage, int(ledger.record["attempt"])),
        clip_norm=settings.dp_clip_norm,
        std=settings.noise_std,
        users=int(ledger.record["users"]),
        fraction=settings.fraction_train,
        noise_on=settings.dp_noise_on,
        nodes=nodes,
        threshold=threshold,
    )
