"""What Stages 2 and 3 train: the loss against plain loops, what is sampled, what is remembered."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app.data.content import open_content
from client_app.data.dataset import Dataset
from client_app.memory.cache import Recall
from client_app.training.mixture_objective import MixtureObjective
from client_app.training.objective import Batch
from shared_model.model.dropout import Dropout
from shared_model.model.mixture import Candidates, Memories, Scores
from shared_model.model.sasrec import PAD
from shared_model.protocol.plan import MixturePlan
from shared_model.seeds import STRIDE
from tests.conftest import MakeDataset
from tests.support.mixed import (
    COLD,
    ITEMS,
    LONGEST,
    MIXING,
    PLAN,
    everyone,
    mixed_dataset,
    mixed_histories,
    trained_model,
)
from tests.support.naive_mixture import S, V

EVERYTHING = dataclasses.replace(MIXING, targets=20, negatives=60)  # nothing is left to a sample
STAGE = pytest.mark.parametrize("stage", [2, 3])


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    return mixed_dataset(make_dataset, mixed_histories())


def objective_of(
    dataset: Dataset, stage: int = 2, round_: int = 3, mixing: MixturePlan = MIXING
) -> MixtureObjective:
    plan = dataclasses.replace(PLAN, stage=stage, round=round_)
    recall = Recall(dataset, open_content(dataset, "both"))
    return MixtureObjective(trained_model(stage), dataset, plan, mixing, recall)


def train_items(dataset: Dataset, row: int) -> list[int]:
    return dataset.items[dataset.indptr[row] : dataset.indptr[row + 1] - 2].tolist()


def own_targets(batch: Batch, user: int) -> list[int]:
    real = batch.tensors["real"][user]
    return batch.tensors["candidates"][user, : len(real)][real].tolist()


@torch.no_grad()
def naive_loss(
    objective: MixtureObjective, batch: Batch, user: int, keys: Tensor
) -> dict[str, float]:
    """One user's losses from their definitions: the full softmax at each target, over all warm
    items but those of its own history that the round scores as if cold."""
    plan, dataset, model = objective.mixing, objective.dataset, objective.model
    train = train_items(dataset, user)
    as_cold = {item for item in range(1, dataset.num_items + 1) if objective.as_cold[item]}
    targets = own_targets(batch, user)
    drawn = batch.tensors["candidates"][user, -batch.tensors["negative"].shape[1] :]
    negatives = drawn[batch.tensors["negative"][user]].tolist()
    inputs = torch.tensor([train[:-1][-model.shape.max_length :]])
    history = candidates(objective, inputs[0].tolist())
    if model.stage.number == 2:  # a frozen backbone reads every item with its ID
        history = dataclasses.replace(history, cold=torch.zeros_like(history.cold))
    read = model.mix().embed(history, content_dropout(objective, inputs[0], keys[user]))
    dropout = Dropout(objective.forward.rate, keys[[user]])
    hidden = model.backbone(read.vectors, inputs != PAD, dropout)[0]
    offset, nexts, alignments = len(train) - 1 - inputs.shape[1], [], []
    for target in targets:
        place = train.index(target)
        state = hidden[place - 1 - offset]
        among = [
            item for item in warm_items(dataset) if item not in set(train) & as_cold - {target}
        ]
        result = naive_result(
            objective, among, state, memory_before(objective, user, place), keys[user]
        )
        scores = result.scores[0, 0].double()
        nexts.append(float(scores.logsumexp(0) - scores[among.index(target)]))
        among = targets + negatives
        result = naive_result(objective, among, state, nothing(), keys[user])
        content = result.content[0, among.index(target)].double()
        ids = model.item_embedding.weight[among].double()
        cosines = torch.cosine_similarity(content[None], ids) / plan.temperature
        own = cosines[among.index(target)]
        alignments.append(float(cosines.logsumexp(0) - own) if content.any() else 0.0)
    weighted = [a * (1 + plan.surprise_weight * n) for a, n in zip(alignments, nexts, strict=True)]
    total = np.mean(nexts) + plan.alignment_weight * np.mean(weighted)
    if model.stage.number == 3:
        listed = [item for item in batch.tensors["candidates"][user].tolist() if item]
        weights = model.mix()(hidden[None, :1], candidates(objective, listed), nothing()).weights[0]
        share = weights[(weights > 0).all(-1)].double().mean(0)
        total += plan.balance_weight * float(2 * (share - 0.5).square().sum())
    return {"total": total, "nats": sum(nexts), "alignment": np.mean(alignments)}


def warm_items(dataset: Dataset) -> list[int]:
    return [item for item in range(1, dataset.num_items + 1) if not dataset.cold[item]]


def naive_result(
    objective: MixtureObjective, among: list[int], state: Tensor, held: Memories, key: Tensor
) -> Scores:
    """What the mixture says of items at one position, with the round's content dropout."""
    thin = content_dropout(objective, torch.tensor(among), key)
    result: Scores = objective.model.mix()(
        state[None, None], candidates(objective, among), held, thin
    )
    return result


def content_dropout(objective: MixtureObjective, items: Tensor, key: Tensor) -> Dropout:
    names = key ^ (items * int(STRIDE.view(np.int64)))
    return Dropout(objective.mixing.content_dropout, names)


def candidates(objective: MixtureObjective, items: list[int]) -> Candidates:
    content, ids = objective.content, objective.model.item_embedding.weight[items]
    as_cold = objective.as_cold[items]
    parts = (ids, content.visual[items], content.text[items], as_cold, torch.tensor(items))
    return Candidates(*(part[None] for part in parts))


def nothing() -> Memories:
    features = torch.zeros(1, 1, V), torch.zeros(1, 1, S)
    return Memories(torch.zeros(1, 1), *features, torch.zeros(1, 1, 1) > 0)


def memory_before(objective: MixtureObjective, row: int, place: int) -> Memories:
    (memory,) = objective.recall.memories(
        objective.model, np.array([row]), [np.array([place])], objective.settings
    )
    items = [item for item in memory.slots[0].tolist() if item]
    content = objective.content
    held = torch.ones(1, 1, len(items), dtype=torch.bool)
    features = content.visual[items][None], content.text[items][None]
    return Memories(torch.tensor([items]), *features, held)


@STAGE
def test_the_loss_of_each_user_is_its_definition(make_dataset: MakeDataset, stage: int) -> None:
    """Where samples are everything. In one batch with users of other lengths, whose padding changes
    nothing."""
    dataset = mixed_dataset(make_dataset, mixed_histories(12))
    objective = objective_of(dataset, stage, mixing=EVERYTHING)
    batch = objective.batch(everyone(dataset))
    keys = torch.from_numpy(objective.plan.dropout_keys(batch.keys, 0))
    losses = objective.per_user_losses(
        dict(objective.model.named_parameters()), batch.tensors, keys
    )
    for user in range(dataset.num_users):
        expected = naive_loss(objective, batch, user, keys)
        assert float(losses.total.detach()[user]) == pytest.approx(expected["total"], rel=1e-4)
        assert float(losses.nats[user]) == pytest.approx(expected["nats"], rel=1e-4)
        assert float(losses.logs["alignment"][user]) == pytest.approx(
            expected["alignment"], rel=1e-4
        )
    weighted = objective.weighted(batch, keys)
    total = float((losses.total.detach() * batch.weights).sum())
    assert float(weighted.total.detach()) == pytest.approx(total, rel=1e-5)


def test_memory_holds_what_came_before_the_target_alone(dataset: Dataset) -> None:
    """Invariant 7: never the target, nothing later; the short-term memory in full."""
    objective = objective_of(dataset)
    tensors, met = objective.batch(everyone(dataset)).tensors, 0
    for user in range(dataset.num_users):
        train = train_items(dataset, user)
        for position in tensors["real"][user].nonzero().flatten().tolist():
            place = train.index(int(tensors["candidates"][user, position]))
            bank = tensors["bank"][user][tensors["held"][user, position]].tolist()
            assert set(train[max(0, place - MIXING.short_term) : place]) <= set(bank)
            assert set(bank) <= set(train[:place])
            met += len(bank) > MIXING.short_term
    assert met > 20


def test_targets_are_train_items_sampled_evenly(dataset: Dataset) -> None:
    counts = [dict.fromkeys(train_items(dataset, u)[1:][-LONGEST:], 0) for u in range(18)]
    rounds = 150
    for round_ in range(rounds):
        batch = objective_of(dataset, round_=round_).batch(everyone(dataset))
        for user in range(18):
            chosen = own_targets(batch, user)
            assert len(set(chosen)) == len(chosen) == min(MIXING.targets, len(counts[user]))
            for item in chosen:
                counts[user][item] += 1
    for own in counts:
        expected = rounds * min(MIXING.targets, len(own)) / len(own)
        assert all(abs(count - expected) < 4.5 * rounds**0.5 / 2 for count in own.values())


def test_negatives_do_not_spare_what_is_held_out(dataset: Dataset) -> None:
    """Uniform over all warm items, so that nobody learns from them what is held out."""
    drawn, held_out, rounds = np.zeros(ITEMS + 1), 0, 150
    for round_ in range(rounds):
        tensors = objective_of(dataset, round_=round_).batch(everyone(dataset)).tensors
        negatives = tensors["candidates"][:, -MIXING.negatives :].numpy()
        drawn += np.bincount(negatives.flatten(), minlength=ITEMS + 1)
        for user in range(18):
            end = dataset.indptr[user + 1]
            held_out += int(np.isin(negatives[user], dataset.items[end - 2 : end]).sum())
            expected = np.isin(negatives[user], train_items(dataset, user))
            assert (tensors["negative"][user, -MIXING.negatives :].numpy() == ~expected).all()
    assert not drawn[[0, *COLD]].any()
    each = drawn.sum() / (ITEMS - len(COLD))
    warm = np.delete(drawn, [0, *COLD])
    assert abs(warm - each).max() < 4.5 * each**0.5
    assert abs(held_out - 2 * 18 * each / 18) < 4.5 * (2 * each) ** 0.5


def test_a_share_of_the_known_items_is_scored_by_content(dataset: Dataset) -> None:
    masks = [objective_of(dataset, round_=r).as_cold.numpy() for r in range(60)]
    known = objective_of(dataset).content.combined.any(1)
    for mask in masks:
        assert mask[list(COLD)].all()
        assert not mask[~known & ~dataset.cold].any()
    share = np.mean([mask[known & ~dataset.cold] for mask in masks])
    assert share == pytest.approx(MIXING.id_dropout, abs=0.04)
    assert len({mask.tobytes() for mask in masks}) == len(masks)  # others in each round
    none = dataclasses.replace(MIXING, id_dropout=0.0)
    assert (objective_of(dataset, mixing=none).as_cold.numpy() == dataset.cold).all()


def test_the_record_counts_what_memories_did_up_to_the_last_target(dataset: Dataset) -> None:
    objective = objective_of(dataset)
    batch, written = objective.batch(everyone(dataset)), 0.0
    for user in range(dataset.num_users):
        train, recall = train_items(dataset, user), objective.recall
        last = np.array([max(train.index(item) for item in own_targets(batch, user))])
        (memory,) = recall.memories(objective.model, np.array([user]), [last], objective.settings)
        long_term = np.count_nonzero(memory.slots[0, MIXING.short_term :])
        left, short = max(0, last[0] - MIXING.short_term), min(last[0], MIXING.short_term)
        expected = [left, memory.writes, short, long_term]
        assert batch.tensors["memory"][user].tolist() == expected
        assert long_term <= memory.writes <= left
        written += memory.writes
    assert written > 20
