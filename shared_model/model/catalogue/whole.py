"""The mixture's scores of a whole catalogue: what depends on items alone is made once for all.

The formula is ``Mixture.forward``'s (a test compares), arranged for evaluation, where every user
ranks the same candidates at one position: its memory then only chooses columns of tables over
(candidate, remembered item), and a batch of users is a product with these. A GPU evaluates so; a
processor by ``shortlist.py``.

Such tables hold attention next to the largest of all items. Where logits may lie so far apart that
the formula, which looks at one memory's, would tell items from one another that are all nothing
beside others, users have tables of their own.

Letters: B users, I items with padding, N candidates, L remembered items, H heads, D hidden size, S
the size of texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shared_model.model.looking import FLOOR
from shared_model.model.mixture import Candidates, ItemVectors, Mixture
from shared_model.model.router import MODALITIES
from shared_model.model.sasrec import PAD

_PART = 2**16  # items that are projected at once
# Cells of tables that are kept for all users, and of those that are made for one batch and some
# candidates: 4 bytes each. Where the whole catalogue is too large for the first, the second serves.
_KEPT = {"cpu": 2**27, "cuda": 2**30}
_AT_ONCE = {"cpu": 2**24, "cuda": 2**28}


@dataclass(frozen=True)
class _Table:
    """One modality: what candidates make of remembered items, whoever remembers them."""

    odds: Tensor  # [H, N, L] attention, but for its sum; 0 where a candidate meets itself
    worth: Tensor  # [H, N, L] odds times what the remembered item's value adds to the score
    key: Tensor  # [H, L, D], by which a state weighs the modality
    present: Tensor  # [L] bool, items that have the modality


class Catalogue(Protocol):
    """Every item as a candidate for many users."""

    vectors: Tensor  # [I, D], of which histories are made, too

    def around(self, sequence: Tensor, held: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all items for B users [B, I], of states ``sequence`` [B, D], memories ``held``
        [B, I] bool and ``targets`` [B]; and what each target would score if it were cold, [B].

        A score is exact, or on the right side of both of the user's target's.
        """

    def best(self, sequence: Tensor, held: Tensor, count: int) -> Tensor:
        """Scores of all items for B users [B, I]: exact of each user's ``count`` best, and no other
        is higher than these."""


def embedded(mixture: Mixture, items: Candidates) -> ItemVectors:
    """``Mixture.embed`` of many shared items [1, N, .], some at a time."""
    size = items.ids.shape[1]
    parts = [mixture.embed(_some(items, slice(at, at + _PART))) for at in range(0, size, _PART)]
    return ItemVectors(
        *(torch.cat(of, 1) for of in zip(*(vars(p).values() for p in parts), strict=True))
    )


class WholeCatalogue:
    """Every item as a candidate, and as one that can be remembered."""

    def __init__(self, mixture: Mixture, items: Candidates) -> None:
        """``items`` [1, I, .] by their indices, padding too."""
        self.mixture, self.items = mixture, items
        self.device, self.size = items.ids.device, items.ids.shape[1]
        made = embedded(mixture, items)
        self.weights = made.weights  # [1, I, 2]
        self.content, self.vectors = made.content[0], made.vectors[0]  # [I, D]
        self.queries = mixture.experts.text.queries(self.vectors)  # [H, I, S/H]
        self.wanted = mixture.fusion.wanted(self.vectors)  # [I, D]
        self.shared = self._spread() <= -FLOOR
        heads = 1 + len(self.queries)
        self.kept: list[_Table] | None = None
        if self.shared and 2 * heads * self.size**2 <= _KEPT[self.device.type]:
            self.kept = self._tables(slice(None), self._everything())

    def around(self, sequence: Tensor, held: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Catalogue``; everything is exact."""
        at_once = len(sequence) if self.shared else 1
        given = (torch.split(each, at_once) for each in (sequence, held, targets))
        by_content = torch.cat([self._as_cold(*some) for some in zip(*given, strict=True)])
        return self.best(sequence, held, self.size), by_content

    def best(self, sequence: Tensor, held: Tensor, count: int) -> Tensor:
        """As ``Catalogue``; everything is exact."""
        at_once = len(sequence) if self.shared else 1
        users = zip(torch.split(sequence, at_once), torch.split(held, at_once), strict=True)
        return torch.cat([self._of_all(*some) for some in users])

    def _spread(self) -> float:
        """No candidate's logits of two items lie farther apart, in nats, as it is or as if cold."""
        experts, everybody = self.mixture.experts, torch.ones_like(self.items.cold[0])
        alone = experts.text.queries(experts.vectors(self.content, self.content, everybody))
        asked = torch.stack([_longest(self.queries), _longest(alone)]).amax(0)  # [H]
        parts = torch.split(self.items.text, _PART, 1)
        keys = torch.stack([_longest(experts.text.keys(part)[0]) for part in parts]).amax(0)  # [H]
        texts = asked * keys * (self.items.text.shape[-1] / len(keys)) ** -0.5
        pictures = experts.visual.sharpness.abs().amax()  # of unit rows
        return 2 * float(torch.maximum(texts.amax(), pictures))

    def _of_all(self, sequence: Tensor, held: Tensor) -> Tensor:
        """Scores of all items for some users."""
        if self.kept is not None:
            return self._scores(sequence, held, slice(None), held, self.kept)
        columns = _columns(held)  # [L]
        among = held[:, columns]
        size = max(1, _AT_ONCE[self.device.type] // max(1, len(columns) * (1 + len(self.queries))))
        scores = [
            self._scores(sequence, held, part, among, self._tables(part, columns))
            for part in self._parts(size)
        ]
        return torch.cat(scores, 1)

    def _as_cold(self, sequence: Tensor, held: Tensor, targets: Tensor) -> Tensor:
        """What each user's target [B] would score if it were cold: by its content. [B]."""
        columns = _columns(held)  # [L]
        experts, fusion, content = self.mixture.experts, self.mixture.fusion, self.content[targets]
        content = experts.vectors(content, content, torch.ones_like(targets, dtype=torch.bool))
        usable = held[:, columns] & (targets[:, None] != columns)  # [B, L]
        pictures = experts.visual.logits(self.items.visual[:, targets], self._visual(columns))
        texts = experts.text.logits(content[None], experts.text.keys(self._text(columns)))
        logits, values = [], []
        for modality, attention in zip(MODALITIES, (pictures, texts), strict=True):
            features, (key, value) = self._projected(modality, columns)
            able = usable & features.any(-1)
            odds = fusion.odds(attention, ~able[None])[0]  # [H, B, L]
            total = odds.sum(-1)
            total = total + (total == 0).to(total.dtype)
            wished = fusion.query(sequence) @ key.mT  # [H, B, L]
            logits.append(((odds * wished).sum(-1) / total).sum(0) * content.shape[-1] ** -0.5)
            added = odds * (fusion.wanted(content) @ value.mT)
            values.append((added.sum(-1) / total).sum(0))
        unknown = torch.zeros(1, 1, len(targets), dtype=torch.bool, device=self.device)
        tokens = (torch.stack(parts, -1)[None, None] for parts in (logits, values))
        aux = fusion(*tokens, self.weights[:, targets], unknown)[0, 0]  # [B]
        scores: Tensor = (sequence * content).sum(-1) + self.mixture.gate * aux
        return scores

    def _scores(
        self,
        sequence: Tensor,
        held: Tensor,
        part: slice,
        among: Tensor,
        tables: list[_Table],
    ) -> Tensor:
        """Scores of the candidates of ``part`` [B, N]; of ``held`` [B, I] the tables have the
        columns ``among`` [B, L]."""
        fusion = self.mixture.fusion
        logits, values = [], []
        for table in tables:
            usable = (among & table.present).to(sequence.dtype)  # [B, L]
            total = table.odds @ usable.mT  # [H, N, B]
            total = total + (total == 0).to(total.dtype)
            wished = fusion.query(sequence) @ table.key.mT  # [H, B, L]
            logit = table.odds @ (usable * wished).mT / total
            logits.append(logit.sum(0).mT * sequence.shape[-1] ** -0.5)  # [B, N]
            values.append((table.worth @ usable.mT / total).sum(0).mT)
        remembered = held[:, part] & ~self.items.cold[:, part]
        tokens = (torch.stack(parts, -1)[None] for parts in (logits, values))
        aux = fusion(*tokens, self.weights[:, part], remembered[None])[0]
        scores: Tensor = sequence @ self.vectors[part].mT + self.mixture.gate * aux
        return scores

    def _tables(self, part: slice, columns: Tensor) -> list[_Table]:
        """What the candidates of ``part`` make of the items ``columns`` [L]."""
        experts, fusion = self.mixture.experts, self.mixture.fusion
        itself = self._everything()[part, None] == columns  # [N, L]
        pictures = experts.visual.logits(self.items.visual[:, part], self._visual(columns))
        keys = experts.text.keys(self._text(columns))
        texts = experts.text.compared(self.queries[None, :, part], keys)
        tables = []
        for modality, attention in zip(MODALITIES, (pictures, texts), strict=True):
            features, (key, value) = self._projected(modality, columns)
            odds = fusion.odds(attention, itself[None])[0]  # [H, N, L]
            worth = odds * (self.wanted[part] @ value.mT)
            tables.append(_Table(odds, worth, key, features.any(-1)))
        return tables

    def _projected(self, modality: str, columns: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features [L, F] of remembered items, and their keys and values, two of [H, L, D]."""
        visual = modality == "visual"
        features = self._visual(columns) if visual else self._text(columns)
        expert = self.mixture.experts.visual if visual else self.mixture.experts.text
        key, value = self.mixture.fusion.project(modality, expert.values(features))
        return features[0], (key[0], value[0])

    def _visual(self, columns: Tensor) -> Tensor:
        return self.items.visual[:, columns]

    def _text(self, columns: Tensor) -> Tensor:
        return self.items.text[:, columns]

    def _everything(self) -> Tensor:
        return torch.arange(self.size, device=self.device)

    def _parts(self, size: int) -> Iterator[slice]:
        return (slice(start, start + size) for start in range(0, self.size, size))


def _longest(vectors: Tensor) -> Tensor:
    """The largest norm of each head's vectors [H, N, .]: [H]."""
    longest: Tensor = vectors.norm(dim=-1).amax(1)
    return longest


def _columns(held: Tensor) -> Tensor:
    """The items that anybody remembers, or padding: [L >= 1]."""
    anything = held.any(0)
    anything[PAD] = ~anything.any()
    return anything.nonzero().squeeze(1)


def _some(items: Candidates, part: slice) -> Candidates:
    return Candidates(*(value[:, part] for value in vars(items).values()))
