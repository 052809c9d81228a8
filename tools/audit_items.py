"""Attack 1: which items did the users of an update meet?

Who sees a node's summed update looks at its rows of the item table. Stage 1 has a full softmax, so
every row moves: an item that came next somewhere along the states before it, the others a little
against all of them. Two scores of a row, of which the better one counts:

row norm: its length. That embedding rows tell what was looked up: Melis et al., "Exploiting
    Unintended Feature Leakage in Collaborative Learning" (IEEE S&P 2019), section IV.
shadow direction: its projection on the difference between the rows of items met and not met in the
    updates of made-up users (shadow data: Shokri et al., IEEE S&P 2017). Worse in a clean update,
    better in a noisy one: noise fills all D dimensions of a row, of which this is one.

Letters: U users of a cohort, W warm items, D hidden size.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from client_app.clipping import with_noise
from client_app.data import Dataset, Ints, Rows
from client_app.train import train_round
from shared_model.model import Recommender
from shared_model.plan import LocalUpdate, RoundPlan
from shared_model.seeds import mix, rng, stable_hash
from tools.audit_defences import CLIPPING, NOISE, UNDEFENDED, Privacy
from tools.audit_run import STAGE, AuditedRun
from tools.audit_scores import Bools, Floats, auc, precision_at

COHORTS = (1, 10, 100)
SHADOWS = 20  # made-up users
SHARE, ALONE = "noise share", "noise alone"
_TABLE = "item_embedding.weight"
_SEEN = (UNDEFENDED, CLIPPING, NOISE, SHARE)
_VIEWS = (*_SEEN, ALONE)
_MEMBER = "AUC, one member"
Figures = dict[tuple[str, str, str], list[float]]  # (metric, view, score): one a cohort


def items_attack(run: AuditedRun, privacy: Privacy, users: int) -> list[dict[str, Any]]:
    """The attack on the first round's arrays and on the released ones, for each size of a cohort.

    ``users`` users, in the order of a hash, are cut into cohorts; a larger cohort is one.
    """
    order = np.argsort(mix(stable_hash(run.settings.seed, "audit"), run.dataset.user_keys))
    rows = []
    for when, arrays in (("first round", None), ("released", run.released.arrays)):
        attacker = Attacker(run, privacy, run.model(arrays))
        direction = attacker.direction()
        for size in (size for size in COHORTS if size <= run.dataset.num_users):
            chosen = order[: max(size, users // size * size)]
            figures: Figures = defaultdict(list)
            for cohort in chosen.reshape(-1, size):
                _attack(attacker, cohort, direction, figures)
            rows += _rows(f"{when}, {size} user{'s' if size > 1 else ''}", figures)
    return rows


@dataclass(frozen=True)
class Attacker:
    """Who knows the model of a round, and sees what a node answers."""

    run: AuditedRun
    privacy: Privacy
    model: Recommender

    @property
    def warm(self) -> Rows:
        """The items that can be trained on. [W]"""
        items: Rows = np.flatnonzero(~self.run.dataset.cold[1:]) + 1
        return items

    def views(self, rows: Rows) -> dict[str, Floats]:
        """What is seen of the sum of users ``rows`` [U], by defence. [W, D] each.

        "clipping + noise" has the noise of a whole round, as if nobody else had taken part;
        "noise share" a node's part of it, as nodes that draw it send it; "noise alone" no update.
        """
        dataset, everyone = self.run.dataset, self.run.dataset.num_users
        plain = self._trained(dataset, rows, self._plan(self.run.settings.weighting))
        plan = replace(
            self._plan("uniform"),
            clip_norm=self.privacy.clip_norm,
            noise_std=self.privacy.clip_norm * self.privacy.multiplier,
            total_users=everyone,
            draw=f"audit {dataset.user_keys[rows[0]]} of {len(rows)}",
        )
        clipped = self._trained(dataset, rows, replace(plan, draw=""))
        nothing = replace(clipped, arrays={_TABLE: torch.zeros_like(clipped.arrays[_TABLE])})
        secret = self.run.noise_key
        seen = {
            UNDEFENDED: plain,
            CLIPPING: clipped,
            NOISE: with_noise(clipped, plan, secret, everyone),
            SHARE: with_noise(clipped, plan, secret, len(rows)),
            ALONE: with_noise(nothing, plan, secret, everyone),
        }
        return {name: self._table(update) for name, update in seen.items()}

    def direction(self) -> Floats:
        """Mean row of an item met minus that of an item not met, over made-up users. [D]"""
        dataset = made_up_users(self.run.dataset, self.warm, self.run.settings.seed)
        differences = []
        for row in range(dataset.num_users):
            rows = np.array([row])
            update = self._table(self._trained(dataset, rows, self._plan("uniform")))
            met = self.met(dataset, rows)
            differences.append(update[met].mean(0) - update[~met].mean(0))
        mean: Floats = np.mean(differences, axis=0)
        return mean

    def met(self, dataset: Dataset, rows: Rows) -> Bools:
        """Which warm items users ``rows`` trained on, as targets or inputs. [W]"""
        ends, most = dataset.indptr[rows + 1] - 2, self.run.settings.max_length + 1
        starts = np.maximum(dataset.indptr[rows], ends - most)
        histories = [dataset.items[start:end] for start, end in zip(starts, ends, strict=True)]
        found: Bools = np.isin(self.warm, np.concatenate(histories))
        return found

    def _trained(self, dataset: Dataset, rows: Rows, plan: RoundPlan) -> LocalUpdate:
        """The item table's part of what a node answers."""
        update = train_round(self.model, dataset, rows, plan, self.run.settings.users_per_batch)
        return replace(update, arrays={_TABLE: update.arrays[_TABLE].cpu()})

    def _table(self, update: LocalUpdate) -> Floats:
        table: Floats = update.arrays[_TABLE].numpy()[self.warm]
        return table

    def _plan(self, weighting: str) -> RoundPlan:
        """Round 1 of everyone who is asked."""
        settings = self.run.settings
        return RoundPlan(
            stage=STAGE.number,
            round=1,
            seed=settings.seed,
            fraction=1.0,
            local_steps=settings.local_steps,
            learning_rate=settings.client_learning_rate,
            weighting=weighting,
            dropout=settings.dropout,
            app_sha256="",
            catalogue_sha256="",
        )


def made_up_users(dataset: Dataset, warm: Rows, seed: int) -> Dataset:
    """SHADOWS users of the usual length, whose items are drawn uniformly and never twice."""
    usual = int(np.median(np.diff(dataset.indptr)))
    length = max(4, min(usual, len(warm) // 2))
    histories = [rng(seed, "shadow", n).permutation(warm)[:length] for n in range(SHADOWS)]
    return replace(
        dataset,
        user_keys=np.arange(SHADOWS, dtype=np.uint64),
        indptr=np.arange(SHADOWS + 1, dtype=np.int64) * length,
        items=np.concatenate(histories).astype(np.int32),
        cold_target=np.zeros(SHADOWS, np.int32),
        cold_length=np.zeros(SHADOWS, np.int32),
    )


def item_scores(update: Floats, direction: Floats) -> dict[str, Floats]:
    """Both scores of every row of an update. ``update`` [W, D], ``direction`` [D] -> [W] each."""
    return {"row norm": np.linalg.norm(update, axis=1), "shadow direction": update @ direction}


def _attack(attacker: Attacker, cohort: Ints, direction: Floats, figures: Figures) -> None:
    """Add what is found about one cohort under every view; an AUC of a full union is none."""
    dataset = attacker.run.dataset
    union = attacker.met(dataset, cohort)
    members = [attacker.met(dataset, cohort[place : place + 1]) for place in range(len(cohort))]
    for view, update in attacker.views(cohort).items():
        for score, values in item_scores(update, direction).items():
            precise = precision_at(values, union, int(union.sum()))
            figures["precision", view, score].append(precise)
            figures["AUC", view, score] += _known(auc(values, union))
            if len(cohort) > 1:
                of_each = [found for met in members for found in _known(auc(values, met))]
                figures[_MEMBER, view, score].append(float(np.mean(of_each)))
    figures["precision", "chance", ""].append(float(union.mean()))


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _rows(case: str, figures: Figures) -> Iterator[dict[str, Any]]:
    """A row a metric: under each view the better score's mean over the cohorts.

    None for the union of cohorts that met every item: there is nothing to tell.
    """
    chances = {"precision": float(np.mean(figures["precision", "chance", ""]))}
    for metric in dict.fromkeys(metric for metric, _, _ in figures):
        if chances["precision"] == 1.0 and metric != _MEMBER:
            continue
        means = {
            view: {
                score: float(np.mean(values))
                for (of, under, score), values in figures.items()
                if (of, under) == (metric, view)
            }
            for view in _VIEWS
        }
        yield {
            "attack": "items",
            "case": case,
            "metric": metric,
            **{view: max(means[view].values()) for view in _SEEN},
            "chance": chances.get(metric, 0.5),
            "control": max(means[ALONE].values()),
            "scores": means,
        }
