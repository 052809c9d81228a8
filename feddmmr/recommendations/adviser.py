"""Recommendations of a trained run, with the reasons: the evaluation's own scores, taken apart.

Letters: I items, N candidates, L remembered items, D hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client_app.data.content import Content, open_content
from client_app.data.dataset import Dataset, Ints, Rows
from client_app.evaluation.candidates import shared_candidates
from client_app.memory.cache import Recall, memory_settings, shared_bank
from feddmmr.recommendations.parts import PARTS, Parts, parts_of, shares_of, state_alone
from feddmmr.runs.read import Run, complete_stage
from feddmmr.runs.verify import best_model
from shared_model.errors import ConfigError
from shared_model.memory.memory import MemorySettings
from shared_model.model.catalogue.shortlist import Shortlist
from shared_model.model.dropout import Dropout
from shared_model.model.mixture import Memories
from shared_model.model.recommender import Recommender
from shared_model.model.router import MODALITIES
from shared_model.model.sasrec import PAD

_AT_ONCE = 4096  # items
_REASONS, _LEAST = 3, 1e-4  # remembered items that are named, and what one of them has to weigh


@dataclass(frozen=True)
class Scored:
    """The whole catalogue after one history. Row 0 is padding, -inf cannot be recommended."""

    scores: Tensor  # [I + 1]
    shares: Tensor  # [I + 1, 4], as PARTS
    router: Tensor  # [I + 1, 2]
    attended: Tensor  # [I + 1, 2]


@dataclass(frozen=True)
class Past:
    """What a model makes of one history: all that is told after it needs this, once."""

    history: Ints  # [n] item indices that are not cold, oldest first
    state: Tensor  # [D]
    memory: Memories | None  # of Stages 2 and 3
    scored: Scored

    @property
    def remembered(self) -> int:
        """How many items the user's memory holds."""
        return int(self.memory.held.sum()) if self.memory is not None else 0


class Adviser:
    """A stage's best checkpoint, verified and loaded strictly, with its catalogue.

    ``ManifestError`` unless the stage is complete; 0 is the newest complete one.
    """

    def __init__(self, run: Run, dataset: Dataset, stage: int = 0) -> None:
        self.number, record = complete_stage(run, stage)
        self.run, self.dataset, self.record = run, dataset, record
        self.model: Recommender = best_model(run, self.number)
        self.content: Content | None = None
        if self.model.mixture is not None:
            self.content = open_content(dataset, record["config"]["modalities"])

    @torch.no_grad()
    def after(self, history: Ints) -> Past:
        """What is said after a history [n] of item indices that are not cold, oldest first."""
        state = self._states([history])[0]
        if self.content is None:
            return Past(history, state, None, self._score_alone(state))
        memory = self._memory(self.content, history)
        return Past(history, state, memory, self._score(state, memory))

    @torch.no_grad()
    def scores(self, rows: Rows, count: int) -> Tensor:
        """The whole catalogue after the whole histories of users ``rows`` [N]: [N, I + 1].

        Of each user's ``count`` best the same as ``after`` says, many at once and without the
        parts; no other is higher.
        """
        lengths = self.dataset.lengths(rows)
        starts = self.dataset.indptr[rows]
        histories = [
            self.dataset.items[start : start + n].astype(np.int64)
            for start, n in zip(starts, lengths, strict=True)
        ]
        states = self._states(histories)
        if self.content is None:
            return self._possible(self.model.score(states))
        settings = self._memory_settings(self.dataset)
        recall = Recall(self.dataset, self.content)
        held = recall.held(self.model, rows, lengths, settings)
        return self._possible(self._catalogue.best(states, held, count))

    @cached_property
    def _catalogue(self) -> Shortlist:
        """Every item by the mixture."""
        assert self.content is not None  # noqa: S101 (for the type checker: callers asked)
        table, cold = self.model.item_embedding.weight, torch.from_numpy(self.dataset.cold)
        mixture, content = self.model.mix(), self.content
        return Shortlist(mixture, table, content.visual, content.text, cold)

    @torch.no_grad()
    def reasons(self, past: Past, item: int) -> list[tuple[str, int, float]]:
        """Modality, item and part of the score of what in memory spoke loudest for an item."""
        if past.memory is None:
            return []
        _, _, parts = self._explain(past.state, torch.tensor([item]), past.memory)
        told = [
            (modality, int(name), float(value))
            for modality, values in parts.remembered.items()
            for name, value in zip(past.memory.names[0], values[0], strict=True)
        ]
        loud = sorted((one for one in told if one[2] > _LEAST), key=lambda one: -one[2])
        return loud[:_REASONS]

    def _score_alone(self, state: Tensor) -> Scored:
        """The whole catalogue without a mixture."""
        scores = self._possible(self.model.score(state[None]))[0]
        nothing = torch.zeros(len(scores), len(MODALITIES))
        return Scored(scores, state_alone(scores), nothing, nothing)

    def _score(self, state: Tensor, memory: Memories) -> Scored:
        """The whole catalogue."""
        catalogue, held = self._catalogue, torch.zeros(self.dataset.num_items + 1, dtype=torch.bool)
        held[memory.names[0][memory.held[0, 0]]] = True
        scores, said = catalogue.say(state, held)
        by_content = self._by_content(state, catalogue)
        mixture, weights = self.model.mix(), catalogue.weights
        familiar = mixture.gate * mixture.fusion.familiar(held & ~catalogue.cold)
        shares, attended = shares_of(mixture, said, weights, by_content, familiar)
        return Scored(self._possible(scores[None])[0], shares, weights, attended)

    def _by_content(self, state: Tensor, catalogue: Shortlist) -> Tensor:
        """What a state makes of each modality of the items: [I + 1, 2]."""
        found, experts = torch.zeros_like(catalogue.weights), self.model.mix().experts
        parts: Sequence[Tensor] = torch.split(torch.arange(len(found)), _AT_ONCE)
        for items in parts:
            features = catalogue.visual[items], catalogue.text[items]
            heads = experts.heads(*features, catalogue.weights[items])  # [N, 2, D]
            found[items] = experts.strengths(catalogue.cold[items])[:, None] * (heads @ state)
        return found

    def _possible(self, scores: Tensor) -> Tensor:
        """Scores [N, I + 1] with -inf for what this stage has no say about, and for padding."""
        if self.content is None:
            scores[:, torch.from_numpy(self.dataset.cold)] = -torch.inf
        scores[:, PAD] = -torch.inf
        return scores

    def _states(self, histories: Sequence[Ints]) -> Tensor:
        """States after histories of any lengths: [N, D]."""
        recent = [history[-self.model.shape.max_length :] for history in histories]
        inputs = np.full((len(recent), max(map(len, recent))), PAD, dtype=np.int64)
        for row, items in zip(inputs, recent, strict=True):
            row[len(row) - len(items) :] = items
        read = torch.from_numpy(inputs)
        vectors = None if self.content is None else self._catalogue.vectors
        hidden: Tensor = self.model(read, Dropout(), vectors=vectors)[:, -1]
        return hidden

    def _memory_settings(self, dataset: Dataset) -> MemorySettings:
        """The memory as the stage's nodes had it."""
        config, novelty = self.record["config"], self.record["memory_novelty"]
        assert novelty is not None  # noqa: S101 (for the type checker: a stage that mixes has one)
        sizes = (config["memory_short_term"], config["memory_long_term"])
        return memory_settings(dataset, *sizes, novelty, config["memory_surprise"])

    def _memory(self, content: Content, history: Ints) -> Memories:
        """The memory after a history, as the evaluation builds it: of a dataset with one user."""
        alone = replace(
            self.dataset,
            indptr=np.array([0, len(history)], dtype=np.int64),
            items=history.astype(np.int32),
        )
        settings = self._memory_settings(alone)
        rows, positions = np.zeros(1, dtype=np.int64), [np.array([len(history)])]
        memories = Recall(alone, content).memories(self.model, rows, positions, settings)
        return shared_bank(memories).memories(content)

    def _explain(
        self, state: Tensor, items: Tensor, memory: Memories
    ) -> tuple[Tensor, Tensor, Parts]:
        """Scores [N], router weights [N, 2] and parts of some items [N]."""
        assert self.content is not None  # noqa: S101 (for the type checker: callers asked)
        cold = torch.from_numpy(self.dataset.cold)[items]
        candidates = shared_candidates(self.model, self.content, items, cold)
        mixture = self.model.mix()
        said = mixture(state[None, None], candidates, memory)
        parts = parts_of(mixture, state, candidates, memory, said)
        return said.scores[0, 0], said.weights[0], parts


def usable(dataset: Dataset, history: list[int]) -> tuple[Ints, list[int]]:
    """A history [n] without cold items, and the cold ones. ``ConfigError`` if nothing is left."""
    cold = [item for item in history if dataset.cold[item]]
    kept = [item for item in history if not dataset.cold[item]]
    if not kept:
        raise ConfigError(
            "nothing in the history that the model was trained on",
            expected="at least one item that is not cold",
            got=f"{len(cold)} cold items" if cold else "an empty history",
        )
    return np.array(kept, dtype=np.int64), cold


def recommend(
    adviser: Adviser, past: Past, top: int, left_out: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """The best items with their parts, without some: those that were met, cold ones too."""
    scored = past.scored
    for item in best(scored.scores, top, left_out):
        yield {
            "item": item,
            "score": float(scored.scores[item]),
            "parts": dict(zip(PARTS, scored.shares[item].tolist(), strict=True)),
            "led_by": leading_part(scored, item, left_out),
            "router": dict(zip(MODALITIES, scored.router[item].tolist(), strict=True)),
            "attention": dict(zip(MODALITIES, scored.attended[item].tolist(), strict=True)),
            "reasons": adviser.reasons(past, item),
        }


def best(scores: Tensor, top: int, left_out: Sequence[int]) -> list[int]:
    """The items of the highest ``scores`` [I + 1], without some; of equal ones the first."""
    scores = scores.clone()
    scores[torch.tensor(left_out, dtype=torch.long)] = -torch.inf
    order = scores.argsort(descending=True, stable=True)[:top]
    return [int(item) for item in order if torch.isfinite(scores[item])]


def leading_part(scored: Scored, item: int, left_out: Sequence[int]) -> str:
    """The part without which the item would fall furthest, among all that might be listed.

    Each part is taken from all candidates' scores in turn. Where no fall is further than another,
    it is the part in which the item is furthest above the candidates' mean.
    """
    rivals = torch.isfinite(scored.scores)
    rivals[torch.tensor(left_out, dtype=torch.long)] = False
    rivals[item] = False
    without = scored.scores[:, None] - scored.shares  # [I + 1, 4]
    places = (without[rivals] >= without[item]).sum(0)  # [4]
    above = scored.shares[item] - scored.shares[rivals].mean(0).nan_to_num()
    falls = zip(places.tolist(), above.tolist(), PARTS, strict=True)
    return max(falls, key=lambda fall: fall[:2])[2]


def rank_of(past: Past, item: int) -> int:
    """An item's rank, from 1, among the candidates not met before; ties count against it."""
    scores = past.scored.scores
    ahead = ~(scores < scores[item]) & torch.isfinite(scores)
    ahead[torch.from_numpy(past.history)] = False
    ahead[item] = False
    return 1 + int(ahead.sum())
