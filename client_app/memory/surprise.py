"""How much each interaction of a history surprised the incoming model: its loss in nats.

Letters: B users, W windows, S block size, I items.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from client_app.data.dataset import Dataset, Ints, Rows
from shared_model.device import on_device
from shared_model.memory.memory import Floats
from shared_model.model.dropout import Dropout
from shared_model.model.matmul import product
from shared_model.model.recommender import Recommender
from shared_model.model.sasrec import PAD

# Always that many windows at once: the same product, to the bit, whoever is beside a user.
_WINDOWS = {"cpu": 32, "cuda": 512}
_CHUNK = 8  # of them whose logits are alive at once: these stay in a processor's cache
_CELLS = 2**28  # logits at once on a GPU: fewer windows where the catalogue is large


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
    losses, _, whole = judged(model, dataset, rows, counts, short_term)
    parts = np.split(losses.cpu().numpy(), np.cumsum(whole)[:-1])
    found = [np.full(count, np.inf, dtype=np.float32) for count in counts]
    for own, part in zip(found, parts, strict=True):
        own[: len(part)] = part
    return found


def judged(
    model: Recommender, dataset: Dataset, rows: Rows, counts: Ints, short_term: int
) -> tuple[Tensor, Ints, Ints]:
    """Losses of the first interactions of each user, those in whole blocks: float32 [J] on the
    model's device; their places in the dataset's ``items``, int64 [J]; how many they are, [B]."""
    size = min(short_term, model.shape.max_length)
    blocks = np.maximum(-(-(counts - short_term) // size), 0)  # [B]
    owner = np.repeat(np.arange(len(rows)), blocks)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    starts = dataset.indptr[rows][owner]
    width = min(2 * size, model.shape.max_length)
    places = (number + 1)[:, None] * size - 1 - width + np.arange(width + 1)  # of inputs + target
    items = np.where(places >= 0, dataset.items[starts[:, None] + np.maximum(places, 0)], PAD)
    losses = _window_losses(model, dataset, items, size)
    return losses.flatten(), (starts[:, None] + places[:, -size:]).ravel(), blocks * size


@torch.no_grad()
def _window_losses(model: Recommender, dataset: Dataset, items: Ints, size: int) -> Tensor:
    """Losses of the last ``size`` items of each window [W, width + 1]: float32 [W, size]."""
    table = model.item_embedding.weight
    absent = on_device(np.flatnonzero(~dataset.warm), table.device)
    at_once = _at_once(table, size)
    windows = on_device(items.astype(np.int64), table.device)
    losses = torch.empty((len(items), size), device=table.device)
    for start in range(0, len(items), at_once):
        part = windows[start : start + at_once]
        window = functional.pad(part, (0, 0, 0, at_once - len(part)))
        inputs = window[:, :-1]
        embedded = functional.embedding(inputs, table, PAD)
        judged_at = torch.arange(inputs.shape[1] - size, inputs.shape[1], device=table.device)
        columns = judged_at.expand(at_once, -1)
        hidden = model.backbone.some(embedded, inputs != PAD, Dropout(), columns)
        loss = _loss(hidden, table, absent, window[:, -size:], window[:, -size - 1 : -1] != PAD)
        losses[start : start + at_once] = loss[: len(part)]
    return losses


def _at_once(table: Tensor, size: int) -> int:
    """Windows of ``size`` judged items that go through the model together."""
    most = _WINDOWS[table.device.type]
    return most if table.device.type == "cpu" else max(1, min(most, _CELLS // (size * len(table))))


def _loss(hidden: Tensor, table: Tensor, absent: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy over all but ``absent`` items; log of their number where nothing came before.
    [W, S]."""
    at_once = _CHUNK if table.device.type == "cpu" else len(hidden)
    parts = []
    for start in range(0, len(hidden), at_once):
        states, wanted = (x[start : start + at_once] for x in (hidden, targets))
        # One product, not one a window with the table copied for each.
        logits = product(states.flatten(0, 1), table)  # [R, I+1]
        logits.index_fill_(1, absent, -torch.inf)
        own = logits.gather(1, wanted.flatten()[:, None])
        high = logits.amax(1, keepdim=True)
        total = logits.sub_(high).exp_().sum(1, keepdim=True)
        parts.append(total.log_() + high - own)
    loss = torch.cat(parts).view_as(targets)
    return torch.where(known, loss, float(np.log(len(table) - len(absent))))
