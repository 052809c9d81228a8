"""The audit on a small planted run: attacks find what is there, and nothing where nothing is.

Over 300 lines on purpose: every attack is made on the one run, which is trained once.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn.functional import cross_entropy

from client_app.data.compile import write_dataset
from feddmmr.audit.defences import DEFENCES, Privacy, overrides
from feddmmr.audit.items import items_attack
from feddmmr.audit.membership import TRAINED, attacked_users, losses, membership_figures
from feddmmr.audit.poison import unnoticed
from feddmmr.audit.promotion import CRAFTED, MADE_UP, Promotion, exposure
from feddmmr.audit.run import AuditedRun, open_run
from feddmmr.audit.scores import auc, chance_deviation, precision_at, true_positives
from feddmmr.audit.updates import Attacker
from feddmmr.launch.in_process import run_in_process
from server_app.aggregation.aggregate import IMPOSSIBLE
from server_app.aggregation.chernoff import participation_nats
from server_app.record.manifest import open_manifest
from shared_model.fingerprint import arrays_sha256
from shared_model.model.dropout import Dropout
from tests.support.audits import (
    ITEMS,
    RUN,
    USERS,
    audit,
    planted_histories,
    row_of,
    rows_of,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the dataset "data" and the finished run "planted" on it."""
    home = tmp_path_factory.mktemp("audit")
    rows = [(u, i, t) for u, items in planted_histories().items() for t, i in enumerate(items)]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": range(1, ITEMS + 1), "cold": 0})
    write_dataset(home / "data", interactions, items, None, "planted")
    run_in_process(1, home=str(home), dataset=str(home / "data"), **RUN)
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> AuditedRun:
    return open_run(home, "planted", home / "data", "cpu")


@pytest.fixture(scope="module")
def document(home: Path) -> dict[str, Any]:
    """All attacks; the noise is so large that nothing of the updates is left."""
    found = audit(
        *("--run", "planted", "--home", home, "--dataset", home / "data", "--users", "20"),
        *("--noise-multiplier", "50", "--rounds", "10"),
        out=home / "audit.json",
    )
    return dict(found)


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        members = random.random(300) < 0.4
        scores = np.round(random.normal(size=300) + members, 1)  # with ties
        assert auc(scores, members) == pytest.approx(roc_auc_score(members, scores))
        false, true, _ = roc_curve(members, scores, drop_intermediate=False)
        assert true_positives(scores, members, 0.1) == pytest.approx(true[false <= 0.1].max())
    assert auc(scores, np.ones(300, dtype=bool)) is None


def test_precision_counts_ties_against_the_attacker() -> None:
    members = np.array([True, False, True, False])
    assert precision_at(np.array([3.0, 2.0, 1.0, 0.0]), members, 2) == 0.5
    assert precision_at(np.zeros(4), members, 2) == 0.0


def test_the_deviation_of_chance_is_that_of_random_scores() -> None:
    random, members = np.random.default_rng(1), np.arange(90) < 30
    drawn = [auc(random.normal(size=90), members) for _ in range(4000)]
    assert np.std(drawn) == pytest.approx(chance_deviation(members), rel=0.05)


def test_an_update_of_one_user_tells_its_items(document: dict[str, Any]) -> None:
    first = row_of(document, attack="items", case="first round, 1 user", metric="AUC")
    released = row_of(document, attack="items", case="released, 1 user", metric="AUC")
    precision = row_of(document, attack="items", case="first round, 1 user", metric="precision")
    assert first["undefended"] > 0.99
    assert released["undefended"] > 0.9
    assert precision["undefended"] > 0.95
    assert first["clipping"] == pytest.approx(
        first["undefended"], abs=1e-3
    )  # a factor hides nothing


def test_noise_leaves_no_items(document: dict[str, Any]) -> None:
    rows = rows_of(document, attack="items", metric="AUC") + rows_of(
        document, attack="items", metric="AUC, one member"
    )
    assert len(rows) == 6  # 1 user and 10 users, at two models
    for row in rows:
        for column in ("clipping + noise", "control"):
            assert abs(row[column] - 0.5) < 0.08, row["case"]
    one = row_of(document, attack="items", case="first round, 1 user", metric="precision")
    assert abs(one["clipping + noise"] - one["chance"]) < 0.06


def test_more_users_in_a_sum_hide_each_other(document: dict[str, Any]) -> None:
    alone = row_of(document, attack="items", case="released, 1 user", metric="AUC")
    among = row_of(document, attack="items", case="released, 10 users", metric="AUC, one member")
    assert among["undefended"] < alone["undefended"] - 0.1


def test_views_are_the_updates_that_the_engine_makes(run: AuditedRun) -> None:
    """Clipping scales to the norm or less, noise has the std that was asked for."""
    table = "item_embedding.weight"
    attacker = Attacker(
        run.dataset, run.settings, Privacy(0.5, 2.0), run.noise_key, run.model(), (table,)
    )
    views = {view: seen[table].numpy()[1:] for view, seen in attacker.views(np.array([4])).items()}
    assert np.linalg.norm(views["undefended"]) > 0.5 >= np.linalg.norm(views["clipping"])
    factor = np.linalg.norm(views["undefended"]) / np.linalg.norm(views["clipping"])
    np.testing.assert_allclose(views["undefended"], factor * views["clipping"], atol=1e-5)
    noise = views["clipping + noise"] - views["clipping"]
    share = views["noise share"] - views["clipping"]
    assert noise.std() == pytest.approx(1.0, rel=0.1)
    assert share.std() == pytest.approx(1.0 / np.sqrt(USERS), rel=0.1)


def test_an_attackers_plan_has_everyone_and_none_of_the_runs_defences(run: AuditedRun) -> None:
    clipping = replace(run.settings, dp_clip_norm=0.5, fraction_train=0.25)
    attacker = Attacker(run.dataset, clipping, Privacy(0.5, 2.0), run.noise_key, run.model(), ())
    plan = attacker.plan("targets")
    assert (plan.stage, plan.round, plan.fraction, plan.weighting) == (1, 1, 1.0, "targets")
    assert (plan.clip_norm, plan.noise_std, plan.private) == (0.0, 0.0, False)
    assert (plan.app_sha256, plan.catalogue_sha256) == ("", "")


def test_little_noise_hides_less(run: AuditedRun) -> None:
    def found(multiplier: float) -> float:
        rows = items_attack(run, Privacy(1.0, multiplier), 30)
        return row_of({"rows": rows}, case="first round, 1 user", metric="AUC")["clipping + noise"]

    assert found(0.001) > 0.99 > found(0.05) > found(1.0)


def test_twins_differ_in_their_defence_alone(run: AuditedRun) -> None:
    keys = overrides(run.settings, Privacy(1.0, 50.0))
    assert run.twin("undefended", keys["undefended"]) is run.released
    for name in ("clipping", "clipping + noise"):
        config = run.twin(name, keys[name]).record["config"]
        own = run.released.record["config"] | run.released.record["by_data"]
        changed = {k.replace("_", "-") for k in config if config[k] != own[k]}
        assert changed == {k for k in keys[name] if run.config[k] != keys[name][k]}
        assert config["num_rounds"] == own["num_rounds"]


def test_the_document_has_every_column(document: dict[str, Any]) -> None:
    assert {row["attack"] for row in document["rows"]} == {"items", "membership", "promotion"}
    for row in document["rows"]:
        assert {*DEFENCES, "chance", "case", "metric"} <= set(row)
    assert set(document["hr@10"]) == set(DEFENCES)
    assert (document["seed"], document["clip_norm"], document["noise_multiplier"]) == (0, 1.0, 50.0)


def test_the_table_has_a_line_a_row(
    home: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("--run", "planted", "--home", home, "--dataset", home / "data", *_MEMBERS) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.strip().startswith("membership")]
    assert len(lines) == 4
    for line, row in zip(lines, rows_of(document, attack="membership"), strict=True):
        assert f"{row['undefended']:.3f}" in line
        assert f"{row['clipping + noise']:.3f}" in line
    for heading in (*DEFENCES, "chance", "control"):
        assert heading in printed


_MEMBERS = ("--attack", "membership", "--noise-multiplier", "50")


def test_a_membership_attack_repeats(home: Path, document: dict[str, Any], tmp_path: Path) -> None:
    """In another home, where no twin is trained yet, every figure is the same."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    given = ("--run", "planted", "--home", tmp_path, "--dataset", home / "data", *_MEMBERS)
    again = audit(*given, out=tmp_path / "audit.json")
    assert again["rows"] == rows_of(document, attack="membership")


def test_promotion_repeats_under_noise(run: AuditedRun) -> None:
    keys = overrides(run.settings, Privacy(1.0, 1.0))["clipping + noise"]
    first, second = (
        Promotion(run, 5, 2, CRAFTED, 2).poisoned(run.released.arrays, keys) for _ in range(2)
    )
    assert arrays_sha256(first) == arrays_sha256(second)
    assert arrays_sha256(first) != arrays_sha256(run.released.arrays)


def test_an_overfitted_model_tells_its_members(document: dict[str, Any]) -> None:
    for score in ("loss", "calibrated loss"):
        row = row_of(document, attack="membership", case=score, metric="AUC")
        assert row["undefended"] > 0.5 + 4 * row["chance_deviation"]
        assert row["interactions"] == 2 * USERS  # four each of half of the users


def test_a_model_that_never_saw_them_tells_nothing(
    run: AuditedRun, document: dict[str, Any]
) -> None:
    """The reference model, one of another seed, and a model that noise has drowned."""
    row = row_of(document, attack="membership", case="loss", metric="AUC")
    for column in ("control", "clipping + noise"):
        assert abs(row[column] - 0.5) < 3 * row["chance_deviation"], column
    others = run.work / f"parts-{run.data_sha256[:12]}" / "part-0"
    rows = attacked_users(run.dataset)
    models = [run.twin("reference", keys, others) for keys in ({}, {"seed": 1})]
    both = [losses(run.model(model.arrays), run.dataset, rows) for model in models]
    assert arrays_sha256(models[0].arrays) != arrays_sha256(models[1].arrays)
    found = membership_figures(both[1], both[0], np.tile(TRAINED, len(rows)))
    for score in ("loss", "calibrated loss"):
        assert abs(found[score]["AUC"] - 0.5) < 3 * row["chance_deviation"], score


def test_losses_are_those_of_each_prefix_alone(run: AuditedRun) -> None:
    model, rows = run.model(run.released.arrays), np.array([1, 7])
    found = losses(model, run.dataset, rows).reshape(2, 4)
    for row, own in zip(rows, found, strict=True):
        history = run.dataset.items[run.dataset.indptr[row] : run.dataset.indptr[row + 1]]
        for back, nats in zip((4, 3, 2, 1), own, strict=True):
            inputs = torch.from_numpy(history[None, :-back].astype(np.int64))
            scores = model.score(model(inputs, Dropout())[0, -1])[1:]  # without padding
            target = torch.tensor(int(history[-back]) - 1)
            assert nats == pytest.approx(cross_entropy(scores, target).item(), abs=1e-4)


@pytest.mark.parametrize("kind", [MADE_UP, CRAFTED])
def test_promotion_raises_the_exposure(
    run: AuditedRun, document: dict[str, Any], kind: str
) -> None:
    """Three malicious users among sixty, for as many rounds as the run had; clipping or not."""
    before = row_of(document, attack="promotion", case="before")
    assert before["chance"] == pytest.approx(10 / ITEMS)
    keys = overrides(run.settings, Privacy(1.0, 1.0))
    for name in ("undefended", "clipping"):
        poisoned = Promotion(run, before["target"], 3, kind, 40).poisoned(
            run.released.arrays, keys[name]
        )
        after = exposure(run.model(poisoned), run.dataset, before["target"])
        assert after > before[name] + 2 * before["chance"], name


def test_exposure_is_a_share_of_users(run: AuditedRun) -> None:
    model, target = run.model(run.released.arrays), 9
    shown = []
    for row in range(USERS):
        history = run.dataset.items[run.dataset.indptr[row] : run.dataset.indptr[row + 1]]
        if target not in history:
            inputs = torch.from_numpy(history[None, :-1].astype(np.int64))
            scores = model.score(model(inputs, Dropout())[0, -1])
            unmet = [i for i in range(1, ITEMS + 1) if i not in history]
            shown.append(target in sorted(unmet, key=lambda i: -float(scores[i]))[:10])
    assert exposure(model, run.dataset, target) == pytest.approx(np.mean(shown))
    with torch.no_grad():
        model.item_embedding.weight[target] = 0
        model.item_embedding.weight[:] = 0  # a tie of all is no recommendation of anything
    assert exposure(model, run.dataset, target) == 0.0


def test_crafted_answers_are_not_noticed(run: AuditedRun) -> None:
    """The server's own check lets as many participants pass as the crafter claims."""
    for users, fraction in ((2, 0.1), (10, 0.1), (60, 0.1), (300, 0.1), (3, 1.0)):
        people = unnoticed(users, fraction)
        assert 1 <= people <= users
        assert participation_nats(people, users, fraction) < IMPOSSIBLE
        assert people == users or participation_nats(people + 2, users, fraction) > 0.7 * IMPOSSIBLE
    keys = overrides(run.settings, Privacy(1.0, 1.0))["clipping"]
    log = run.work / "log.txt"
    before = len(log.read_text()) if log.exists() else 0  # other tests train under this run, too
    Promotion(run, 5, 3, CRAFTED, 1).poisoned(run.released.arrays, keys)
    assert "dropped" not in log.read_text()[before:]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert audit(*arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_wrong_input_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, name = ("--dataset", home / "data"), ("--run", "planted")
    where = ("--home", home)
    cases: Sequence[tuple[tuple[str | Path, ...], str]] = (
        (("--run", "absent", *where, *data), "no such run"),
        ((*name, *where, "--dataset", home / "nowhere"), "dataset folder does not exist"),
        ((*name, *where), "trained on another dataset"),  # the demo
        ((*name, *where, *data, "--users", "61"), "no such number of users"),
        ((*name, *where, *data, "--out", home / "absent" / "x.json"), "--out does not exist"),
        ((*name, *where, *data, "--device", "tpu"), "device"),
    )
    for arguments, message in cases:
        assert message in refused(capsys, *arguments)


def test_an_unfinished_run_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "runs", tmp_path / "runs")
    with open_manifest(tmp_path, "planted") as manifest:
        manifest.data["stages"]["1"]["status"] = "running"
        manifest.save()
    given = ("--run", "planted", "--home", tmp_path, "--dataset", home / "data")
    assert "needs a complete stage 1" in refused(capsys, *given)
