"""Attack 1: which items did the users of an update meet?

Who sees a node's summed update looks at its rows of the item table. Stage 1 has a full softmax, so
every row moves: an item that came next somewhere along the states before it, the others a little
against all of them. Two scores of a row, of which the better one counts:

row norm: its length. That embedding rows tell what was looked up: Melis et al., "Exploiting
    Unintended Feature Leakage in Collaborative Learning" (IEEE S&P 2019), section IV.
shadow direction: its projection on the difference between the rows of items met and not met in the
    updates of made-up users (shadow data: Shokri et al., IEEE S&P 2017). Worse in a clean update,
    better in a noisy one: noise fills all D dimensions of a row, of which this is one.

Later stages freeze the table: audit_content.py. Letters: W warm items, D hidden size.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from client_app.data.dataset import Ints
from feddmmr.audit.content import content_cases
from feddmmr.audit.defences import Privacy
from feddmmr.audit.run import AuditedRun
from feddmmr.audit.scores import Floats, auc, precision_at
from feddmmr.audit.updates import ALONE, SEEN, VIEWS, Attacker, Score, made_up_users
from shared_model.model.recommender import Arrays
from shared_model.seeds import mix, stable_hash

COHORTS = (1, 10, 100)
ITEMS = "items"  # what the progress calls it
TABLE = "item_embedding.weight"
_MEMBER = "AUC, one member"
Figures = dict[tuple[str, str, str], list[float]]  # (metric, view, score): one a cohort


def items_attack(run: AuditedRun, privacy: Privacy, users: int) -> list[dict[str, Any]]:
    """The attack on each complete stage, on the first round's arrays and on the released ones, for
    each size of a cohort.

    ``users`` users, in the order of a hash, are cut into cohorts; a larger cohort is one.
    """
    order = attacked_order(run)
    rows: list[dict[str, Any]] = []
    for when, attacker, score in chain(table_cases(run, privacy), content_cases(run, privacy)):
        for size in (size for size in COHORTS if size <= run.dataset.num_users):
            chosen = order[: size * _cohorts(users, size)]
            figures: Figures = defaultdict(list)
            for cohort in chosen.reshape(-1, size):
                _attack(attacker, cohort, score, figures)
                run.progress.step(ITEMS, size)
            rows += _rows(f"{when}, {size} user{'s' if size > 1 else ''}", figures)
    return rows


def attacked_order(run: AuditedRun) -> Ints:
    """All users, by a hash: the first ones are attacked."""
    return np.argsort(mix(stable_hash(run.settings.seed, "audit"), run.dataset.user_keys))


def expect_items(run: AuditedRun, users: int) -> None:
    """Tell the run's progress how many users' updates will be read: twice for each stage."""
    complete = [r for r in run.document["stages"].values() if r["status"] == "complete"]
    sizes = [size for size in COHORTS if size <= run.dataset.num_users]
    once = sum(size * _cohorts(users, size) for size in sizes)
    run.progress.expect(ITEMS, "update", 2 * len(complete) * once)


def _cohorts(users: int, size: int) -> int:
    """How many cohorts of a size there are; a larger cohort than all ``users`` is one."""
    return max(1, users // size)


def table_cases(run: AuditedRun, privacy: Privacy) -> Iterator[tuple[str, Attacker, Score]]:
    """Stage 1, whose updates have the item table."""
    for when, arrays in (("first round", None), ("released", run.released.arrays)):
        model = run.model(arrays)
        attacker = Attacker(run.dataset, run.settings, privacy, run.noise_key, model, (TABLE,))
        yield when, attacker, by_row(attacker, direction(attacker))


def direction(attacker: Attacker) -> Floats:
    """Mean row of an item met minus that of an item not met, over made-up users. [D]"""
    dataset = made_up_users(attacker.dataset, attacker.warm, attacker.settings.seed)
    tables = [
        (_table(attacker, seen), met) for seen, met in replace(attacker, dataset=dataset).shadows()
    ]
    differences = [table[met].mean(0) - table[~met].mean(0) for table, met in tables]
    mean: Floats = np.mean(differences, axis=0)
    return mean


def by_row(attacker: Attacker, along: Floats) -> Score:
    """Both scores of every row of an update."""

    def score(seen: Arrays) -> dict[str, Floats]:
        table = _table(attacker, seen)
        return {"row norm": np.linalg.norm(table, axis=1), "shadow direction": table @ along}

    return score


def _table(attacker: Attacker, seen: Arrays) -> Floats:
    """An update's rows of the warm items. [W, D]"""
    table: Floats = seen[TABLE].numpy()[attacker.warm]
    return table


def _attack(attacker: Attacker, cohort: Ints, score: Score, figures: Figures) -> None:
    """Add what is found about one cohort under every view; an AUC of a full union is none."""
    union = attacker.met(cohort)
    members = [attacker.met(cohort[place : place + 1]) for place in range(len(cohort))]
    for view, seen in attacker.views(cohort).items():
        for name, values in score(seen).items():
            precise = precision_at(values, union, int(union.sum()))
            figures["precision", view, name].append(precise)
            figures["AUC", view, name] += _known(auc(values, union))
            if len(cohort) > 1:
                of_each = [found for met in members for found in _known(auc(values, met))]
                figures[_MEMBER, view, name].append(float(np.mean(of_each)))
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
            for view in VIEWS
        }
        yield {
            "attack": "items",
            "case": case,
            "metric": metric,
            **{view: max(means[view].values()) for view in SEEN},
            "chance": chances.get(metric, 0.5),
            "control": max(means[ALONE].values()),
            "scores": means,
        }
