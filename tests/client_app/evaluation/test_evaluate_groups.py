"""Every group, bucket and protocol of an evaluation, against a loop over users in plain Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_app.data.dataset import cold_rows, open_dataset
from client_app.evaluation.cases import make_cases
from client_app.evaluation.evaluate import evaluate_users
from client_app.evaluation.target_groups import COLD_GROUPS, WARM_GROUPS
from feddmmr.data.importers import split_dataset
from shared_model.protocol.metrics import PROTOCOLS, Report, merge
from tests.support.evaluated import (
    evaluated,
    mixing,
)
from tests.support.naive_evaluation import (
    FEW_COLD,
    HISTORIES,
    ITEMS,
    MANY_COLD,
    SEED,
    TableModel,
    naive_report,
    write,
)


def flat(report: Report) -> dict[str, float]:
    cells = {f"{g}/{p}": c for g, ps in report.items() for p, c in ps.items()}
    return {f"{name}/{metric}": v for name, cell in cells.items() for metric, v in cell.items()}


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("cold", [MANY_COLD, FEW_COLD, frozenset()], ids=["many", "few", "none"])
def test_every_figure_equals_a_loop_over_users(
    tmp_path: Path, cold: frozenset[int], split: str, mixes: bool
) -> None:
    dataset = write(tmp_path / "data", HISTORIES, cold)
    report = evaluated(dataset, np.arange(dataset.num_users), split, mixes).report()
    expected = naive_report(TableModel(), HISTORIES, cold, split, mixes)
    assert flat(report) == pytest.approx(flat(expected), rel=1e-12)
    cold_groups = {"all-with-cold", *(COLD_GROUPS if split == "test" else ())} if cold else set()
    cold_groups |= {"as-cold"} if mixes else set()
    lengths = {f"history-{name}" for name in ("short", "medium", "long")}
    popular = {f"popularity-{name}" for name in ("head", "middle", "tail")}
    assert set(report) == {"all"} | cold_groups | lengths | popular
    for group in ({"all"} | cold_groups) & set(report):
        assert set(report[group]) == set(PROTOCOLS)
    for kind in (lengths, popular):  # everyone is in one bucket of a kind
        for protocol in ("uniform-100", "full"):
            users = sum(report[bucket][protocol]["users"] for bucket in kind)
            assert users == report["all"][protocol]["users"] == dataset.num_users


@pytest.mark.parametrize("parts", [2, 7, None])
def test_sums_of_nodes_add_up_to_the_whole(tmp_path: Path, parts: int | None) -> None:
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows, parts = np.arange(dataset.num_users), parts or dataset.num_users
    whole = merge([evaluated(dataset, rows, "test").sums])
    nodes = [evaluated(dataset, rows[part::parts], "test").sums for part in range(parts)]
    assert merge(nodes).sums == pytest.approx(whole.sums, rel=1e-12)


def test_nodes_with_folders_of_their_own_give_the_same_sums(tmp_path: Path) -> None:
    whole = write(tmp_path / "data", HISTORIES, MANY_COLD)
    split_dataset(whole.folder, tmp_path / "parts", 3)
    parts = [open_dataset(tmp_path / "parts" / f"part-{n}") for n in range(3)]
    assert {part.catalogue_sha256 for part in parts} == {whole.catalogue_sha256}
    sums = [evaluated(part, np.arange(part.num_users), "test").sums for part in parts]
    everyone = evaluated(whole, np.arange(whole.num_users), "test")
    assert merge(sums).sums == pytest.approx(everyone.sums, rel=1e-12)


def test_a_user_is_forwarded_once_and_a_cold_case_once(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows = np.arange(dataset.num_users)
    for split, passes in (
        ("valid", len(rows)),
        ("test", len(rows) + len(cold_rows(dataset, rows))),
    ):
        for given in (None, mixing(dataset)):
            model: Any = TableModel()
            evaluate_users(model, dataset, rows, split, SEED, given)
            assert model.forwarded == passes


def test_a_model_that_cannot_score_cold_items_gets_nothing_by_chance(tmp_path: Path) -> None:
    """Untrained rows would put cold items first; without a mixture they are never looked at."""
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows, model = np.arange(dataset.num_users), TableModel()
    for table in (model.table, model.content_table):
        table[:, dataset.cold] = 99.0
    for given in (None, mixing(dataset)):
        report = evaluate_users(model, dataset, rows, "test", SEED, given).report()  # type: ignore
        alone, crowded = report["all"]["full"]["hr@10"], report["all-with-cold"]["full"]["hr@10"]
        assert crowded == (0 if given else alone)
    for table in (model.table, model.content_table):
        table[:] = torch.arange(ITEMS + 1.0)
    model.bonus = 0.0
    report = evaluate_users(model, dataset, rows, "test", SEED).report()  # type: ignore
    assert {report[g][p]["hr@20"] for g in COLD_GROUPS for p in PROTOCOLS} == {0.0}
    able = evaluate_users(model, dataset, rows, "test", SEED, mixing(dataset)).report()  # type: ignore
    assert all(able[g]["full"]["hr@20"] > 0 for g in COLD_GROUPS)
    assert able["all"] == able["as-cold"] == report["all"]


def test_groups_of_a_split_share_all_but_their_negatives(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", HISTORIES, MANY_COLD)
    rows = cold_rows(dataset, np.arange(dataset.num_users))
    for split, groups in (("test", WARM_GROUPS), ("cold", COLD_GROUPS)):
        first, second = (make_cases(dataset, rows, split, 0, 9, group) for group in groups)  # type: ignore
        for name in ("inputs", "targets", "seen"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(first.negatives, second.negatives)
