"""Evaluation cases: what targets are ranked among, against a reference in plain Python."""

import hashlib

import numpy as np
import pytest
import torch

from client_app.data.dataset import Dataset, Split, open_dataset
from client_app.evaluation.cases import make_cases, protocol_ranks, warm_candidates
from client_app.evaluation.evaluate import evaluate_users
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import ModelShape, build
from shared_model.protocol.metrics import SAMPLED
from tests.conftest import MakeDataset


def history(dataset: Dataset, row: int) -> list[int]:
    return dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]].tolist()


def test_negatives_are_distinct_unmet_warm_items(demo_folder) -> None:
    dataset = open_dataset(demo_folder)
    rows = np.arange(dataset.num_users)
    cases = make_cases(dataset, rows, "valid", 3, 50)
    assert cases.negatives.shape == (dataset.num_users, SAMPLED)
    for row, negatives in zip(rows, cases.negatives.tolist(), strict=True):
        assert len(set(negatives)) == SAMPLED
        assert not set(negatives) & set(history(dataset, row))  # nor what is held out
        assert not dataset.cold[negatives].any()
        assert min(negatives) >= 1


def test_negatives_are_uniform_and_belong_to_user_split_and_seed(demo_folder) -> None:
    dataset = open_dataset(demo_folder)
    rows = np.arange(dataset.num_users)
    drawn = np.concatenate(
        [
            make_cases(dataset, rows, "test", seed, 50).negatives.numpy().ravel()
            for seed in range(30)
        ]
    )
    counts = np.bincount(drawn, minlength=501)[1:][~dataset.cold[1:]]
    unmet = np.array([dataset.num_users] * 501)
    np.subtract.at(unmet, dataset.items, 1)
    rate = counts / unmet[1:][~dataset.cold[1:]]
    assert rate.std() / rate.mean() < 0.03  # about 1 / sqrt(1300) from chance alone
    first = make_cases(dataset, rows, "test", 0, 50).negatives
    assert (first[5:6] == make_cases(dataset, rows[5:6], "test", 0, 50).negatives).all()
    assert (first != make_cases(dataset, rows, "valid", 0, 50).negatives).any()
    assert (first != make_cases(dataset, rows, "test", 1, 50).negatives).any()


@pytest.mark.parametrize(
    ("split", "digest"), [("valid", "317df71ec153b017"), ("test", "e629179126417763")]
)
def test_negatives_of_recorded_figures_stay(
    make_dataset: MakeDataset, split: Split, digest: str
) -> None:
    """The draws of group "all" as they were when the first results were recorded."""
    histories = {u: [(37 * u + 17 * n) % 300 + 1 for n in range(20)] for u in range(40)}
    dataset = make_dataset(histories, num_items=300, cold=range(5, 300, 7))
    negatives = make_cases(dataset, np.arange(40), split, 3, 50).negatives.numpy()
    assert hashlib.sha256(negatives.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_a_small_catalogue_gives_fewer_negatives(small_dataset: Dataset) -> None:
    rows = np.arange(small_dataset.num_users)
    cases = make_cases(small_dataset, rows, "test", 0, 50)
    for row, negatives in zip(rows, cases.negatives.tolist(), strict=True):
        unmet = set(range(1, 31)) - set(history(small_dataset, row))
        assert sorted(negatives) == [0] * (SAMPLED - len(unmet)) + sorted(unmet)


def test_who_met_the_whole_catalogue_is_left_out(make_dataset: MakeDataset) -> None:
    """Nothing to rank among is no hit: an untrained model has no 1.0 on 9 items."""
    histories = {u: [(u + n) % 9 + 1 for n in range(9)] for u in range(6)}
    histories |= {u: [(u + n) % 9 + 1 for n in range(6)] for u in range(6, 10)}
    dataset = make_dataset(histories, num_items=9)
    model = build(ModelShape(9, 16, 2, 1, 8), 0)
    report = evaluate_users(model, dataset, np.arange(10), "test", 0).report()["all"]
    assert {p: report[p]["users"] for p in report} == {
        "uniform-100": 4.0,
        "full": 10.0,
        "full-unseen": 4.0,
    }
    assert {p: report[p]["candidates"] for p in report} == {
        "uniform-100": 3.0,  # of the 9, the user met 6
        "full": 8.0,
        "full-unseen": 3.0,  # and the target is one of the 4 that its input lacks
    }


def brute_force_rank(scores: list[float], target: int, candidates: set[int]) -> int:
    return sum(not scores[item] < scores[target] for item in candidates - {target})


def test_ranks_equal_brute_force_with_ties_and_nan(make_dataset: MakeDataset) -> None:
    random = np.random.default_rng(1)
    histories = {
        u: (random.permutation(40)[: random.integers(5, 20)] + 1).tolist() for u in range(30)
    }
    dataset = make_dataset(histories, num_items=40, cold={4, 17})
    rows = np.arange(dataset.num_users)
    scores = torch.from_numpy(random.integers(0, 6, (len(rows), 41)).astype(np.float32))  # ties
    scores[3] = float("nan")
    for split, held_out in (("valid", 2), ("test", 1)):
        cases = make_cases(dataset, rows, split, 0, 50)
        ranks = protocol_ranks(scores, cases, warm_candidates(dataset))
        warm = set(range(1, 41)) - {4, 17}
        for row in rows:
            met = history(dataset, row)
            target, seen = met[-held_out], set(met[:-held_out])
            assert int(cases.targets[row]) == target
            of = scores[row].tolist()
            sampled = set(cases.negatives[row].tolist()) - {0}
            among = {"full": warm, "full-unseen": warm - seen, "uniform-100": sampled}
            for protocol, competing in among.items():
                found = ranks[protocol]
                assert found.ranks[row] == brute_force_rank(of, target, competing)
                assert found.candidates[row] == len(competing - {target})


def test_evaluation_equals_one_user_at_a_time(small_dataset: Dataset) -> None:
    model = build(ModelShape(30, 16, 2, 1, 8), 0)
    rows = np.arange(small_dataset.num_users)
    together = evaluate_users(model, small_dataset, rows, "test", 0).report()["all"]
    ranks = []
    for row in rows:
        met = history(small_dataset, row)
        hidden = model(torch.tensor([met[:-1][-8:]]), Dropout())[:, -1]
        scores = model.score(hidden)[0].tolist()
        ranks.append(brute_force_rank(scores, met[-1], set(range(1, 31))))
    assert together["full"]["hr@10"] == np.mean([rank < 10 for rank in ranks])
    assert together["full"]["users"] == len(rows)
