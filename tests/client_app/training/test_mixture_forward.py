"""The forward pass of training, against what evaluation makes of the same users."""

import dataclasses

import numpy as np
import pytest
import torch

from client_app.data.content import open_content
from client_app.data.dataset import Dataset
from client_app.evaluation.candidates import shared_candidates
from client_app.memory.cache import Recall
from client_app.training.mixture_objective import MixtureObjective
from shared_model.errors import ModelError
from shared_model.model.catalogue.whole import embedded
from shared_model.model.dropout import Dropout
from shared_model.model.sasrec import PAD
from tests.conftest import MakeDataset
from tests.support.mixed import (
    ITEMS,
    LONGEST,
    MIXING,
    PLAN,
    everyone,
    mixed_dataset,
    mixed_histories,
    trained_model,
)

STAGE = pytest.mark.parametrize("stage", [2, 3])
NOTHING_DROPPED = dataclasses.replace(MIXING, id_dropout=0.0, content_dropout=0.0, targets=20)


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    return mixed_dataset(make_dataset, mixed_histories(9))


@STAGE
@torch.no_grad()
def test_training_scores_what_evaluation_scores(dataset: Dataset, stage: int) -> None:
    """Without dropout: histories are made of the same vectors, and candidates compete by them."""
    model, recall = trained_model(stage), Recall(dataset, open_content(dataset, "both"))
    plan = dataclasses.replace(PLAN, stage=stage, dropout=0.0)
    objective = MixtureObjective(model, dataset, plan, NOTHING_DROPPED, recall)
    batch = objective.batch(everyone(dataset))
    keys = torch.zeros(len(batch.keys), dtype=torch.int64)
    _, said = objective.forward(batch.tensors, keys, objective.as_cold)
    catalogue = model.catalogue(*features(recall), torch.from_numpy(dataset.cold))
    vectors = catalogue_vectors(objective, dataset)
    for user in range(dataset.num_users):  # at the last position, where an evaluation stands
        *before, target = dataset.items[
            dataset.indptr[user] : dataset.indptr[user + 1] - 2
        ].tolist()
        inputs = torch.tensor([before[-LONGEST:]])
        hidden = model(inputs, Dropout(), vectors=vectors)[:, -1]
        rows, lengths = np.array([user]), np.array([len(before)])
        held = recall.held(model, rows, lengths, objective.settings)
        scores, _ = catalogue.around(hidden, held, torch.tensor([target]))
        position = batch.tensors["candidates"][user].tolist().index(target)
        torch.testing.assert_close(said.scores[user, position, position], scores[0, target])


def features(recall: Recall) -> tuple[torch.Tensor, torch.Tensor]:
    visual, text = recall.content.visual, recall.content.text
    assert isinstance(visual, torch.Tensor)
    assert isinstance(text, torch.Tensor)
    return visual, text


def catalogue_vectors(objective: MixtureObjective, dataset: Dataset) -> torch.Tensor:
    everything, cold = torch.arange(ITEMS + 1), torch.from_numpy(dataset.cold)
    items = shared_candidates(objective.model, objective.content, everything, cold)
    return embedded(objective.model.mix(), items).vectors[0]


def test_dropped_ids_are_read_where_the_backbone_learns_to(dataset: Dataset) -> None:
    """In Stage 3; what is scored changes in both."""
    for stage, reads in ((2, False), (3, True)):
        model, recall = trained_model(stage), Recall(dataset, open_content(dataset, "both"))
        objective = MixtureObjective(
            model, dataset, dataclasses.replace(PLAN, stage=stage), NOTHING_DROPPED, recall
        )
        tensors = objective.batch(everyone(dataset)).tensors
        keys, states = torch.zeros(dataset.num_users, dtype=torch.int64), []
        met = torch.zeros(ITEMS + 1, dtype=torch.bool)
        met[tensors["inputs"].unique()] = True
        met[PAD] = False
        for as_cold in (objective.as_cold, objective.as_cold | met):
            with torch.no_grad():
                objective.forward.model.mix().gate.zero_()
                _, said = objective.forward(tensors, keys, as_cold)
            warm = ~(objective.as_cold | met)[tensors["candidates"]] & (tensors["candidates"] > 0)
            states.append(said.scores.mT[warm])
        assert len(states[0]) > 0
        assert torch.equal(*states) is not reads


def test_a_mixture_is_not_asked_for_histories_of_ids_alone(dataset: Dataset) -> None:
    model = trained_model(3)
    inputs = torch.tensor([[1, 2]])
    with pytest.raises(ModelError, match="IDs and content"):
        model(inputs, Dropout())
    ids = model(inputs, Dropout(), vectors=model.item_embedding.weight)
    assert ids.shape == (1, 2, model.shape.hidden)
