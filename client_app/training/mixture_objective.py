"""What Stages 2 and 3 train: sampled next-item loss, alignment of content, balance of the router.

Letters: B users of a batch, T input positions, P of them trained, N candidates of a user (its
targets and the sample of ``sampled_softmax.py``), L items of its memory bank, D hidden size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from client_app.data.dataset import Dataset, Ints, Rows, pad_batch
from client_app.memory.cache import Recall
from client_app.training.losses import Descent
from client_app.training.mixture_forward import MixtureForward
from client_app.training.objective import Batch, Losses, aggregation_weights, descend, learned_by
from client_app.training.sampled_softmax import among_targets, draw_sample, next_item_loss
from client_app.training.shared_maps import SharedMaps, worth_sharing
from shared_model.device import on_device
from shared_model.memory.memory import EMPTY
from shared_model.model.matmul import rounded
from shared_model.model.recommender import Arrays, Recommender
from shared_model.model.router import entropy, load_balance
from shared_model.model.sasrec import PAD
from shared_model.protocol.plan import MEMORY_LOGS, MixturePlan, RoundPlan
from shared_model.seeds import STRIDE, stable_hash, uniform

_SHORTEST = 0.1  # a content vector, in cosines: heads start at zero, where these have no slope


class MixtureObjective:
    """Stages 2 and 3. Whatever is sampled is a hash of user, stage and round (invariant 1)."""

    def __init__(
        self,
        model: Recommender,
        dataset: Dataset,
        plan: RoundPlan,
        mixing: MixturePlan,
        recall: Recall,
    ) -> None:
        self.model, self.dataset, self.plan, self.mixing = model, dataset, plan, mixing
        self.learned = learned_by(model)
        self.recall, self.content = recall, recall.content
        self.settings = recall.settings(mixing)
        self.device = model.item_embedding.weight.device
        rate = plan.dropout if "backbone" in model.stage.trained else 0.0
        self.forward = MixtureForward(model, recall.content, rate, mixing.content_dropout)
        self.shared: SharedMaps | None = None
        self._as_cold = self._dropped_ids()
        self.as_cold = torch.from_numpy(self._as_cold).to(self.device)

    def foresee(self, rows: Rows) -> None:
        """Memories of the whole training histories; a batch then takes its part."""
        self.recall.foresee(self.model, rows, self.dataset.train_lengths(rows), self.settings)

    def share(self, batches: int) -> None:
        """Maps of the whole catalogue, if they serve enough batches."""
        whole = self.forward.whole()
        if whole is not None and worth_sharing(len(whole[0]), batches, self.device.type):
            self.shared = SharedMaps(self.model.mix().item_maps(*whole))
            self.forward.made = self.shared.maps

    def settle(self, descents: Sequence[Descent]) -> None:
        """The gradient of these maps."""
        if self.shared is not None:
            self.shared.settle(self.learned, descents)
            self.shared = self.forward.made = None

    def seen(self, rows: Rows) -> Ints:
        """Whatever may be remembered."""
        return self.dataset.train_lengths(rows)

    def batch(self, rows: Rows) -> Batch:
        """Inputs, drawn targets, what they compete with, and what the memory holds at each."""
        inputs, targets = self._padded(rows)
        columns, real = self._trained_positions(rows, targets)
        lengths = self.dataset.train_lengths(rows)
        places = (lengths - targets.shape[1])[:, None] + columns  # of the targets in the history
        chosen = np.where(real, np.take_along_axis(targets, columns, 1), PAD)
        seeds = self._hash("negatives"), self._hash("own")
        sample = draw_sample(
            self.dataset, rows, chosen, self._as_cold, seeds, self.mixing.negatives
        )
        # Last, since it waits for what a GPU still does; the rest is prepared meanwhile.
        bank, counts = self.recall.banks(self.model, rows, places, real, self.settings)
        arrays = {
            "inputs": inputs,
            "columns": columns,
            "real": real,
            "candidates": np.concatenate([chosen, sample.items], 1),
            "negative": sample.negative,
            "log_weights": sample.log_weights,
        }
        tensors = {name: on_device(array, self.device) for name, array in arrays.items()}
        tensors |= {"bank": bank.items, "held": bank.held, "memory": counts}
        weights = aggregation_weights(
            on_device((targets != PAD).sum(1), self.device), self.plan.weighting
        )
        return Batch(
            self.dataset.user_keys[rows],
            weights,
            int(real.sum()),
            tensors,
        )

    def _padded(self, rows: Rows) -> tuple[Ints, Ints]:
        """Inputs and targets [B, T], T a number for which products need no padding of their own."""
        longest = self.model.shape.max_length
        parts = pad_batch(self.dataset, rows, "train", longest)
        width = parts[0].shape[1]
        more = min(rounded(width), longest) - width
        inputs, targets = (np.pad(part, ((0, 0), (more, 0)), constant_values=PAD) for part in parts)
        return inputs, targets

    def single_user(self, batch: Batch, user: int) -> Batch:
        """Without padding of the history and of the memory bank."""
        own = {name: tensor[user : user + 1] for name, tensor in batch.tensors.items()}
        cut = int((own["inputs"] == PAD).sum())
        size = max(1, int((own["bank"] != EMPTY).sum()))
        own["inputs"], own["columns"] = own["inputs"][:, cut:], (own["columns"] - cut).clamp(min=0)
        own["bank"], own["held"] = own["bank"][:, :size], own["held"][..., :size]
        return batch.single_user(user, own)

    def weighted(self, batch: Batch, keys: Tensor) -> Losses:
        """The weighted sum of the users' losses, in the model itself."""
        losses = self.per_user_losses(dict(self.model.named_parameters()), batch.tensors, keys)
        return Losses((losses.total * batch.weights).sum(), losses.nats, losses.logs)

    def step(self, batch: Batch, keys: Tensor, descents: Sequence[Descent]) -> Losses:
        """As ``Objective`` says."""
        losses = self.weighted(batch, keys)
        if self.shared is None:
            descend(self.learned, losses.total, descents)
        else:
            self.shared.descend(self.learned, losses.total, descents)
        return losses

    def per_user_losses(self, arrays: Arrays, tensors: Arrays, keys: Tensor) -> Losses:
        """Means over each user's trained positions of the next-item and alignment losses.

        In Stage 3 the router's load-balance loss comes on top.
        """
        plan, real = self.mixing, tensors["real"]
        own = {f"model.{name}": array for name, array in arrays.items()}
        ids, result = functional_call(self.forward, own, (tensors, keys, self.as_cold))
        targets = tensors["candidates"][..., : real.shape[-1]]  # [B, P]
        known = real & ~self.as_cold[targets]
        next_item = next_item_loss(result.scores, targets, known, tensors["log_weights"])  # [B, P]
        described = (result.weights > 0).any(-1)[:, : real.shape[-1]]  # [B, P]
        alignment = described * _alignment_loss(result.content, ids, tensors, plan.temperature)
        weighted = alignment * (1 + plan.surprise_weight * next_item.detach())
        balance = load_balance(result.weights)  # [B]
        total = _mean(next_item, real) + plan.alignment_weight * _mean(weighted, real)
        if "router" in self.model.stage.trained:
            total = total + plan.balance_weight * balance
        listed = (tensors["candidates"] != PAD).sum(-1)  # [B]; padding has weight 0
        padding = tensors["candidates"].shape[-1] / listed
        logs = {
            "alignment": _mean(alignment, real),
            "load_balance": balance,
            "router_visual": result.weights[..., 0].mean(-1) * padding,
            "router_text": result.weights[..., 1].mean(-1) * padding,
            "router_entropy": entropy(result.weights) * padding,
            **dict(zip(MEMORY_LOGS, tensors["memory"].unbind(-1), strict=True)),
        }
        detached = {name: value.detach() for name, value in logs.items()}
        return Losses(total, (next_item * real).sum(1).detach(), detached)

    def _trained_positions(self, rows: Rows, targets: Ints) -> tuple[Ints, np.ndarray]:
        """Columns of the targets [B, T] that are trained: int64 [B, P]; and which are real."""
        valid = targets != PAD
        places = (
            self.dataset.lengths(rows)[:, None] - targets.shape[1] + np.arange(targets.shape[1])
        )
        names = self.dataset.user_keys[rows][:, None] ^ (places.astype(np.uint64) * STRIDE)
        draws = np.where(valid, uniform(self._hash("targets"), names), 2.0)
        count = min(self.mixing.targets, int(valid.sum(1).max()))
        columns = np.argsort(draws, axis=1, kind="stable")[:, :count]
        return columns, np.take_along_axis(valid, columns, 1)

    def _dropped_ids(self) -> np.ndarray:
        """Items that content scores this round: the cold ones, and a share of the others that have
        content (docs/stages.md, "Losses"). [I+1] bool."""
        names = np.arange(self.dataset.num_items + 1, dtype=np.uint64)
        dropped = uniform(self._hash("id-dropout"), names) < self.mixing.id_dropout
        as_cold: np.ndarray = self.dataset.cold | (dropped & self.content.known)
        return as_cold

    def _hash(self, what: str) -> int:
        return stable_hash(self.plan.seed, what, self.plan.stage, self.plan.round)


def _alignment_loss(content: Tensor, ids: Tensor, tensors: Arrays, temperature: float) -> Tensor:
    """Contrast of each target's content with the candidates' ID embeddings (InfoNCE, van den Oord
    et al., 2018; cosines). ``content`` and ``ids`` [B, N, D] -> [B, P].
    """
    positions, negative = tensors["real"].shape[-1], tensors["negative"]
    query = functional.normalize(content[..., :positions, :], dim=-1, eps=_SHORTEST)
    cosines = query @ functional.normalize(ids, dim=-1).mT / temperature  # [B, P, N]
    targets = tensors["candidates"][..., :positions]
    among = among_targets(cosines[..., :positions], targets, tensors["real"])
    others = cosines[..., positions:].masked_fill(~negative[..., None, :], -torch.inf)
    own = among.diagonal(dim1=-2, dim2=-1)
    return torch.cat([among, others], -1).logsumexp(-1) - own


def _mean(values: Tensor, real: Tensor) -> Tensor:
    """Mean over each user's real positions: [B, P] -> [B]."""
    return (values * real).sum(-1) / real.sum(-1)
