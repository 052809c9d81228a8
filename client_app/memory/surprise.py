"""How much each interaction of a history surprised the incoming model: its loss in nats.

Letters: B users, W windows, S block size, I items.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from client_app.data.dataset import Dataset, Ints, Rows
from shared_model.memory.memory import Floats
from shared_model.model.dropout import Dropout
from shared_model.model.matmul import product
from shared_model.model.recommender import Recommender
from shared_model.model.sasrec import PAD

_WINDOWS = 32  # always that many at once: the same product, to the bit, whoever is beside a user


def surprises(
    model: Recommender, dataset: Dataset, rows: Rows, counts: Ints, short_term: int
) -> list[Floats]:
    """Losses of the first ``counts`` [B] items of each user's history, float32 [count] each.

    By the ID path of the model. A history is cut into blocks of ``short_term`` items, and a block
    is judged when it is whole, with the block before as context: an interaction that leaves the
    short-term memory is in a whole block, so its surprise never depends on what came later. The
    others are never asked for, and are infinite. The first interaction has nothing before it: the
    loss of a uniform guess.
    """
    size = min(short_term, model.shape.max_length)
    blocks = np.maximum(-(-(counts - short_term) // size), 0)  # [B]
    owner = np.repeat(np.arange(len(rows)), blocks)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    starts = dataset.indptr[rows][owner]
    width = min(2 * size, model.shape.max_length)
    places = (number + 1)[:, None] * size - 1 - width + np.arange(width + 1)  # of inputs + target
    items = np.where(places >= 0, dataset.items[starts[:, None] + np.maximum(places, 0)], PAD)
    losses = _window_losses(model, dataset, items, size).reshape(-1, size)
    found = [np.full(count, np.inf, dtype=np.float32) for count in counts]
    for user, block, loss in zip(owner, number, losses, strict=True):
        found[user][block * size : (block + 1) * size] = loss
    return found


@torch.no_grad()
def _window_losses(
    model: Recommender, dataset: Dataset, items: np.ndarray, size: int
) -> np.ndarray:
    """Losses of the last ``size`` items of each window [W, width + 1]: float32 [W, size]."""
    table = model.item_embedding.weight
    warm = torch.from_numpy(dataset.warm).to(table.device)
    losses = np.empty((len(items), size), dtype=np.float32)
    for start in range(0, len(items), _WINDOWS):
        part = items[start : start + _WINDOWS]
        padded = np.zeros((_WINDOWS, items.shape[1]), dtype=np.int64)
        padded[: len(part)] = part
        window = torch.from_numpy(padded).to(table.device)
        hidden = model(window[:, :-1], Dropout())[:, -size:]
        loss = _loss(hidden, table, warm, window[:, -size:], window[:, -size - 1 : -1] != PAD)
        losses[start : start + _WINDOWS] = loss[: len(part)].cpu().numpy()
    return losses


def _loss(hidden: Tensor, table: Tensor, warm: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy over the warm items; log of their number where nothing came before. [W, S]."""
    # One product, not one a window with the table copied for each.
    logits = product(hidden.flatten(0, 1), table).masked_fill_(~warm, -torch.inf)  # [W * S, I+1]
    loss = functional.cross_entropy(logits, targets.flatten(), ignore_index=PAD, reduction="none")
    return torch.where(known, loss.view_as(targets), warm.sum().log())
