"""No leak (invariant 7): a probe that shares nothing and generalises nothing stays at chance.

The probe has one logit per user and item. It is trained on what the app trains on, with the
negatives that the app uses. It can only learn who is held out if that data says so: with a sampler
that also spares the held-out items, the same probe is perfect (anchors of the field were obtained
with such samplers).
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from client_app.data.dataset import Dataset, open_dataset
from client_app.evaluation.cases import make_cases, protocol_ranks, warm_candidates
from client_app.training.objective import BackboneObjective, participants
from shared_model.model.recommender import ModelShape, build
from shared_model.model.sasrec import PAD
from shared_model.protocol.metrics import SAMPLED, MetricSums
from shared_model.protocol.plan import RoundPlan

PLAN = RoundPlan(1, 1, 0, 1.0, 1, 1.0, "targets", 0.0, "", "")
CHANCE = 10 / (SAMPLED + 1)


def backbone_objective(dataset: Dataset, plan: RoundPlan) -> BackboneObjective:
    return BackboneObjective(build(ModelShape(dataset.num_items, 4, 1, 1, 200), 0), dataset, plan)


def probe_logits(dataset: Dataset, spare_held_out: bool) -> torch.Tensor:
    """Logits [U, I+1] of the probe, trained user by user on the app's own training batches."""
    generator = torch.Generator().manual_seed(0)
    logits = 0.01 * torch.randn(dataset.num_users, dataset.num_items + 1, generator=generator)
    objective = backbone_objective(dataset, PLAN)
    row_of = {key: row for row, key in enumerate(dataset.user_keys.tolist())}
    for users in np.array_split(participants(dataset, np.arange(dataset.num_users), PLAN), 4):
        batch = objective.batch(users)
        for key, targets in zip(batch.keys.tolist(), batch.tensors["targets"], strict=True):
            row = row_of[key]
            own = logits[row].clone().requires_grad_()
            positives = targets[targets != PAD]
            spared = torch.zeros(len(own), dtype=torch.bool)
            spared[objective.absent] = True
            if spare_held_out:
                held_out = dataset.items[dataset.indptr[row + 1] - 2 : dataset.indptr[row + 1]]
                spared[held_out.astype(np.int64)] = True
            optimizer = torch.optim.SGD([own], lr=5.0)
            for _ in range(20):
                repeated = own.masked_fill(spared, -1e9).expand(len(positives), -1)
                optimizer.zero_grad()
                functional.cross_entropy(repeated, positives).backward()
                optimizer.step()
            logits[row] = own.detach()
    return logits


def hit_rate(dataset: Dataset, logits: torch.Tensor) -> float:
    cases = make_cases(dataset, np.arange(dataset.num_users), "test", 0, 200)
    sums = MetricSums()
    ranks = protocol_ranks(logits, cases, warm_candidates(dataset))["uniform-100"]
    sums.add("all", "uniform-100", ranks)
    return sums.report()["all"]["uniform-100"]["hr@10"]


def test_a_memorising_probe_stays_at_chance(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    deviation = (CHANCE * (1 - CHANCE) / dataset.num_users) ** 0.5
    assert abs(hit_rate(dataset, probe_logits(dataset, False)) - CHANCE) < 3 * deviation


def test_the_same_probe_sees_a_leaky_sampler(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    assert hit_rate(dataset, probe_logits(dataset, True)) > 0.9


def test_batches_hold_train_items_only(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    objective = backbone_objective(dataset, PLAN)
    row_of = {key: row for row, key in enumerate(dataset.user_keys.tolist())}
    seen = 0
    for users in np.array_split(participants(dataset, np.arange(dataset.num_users), PLAN), 4):
        batch = objective.batch(users)
        for key, inputs, targets in zip(
            batch.keys.tolist(), batch.tensors["inputs"], batch.tensors["targets"], strict=True
        ):
            row = row_of[key]
            train = dataset.items[dataset.indptr[row] : dataset.indptr[row + 1] - 2].tolist()
            assert inputs[inputs > 0].tolist() == train[:-1]
            assert targets[targets != PAD].tolist() == train[1:]
            seen += 1
    assert seen == dataset.num_users


def test_fraction_decides_who_trains(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    plan = dataclasses.replace(PLAN, fraction=0.3, seed=4)
    everyone = np.arange(dataset.num_users)
    trained = dataset.user_keys[participants(dataset, everyone, plan)]
    expected = dataset.user_keys[plan.takes_part(dataset.user_keys)]
    assert sorted(trained) == sorted(expected)
