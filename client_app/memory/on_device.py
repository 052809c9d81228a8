"""What a node's users remember, decided and kept on a GPU: ``Recall`` without leaving the device.

Letters: B users, N interactions, P positions, L items of a bank, F feature size.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client_app.data.content import Content
from client_app.data.dataset import Dataset, Ints, Rows
from client_app.memory.cache import Bank, Recall
from client_app.memory.decided import TABLE, Decided, Histories
from client_app.memory.surprise import judged
from shared_model.device import on_device
from shared_model.memory.memory import EMPTY, MemorySettings, left
from shared_model.model.recommender import Recommender

_CELLS = 2**26  # positions times interactions at once


def recall_of(dataset: Dataset, content: Content) -> Recall:
    """The memories of a dataset's users, on the device of ``content`` where that can be."""
    if content.visual.device.type == "cpu":
        return Recall(dataset, content)
    if lacking := [name for name, found in _needed().items() if not found]:
        warnings.warn(
            f"no {' and no '.join(lacking)}: memories are simulated on the processor, which takes "
            "most of a round of Stage 3",
            stacklevel=2,
        )
        return Recall(dataset, content)
    return DeviceRecall.of(dataset, content)


def _needed() -> dict[str, bool]:
    """What the kernel is compiled with, and whether it is there."""
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    return {
        "Triton": importlib.util.find_spec("triton") is not None,
        "C compiler": any(shutil.which(name) for name in compilers),
    }


@dataclass(frozen=True, eq=False)
class DeviceRecall(Recall):
    """Memories on the device of ``content``; what they hold is what ``Recall`` has, to the bit."""

    _decided: Decided = field(kw_only=True, repr=False)

    @classmethod
    def of(cls, dataset: Dataset, content: Content) -> "DeviceRecall":
        """The memories of a dataset's users, of which nothing is decided yet."""
        return cls(dataset, content, _decided=Decided(dataset, content))

    def foresee(
        self, model: Recommender, rows: Rows, counts: Ints, settings: MemorySettings
    ) -> None:
        """Decide about all of them now."""
        self._decide(model, rows, counts, settings)

    def held(
        self, model: Recommender, rows: Rows, counts: Ints, settings: MemorySettings
    ) -> Tensor:
        """As ``Recall``."""
        decided = self._decide(model, rows, counts, settings)
        size = self.dataset.num_items + 1
        held = torch.zeros((len(rows), size), dtype=torch.bool, device=decided.device)
        for part in _groups(counts, counts, _CELLS):
            history = Histories(decided, rows[part], counts[part])
            short, long = history.remembered(counts[part, None], settings)
            items = history.items.long()
            origins = items.gather(1, history.kept)
            own = torch.zeros((len(short), size), dtype=torch.uint8, device=decided.device)
            own.scatter_reduce_(1, items, short[:, 0].byte(), "amax")
            own.scatter_reduce_(1, origins, long[:, 0].byte(), "amax")
            held[on_device(part, held.device)] = own.bool()
        held[:, EMPTY] = False
        return held

    def banks(
        self,
        model: Recommender,
        rows: Rows,
        places: Ints,
        real: npt.NDArray[np.bool_],
        settings: MemorySettings,
    ) -> tuple[Bank, Tensor]:
        """As ``Recall``; the items of a bank stand in another order."""
        places = np.where(real, places, 0)
        counts: Ints = places.max(1, initial=0)
        decided = self._decide(model, rows, counts, settings)
        groups = list(_groups(counts, counts * places.shape[1], _CELLS))
        parts = [self._banks(decided, rows[part], places[part], settings) for part in groups]
        widest = max(bank.items.shape[1] for bank, _ in parts)
        back = on_device(np.argsort(np.concatenate(groups)), decided.device)
        items, held = (
            torch.cat([_widened(getattr(bank, name), widest) for bank, _ in parts])[back]
            for name in ("items", "held")
        )
        return Bank(items, held), torch.cat([logs for _, logs in parts])[back]

    def _banks(
        self, decided: Decided, rows: Rows, places: Ints, settings: MemorySettings
    ) -> tuple[Bank, Tensor]:
        """Those of users with histories of similar length."""
        history = Histories(decided, rows, places.max(1, initial=0))
        short, long = history.remembered(places, settings)
        # Nobody meets an item twice in a dataset: an interaction's place is the item's column.
        origins = history.kept[:, None].expand(long.shape)
        held = short.byte().scatter_reduce_(2, origins, long.byte(), "amax")  # [B, P, N]
        used = held.amax(1).bool()  # [B, N]
        size = max(1, int(used.sum(1).max()))
        order = torch.argsort(~used, dim=1, stable=True)[:, :size]  # [B, L]
        mine = used.gather(1, order)
        items = torch.where(mine, history.items.gather(1, order).long(), EMPTY)
        apart = held.gather(2, order[:, None].expand(-1, held.shape[1], -1)).bool()
        end = np.array([left(int(n), settings) for n in places.max(1, initial=0)])
        told = on_device(end, decided.device)
        before = history.before(told)
        logs = [
            told,
            (history.written & before).sum(1),
            short.sum(2).amax(1),
            long.sum(2).amax(1),
        ]
        return Bank(items, apart), torch.stack(logs, 1).float()

    def _decide(
        self, model: Recommender, rows: Rows, counts: Ints, settings: MemorySettings
    ) -> Decided:
        """Decide about the first ``counts`` [B] interactions of users for whom that is not done."""
        decided = self._decided
        decided.begin((self.backbone, settings))
        ends = np.array([left(int(count), settings) for count in counts])
        lacking = ends > decided.counts[rows]
        if lacking.any():
            rows, counts, ends = rows[lacking], counts[lacking], ends[lacking]
            self._surprise(decided, model, rows, counts, settings)
            _scan(decided, rows, ends, settings)
            decided.counts[rows] = ends
        return decided

    def _surprise(
        self,
        decided: Decided,
        model: Recommender,
        rows: Rows,
        counts: Ints,
        settings: MemorySettings,
    ) -> None:
        """Mark what surprises; what is not judged yet is not decided upon yet."""
        losses, places, _ = judged(model, self.dataset, rows, counts, settings.short_term)
        surprising = losses >= torch.tensor(settings.surprise, dtype=losses.dtype)
        decided.surprising[on_device(places, decided.device)] = surprising.byte()


def _scan(decided: Decided, rows: Rows, ends: Ints, settings: MemorySettings) -> None:
    """Run the memories of users for ``ends`` [B] interactions, in groups that share a table."""
    from client_app.memory.scan import scan

    dataset, device = decided.dataset, decided.device
    longest = int(ends.max())
    frequent = on_device(np.log1p(np.arange(longest + 2)), device)
    recent = on_device(np.exp(-np.arange(longest) / settings.recency), device)
    limits = [settings.novelty, settings.duplicate]
    thresholds = on_device(np.array(limits), device)
    slots = 1 << max(0, settings.long_term - 1).bit_length()
    for part, table, places, stride in _compared(decided, rows, ends):
        users = len(rows[part])
        tables = torch.arange(users, device=device) * (0 if places is decided.items else stride**2)
        scan[(users,)](
            places,
            on_device(dataset.indptr[rows[part]], device),
            on_device(ends[part].astype(np.int32), device),
            tables,
            table,
            decided.surprising,
            frequent,
            recent,
            thresholds,
            decided.kept,
            decided.until,
            decided.written,
            stride,
            settings.long_term,
            width=slots,
            num_warps=1,
        )


def _compared(
    decided: Decided, rows: Rows, ends: Ints
) -> Iterator[tuple[npt.NDArray[np.intp], Tensor, Tensor, int]]:
    """Groups of users, with a table of cosines, its columns by interaction, and its row's length.

    The table is the whole catalogue's, or else each user's own over its history.
    """
    if decided.cosines is not None:
        yield np.arange(len(rows)), decided.cosines, decided.items, len(decided.features)
        return
    own = decided.own_places
    wide = np.maximum(ends, decided.features.shape[1])  # features, or cosines with one another
    for part in _groups(ends, ends * wide, TABLE):
        size = int(ends[part].max())
        history = Histories(decided, rows[part], ends[part])
        known = decided.features[history.items.long()]  # [B, N, F]
        cosines = known @ known.mT
        same = history.items[:, :, None] == history.items[:, None]
        yield part, cosines.masked_fill_(same, 1.0), own, size


def _groups(counts: Ints, cells: Ints, most: int) -> Iterator[npt.NDArray[np.intp]]:
    """Users of similar ``counts`` [B], as many as may be at once: so that ``most`` cells hold them,
    of which each takes as many as the largest of ``cells`` [B] among them."""
    group: list[int] = []
    for user in np.argsort(counts, kind="stable").tolist():
        if group and (len(group) + 1) * int(cells[user]) > most:
            yield np.array(group)
            group = []
        group.append(user)
    if group:
        yield np.array(group)


def _widened(values: Tensor, size: int) -> Tensor:
    """With EMPTY, or nothing held, up to a last dimension of that size."""
    return torch.nn.functional.pad(values, (0, size - values.shape[-1]))
