"""Stages 2 and 3's next-item loss: a few items stand for the catalogue, each with its weight.

The full softmax at a target is over the target itself, the items that the user was trained on, and
all other warm items. Its own other trained targets of the round are there themselves; the rest of
what it was trained on, and the items that it was not, are sampled apart: a sampled item counts as
often as there are items that it stands for (as Jean et al., ACL 2015, section 3, correct a sample).
So the sum over the catalogue is estimated without bias, and is exact where a sample is everything.
(Its logarithm is too small on average, the more so the fewer items have most of the mass: by 0.2
nats where 256 items stood for the demo's 450. So a small catalogue is never sampled.)

A cold item is new to every user. So what a user was trained on and the round scores as if cold is
left out, unless it is the target: or the model would learn that cold items were seen before.

Letters: B users of a batch, P trained positions, E and C sampled items, N = P + E + C.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client_app.data.dataset import Dataset, Ints, Rows, membership
from shared_model.model.mixture import mask_repeated_targets
from shared_model.model.sasrec import PAD
from shared_model.seeds import STRIDE, mix

Bools = npt.NDArray[np.bool_]

_WHOLE = 2  # times the negatives asked for: a catalogue of up to so many items is taken whole
_OWN = 16  # trained items of a user that stand for those that are no target of the round


@dataclass(frozen=True)
class Sample:
    """What each user's targets are compared with, besides one another."""

    items: Ints  # [B, E + C], PAD where a user has fewer
    negative: Bools  # [B, E + C], warm items that the user was not trained on
    log_weights: npt.NDArray[np.float32]  # [B, E + C] log of how many each stands for, or -inf


def draw_sample(
    dataset: Dataset, rows: Rows, targets: Ints, as_cold: Bools, seeds: tuple[int, int], count: int
) -> Sample:
    """The sample of users ``rows`` [B] whose trained targets are ``targets`` [B, P] (PAD = none).

    ``as_cold`` [I+1]: items scored by content. ``count`` negatives, or all warm items if those are
    not many more. Hashes of the two ``seeds`` and the user draw, so the batch changes nothing.
    """
    trained = membership(dataset, rows, dataset.train_lengths(rows))  # [B, I+1]
    drawn = _negatives(dataset, rows, seeds[0], count)
    negative = ~np.take_along_axis(trained, drawn, 1)
    warm = np.count_nonzero(dataset.warm)
    rest = trained & ~as_cold
    np.put_along_axis(rest, targets, False, axis=1)
    own = _some_of(rest, dataset.user_keys[rows], seeds[1])
    weights = [
        _log_weights(rest.sum(1), own != PAD),
        _log_weights(warm - trained.sum(1), negative),
    ]
    return Sample(
        np.concatenate([own, drawn], 1),
        np.concatenate([np.zeros_like(own, dtype=bool), negative], 1),
        np.concatenate(weights, 1),
    )


def next_item_loss(scores: Tensor, targets: Tensor, known: Tensor, log_weights: Tensor) -> Tensor:
    """Cross-entropy of each target, in nats: [B, P].

    ``scores`` [B, P, N] at each target's position: of the ``targets`` [B, P], then of the sample
    with ``log_weights`` [B, E + C]. ``known`` [B, P]: targets that are real and scored by ID.
    """
    positions = targets.shape[-1]
    among = among_targets(scores[..., :positions], targets, known)
    sampled = scores[..., positions:] + log_weights[..., None, :]
    own = among.diagonal(dim1=-2, dim2=-1)  # [B, P]
    return torch.cat([among, sampled], -1).logsumexp(-1) - own


def among_targets(scores: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Scores of the targets [B, P] only, [B, P, P]: each one's own and those of ``others`` [B, P]
    that are another item; the rest is masked."""
    itself = torch.eye(targets.shape[-1], dtype=torch.bool, device=scores.device)
    among = mask_repeated_targets(scores, targets)
    return among.masked_fill(~(others[..., None, :] | itself), -torch.inf)


def _negatives(dataset: Dataset, rows: Rows, seed: int, count: int) -> Ints:
    """Warm items drawn uniformly for each user, or all of them; met or not: int64 [B, C]."""
    warm = np.flatnonzero(dataset.warm)
    if len(warm) <= _WHOLE * count:
        return np.tile(warm, (len(rows), 1))
    names = np.arange(count, dtype=np.uint64) * STRIDE
    keys = dataset.user_keys[rows][:, None] ^ names
    drawn: Ints = warm[mix(seed, keys) % np.uint64(len(warm))]
    return drawn


def _some_of(among: Bools, keys: npt.NDArray[np.uint64], seed: int) -> Ints:
    """Up to ``_OWN`` of the items that each user has ``among`` [B, I+1], by hash: int64 [B, E]."""
    users, items = np.divmod(np.flatnonzero(among), among.shape[1])  # nonzero takes twice as long
    # No two items of a user have one hash, so sorts need not be stable but for the users' own.
    order = np.argsort(mix(seed, keys[users] ^ (items.astype(np.uint64) * STRIDE)))
    users = users.astype(np.min_scalar_type(len(among)))  # small integers: a radix sort
    order = order[np.argsort(users[order], kind="stable")]
    users, items = users[order], items[order]
    counts = among.sum(1)
    place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    some = np.full((len(among), min(_OWN, int(counts.max(initial=0)))), PAD, dtype=np.int64)
    kept = place < _OWN
    some[users[kept], place[kept]] = items[kept]
    return some


def _log_weights(population: Ints, usable: Bools) -> npt.NDArray[np.float32]:
    """Items of a ``population`` [B] that each ``usable`` one [B, N] stands for; -inf for others."""
    each = population / np.maximum(usable.sum(1), 1)  # unused where nothing is usable
    with np.errstate(divide="ignore"):
        return np.log(np.where(usable, each[:, None], 0.0)).astype(np.float32)
