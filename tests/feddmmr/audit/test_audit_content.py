"""What updates of Stages 2 and 3 tell of the items that users met, by the items' features."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from client_app.data.compile import write_dataset
from feddmmr.audit.content import FeatureScores, content_cases, probes
from feddmmr.audit.defences import Privacy
from feddmmr.audit.run import AuditedRun, open_run
from feddmmr.launch.in_process import run_in_process
from tests.support.audits import ITEMS, RUN, audit, planted_histories, row_of, rows_of
from tests.support.staged import edit_manifest

STAGES: dict[str, Any] = RUN | {"run": "default", "num_rounds": 8, "evaluate_every": 8}
STAGES |= {"stage": 0, "memory_novelty": 0.3, "server_learning_rate": 0.03}


def unit(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    drawn = random.standard_normal((rows, width)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with "data", whose items have features by chance, and a run of all stages on it."""
    home, random = tmp_path_factory.mktemp("audit-content"), np.random.default_rng(1)
    rows = [(u, i, t) for u, items in planted_histories().items() for t, i in enumerate(items)]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": range(1, ITEMS + 1), "cold": 0})
    features = {"visual": unit(random, ITEMS, 48), "text": unit(random, ITEMS, 32)}
    features["visual"][::10] = 0.0  # no picture
    write_dataset(home / "data", interactions, items, features, "planted")
    run_in_process(1, home=str(home), dataset=str(home / "data"), **STAGES)
    return home


@pytest.fixture
def run(home: Path) -> AuditedRun:
    return open_run(home, "default", home / "data", "cpu")


@pytest.fixture(scope="module")
def document(home: Path) -> dict[str, Any]:
    found = audit(
        *("--run", "default", "--home", home, "--dataset", home / "data", "--users", "20"),
        *("--attack", "items", "--noise-multiplier", "50"),
        out=home / "audit.json",
    )
    return dict(found)


def test_an_update_tells_what_features_it_was_made_of(document: dict[str, Any]) -> None:
    for case, least in (
        ("stage 2, first round, 1 user", 0.7),  # the content heads alone: targets
        ("stage 2, released, 1 user", 0.85),
        ("stage 3, released, 1 user", 0.85),
    ):
        row = row_of(document, attack="items", case=case, metric="AUC")
        assert row["undefended"] > least, case
        assert row["clipping"] == pytest.approx(
            row["undefended"], abs=1e-3
        )  # a factor hides nothing
    alone = row_of(document, case="stage 2, released, 1 user", metric="AUC")
    among = row_of(document, case="stage 2, released, 10 users", metric="AUC, one member")
    assert 0.5 < among["undefended"] < alone["undefended"] - 0.1


def test_noise_leaves_nothing_of_it(document: dict[str, Any]) -> None:
    rows = [r for r in rows_of(document, metric="AUC") if r["case"].startswith("stage")]
    assert len(rows) == 8  # 1 user and 10 users, at two models of two stages
    for row in rows:
        for column in ("clipping + noise", "control"):
            assert abs(row[column] - 0.5) < 0.08, row["case"]


def test_the_items_of_outer_products_come_first() -> None:
    """A map that moved by g f' + h e' tells the items e and f, whatever the others look like."""
    random = np.random.default_rng(2)
    features = unit(random, 200, 24) + 0.3  # all of them alike
    features[7] = 0.0
    scores = FeatureScores({"visual": features, "text": features})
    seen = {
        f"mixture.experts.{name}.weight": torch.from_numpy(
            np.outer(random.standard_normal(16), features[3])
            + np.outer(random.standard_normal(16), features[90])
        ).float()
        for name in ("visual_head", "text_head", "visual.output", "text.key", "text.value")
    }
    found = scores(seen)
    assert len(found) == 4
    for what, values in found.items():
        assert values[7] == 0.0
        assert "plain" in what or set(np.argsort(-values)[:2]) == {3, 90}, what
        assert {3, 90} <= set(np.argsort(-values)[:10]), what
    still = {name: torch.zeros_like(value) for name, value in seen.items()}
    assert all((found == 0).all() for found in scores(still).values())


def test_probes_are_whitened_and_of_one_length() -> None:
    features = unit(np.random.default_rng(3), 300, 8) @ np.diag([9.0, 3, 1, 1, 1, 1, 1, 1])
    found = probes(features)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)
    directions = found.T @ found / len(found)
    assert np.linalg.cond(directions) < 0.2 * np.linalg.cond(features.T @ features)
    assert (probes(np.zeros((5, 4))) == 0).all()


def test_a_stage_that_is_not_there_is_not_attacked(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    edit_manifest(tmp_path / "home", 3, status="stale")
    run = open_run(tmp_path / "home", "default", home / "data", "cpu")
    cases = [when for when, _, _ in content_cases(run, Privacy(1.0, 1.0))]
    assert cases == ["stage 2, first round", "stage 2, released"]


def test_views_are_the_updates_of_all_trained_arrays(run: AuditedRun) -> None:
    """Clipped as a whole; what is looked at is a part."""
    (_, attacker, _), *_ = content_cases(run, Privacy(0.25, 3.0))
    views = attacker.views(np.array([4]))
    for name in attacker.names:
        noise = (views["clipping + noise"][name] - views["clipping"][name]).numpy()
        assert noise.std() == pytest.approx(0.25 * 3.0, rel=0.15), name
        assert not views["noise alone"][name].eq(0).any()
    norms = [np.linalg.norm(view.numpy()) for view in views["clipping"].values()]
    assert np.linalg.norm(norms) <= 0.25
