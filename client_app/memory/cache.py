"""What a node's users remember: memories of a batch as a bank of items and who holds which.

Letters: B users, P positions, K slots, L items of the bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client_app.data.content import Content
from client_app.data.dataset import Dataset, Ints, Rows
from client_app.memory.surprise import surprises
from shared_model.memory.long_term import Lives
from shared_model.memory.memory import EMPTY, Memory, MemorySettings, left, live, recalled
from shared_model.model.mixture import Memories
from shared_model.model.recommender import Recommender
from shared_model.protocol.plan import MixturePlan


@dataclass(frozen=True)
class Bank:
    """Remembered items, and which of them each position's memory holds."""

    items: Tensor  # [B, L] int64, EMPTY where there are fewer
    held: Tensor  # [B, P, L] bool

    def to(self, device: torch.device) -> "Bank":
        """The bank on another device."""
        return Bank(self.items.to(device), self.held.to(device))

    def memories(self, content: Content) -> Memories:
        """The bank with its features."""
        return Memories(self.items, content.visual[self.items], content.text[self.items], self.held)


class _Kept:
    """The lives of users, by row, for one backbone and one settings at a time."""

    def __init__(self) -> None:
        self._lock = Lock()  # batches are trained in several threads
        self._key: tuple[str, MemorySettings] | None = None
        self._lives: dict[int, Lives] = {}

    def of(self, backbone: str, settings: MemorySettings) -> dict[int, Lives]:
        """What is known under them, to be added to; others than in the last call forget all."""
        with self._lock:
            if self._key != (backbone, settings):
                self._key, self._lives = (backbone, settings), {}
            return self._lives


@dataclass(frozen=True, eq=False)
class Recall:
    """Memories of users under the incoming model of a round.

    A long-term memory costs forward passes and a simulation, so it is kept for as long as the
    backbone and the settings are the same: for all of Stage 2, whose backbone is frozen.
    """

    dataset: Dataset
    content: Content
    backbone: str = ""  # tells backbones apart, by a hash of their arrays; "" if there is only one
    model: str = ""  # and models; "" if nothing tells them apart
    _kept: _Kept = field(default_factory=_Kept, repr=False)

    def with_backbone(self, backbone: str, model: str = "") -> "Recall":
        """The same users' memories under this model, by its hashes; what is kept is shared."""
        return replace(self, backbone=backbone, model=model)

    def settings(self, plan: MixturePlan) -> MemorySettings:
        """A plan's memory."""
        sizes = (plan.short_term, plan.long_term)
        return memory_settings(self.dataset, *sizes, plan.novelty, plan.surprise)

    def memories(
        self,
        model: Recommender,
        rows: Rows,
        positions: Sequence[Ints],
        settings: MemorySettings,
    ) -> list[Memory]:
        """Each user's memory just before each of its ``positions`` [P], counted from 0.

        ``model`` has the backbone that this was made for.
        """
        counts = np.array([int(p.max(initial=0)) for p in positions], dtype=np.int64)
        lives = self._kept.of(self.backbone, settings)
        self._learn(lives, model, rows, counts, settings)
        return [
            recalled(items, lives[row], places, settings)
            for items, row, places in zip(
                self._histories(rows, counts), rows.tolist(), positions, strict=True
            )
        ]

    def foresee(
        self, model: Recommender, rows: Rows, counts: Ints, settings: MemorySettings
    ) -> None:
        """Decide now about ``counts`` [B] interactions of all users that will be asked for: many
        at once cost less than batch by batch."""
        self._learn(self._kept.of(self.backbone, settings), model, rows, counts, settings)

    def held(
        self, model: Recommender, rows: Rows, counts: Ints, settings: MemorySettings
    ) -> Tensor:
        """Which items each user remembers after ``counts`` [B] interactions: [B, I + 1] bool, on
        the model's device."""
        memories = self.memories(model, rows, [np.array([count]) for count in counts], settings)
        held = np.zeros((len(rows), self.dataset.num_items + 1), dtype=bool)
        for user, memory in enumerate(memories):
            held[user, memory.slots[0]] = True
        held[:, EMPTY] = False
        return torch.from_numpy(held).to(model.item_embedding.weight.device)

    def banks(
        self,
        model: Recommender,
        rows: Rows,
        places: Ints,
        real: npt.NDArray[np.bool_],
        settings: MemorySettings,
    ) -> tuple[Bank, Tensor]:
        """Each user's memory just before its ``real`` ones of some ``places`` [B, P], which stand
        first, and what ``MEMORY_LOGS`` names: float32 [B, 4]."""
        positions = [own[holds] for own, holds in zip(places, real, strict=True)]
        memories = self.memories(model, rows, positions, settings)
        counts = torch.from_numpy(_memory_counts(memories, settings.short_term))
        device = model.item_embedding.weight.device
        return own_banks(memories).to(device), counts.to(device)

    def _histories(self, rows: Rows, counts: Ints) -> list[np.ndarray]:
        starts = self.dataset.indptr[rows]
        return [self.dataset.items[s : s + n] for s, n in zip(starts, counts, strict=True)]

    def _learn(
        self,
        lives: dict[int, Lives],
        model: Recommender,
        rows: Rows,
        counts: Ints,
        settings: MemorySettings,
    ) -> None:
        """Add to ``lives`` the memories of ``counts`` [B] interactions that it lacks."""

        def known(row: int, count: int) -> bool:
            return row in lives and len(lives[row].items) >= left(count, settings)

        pairs = enumerate(zip(rows.tolist(), counts.tolist(), strict=True))
        lacking = [place for place, pair in pairs if not known(*pair)]
        if lacking:
            rows, counts = rows[lacking], counts[lacking]
            nats = surprises(model, self.dataset, rows, counts, settings.short_term)
            histories = self._histories(rows, counts)
            new = live(histories, self.content.combined, nats, settings)
            lives.update(zip(rows.tolist(), (life.compact() for life in new), strict=True))


def memory_settings(
    dataset: Dataset, short_term: int, long_term: int, novelty: float, surprise: float
) -> MemorySettings:
    """A memory over this catalogue; a negative surprise threshold means that of a uniform guess."""
    warm = np.count_nonzero(dataset.warm)
    threshold = surprise if surprise >= 0 else float(np.log(warm))
    return MemorySettings(
        short_term=short_term, long_term=long_term, novelty=novelty, surprise=threshold
    )


def own_banks(memories: Sequence[Memory]) -> Bank:
    """A bank for each user, which its positions share: for training."""
    parts = [_index(memory.slots) for memory in memories]
    longest = max(1, *(len(items) for items, _ in parts))
    widest = max(len(held) for _, held in parts)
    items = np.full((len(parts), longest), EMPTY, dtype=np.int64)
    held = np.zeros((len(parts), widest, longest), dtype=bool)
    for user, (own, holds) in enumerate(parts):
        items[user, : len(own)] = own
        held[user, : len(holds), : len(own)] = holds
    return Bank(torch.from_numpy(items), torch.from_numpy(held))


def shared_bank(memories: Sequence[Memory]) -> Bank:
    """One bank for all users, each with one position: B positions of one user, for evaluation."""
    items, held = _index(np.concatenate([memory.slots for memory in memories]))
    return Bank(torch.from_numpy(items)[None], torch.from_numpy(held)[None])


def _index(slots: Ints) -> tuple[Ints, np.ndarray]:
    """Distinct items of slots [P, K], at least one: int64 [L], and who holds which: bool [P, L]."""
    present = np.zeros(int(slots.max(initial=EMPTY)) + 1, dtype=bool)
    present[slots] = True
    present[EMPTY] = not present[1:].any()
    items = np.flatnonzero(present)
    place = np.cumsum(present) - 1
    place[EMPTY] = len(items)  # a column that is cut off
    held = np.zeros((len(slots), len(items) + 1), dtype=bool)
    np.put_along_axis(held, place[slots], True, axis=1)
    return items, held[:, :-1]


def _memory_counts(memories: Sequence[Memory], short_term: int) -> np.ndarray:
    """What ``MEMORY_LOGS`` names, of each user: float32 [B, 4]."""
    return np.array(
        [
            [
                memory.candidates,
                memory.writes,
                (memory.slots[:, :short_term] != EMPTY).sum(1).max(),
                (memory.slots[:, short_term:] != EMPTY).sum(1).max(),
            ]
            for memory in memories
        ],
        dtype=np.float32,
    )
