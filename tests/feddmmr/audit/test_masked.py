"""The audit of secure sums: a message says nothing, unless the server was trusted and lies."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from client_app.data.compile import write_dataset
from feddmmr.audit.masked import BARE, COLLUDING, LOST, MESSAGE, SUM
from feddmmr.audit.run import open_run
from feddmmr.launch.in_process import run_in_process
from tests.support.audits import ITEMS, RUN, audit, planted_histories

USERS = 12
SECURE: dict[str, Any] = {"aggregation": "secure", "dp_clip_norm": 1.0, "weighting": "uniform"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the dataset "data" and a run of one secure round on it."""
    home = tmp_path_factory.mktemp("masked")
    rows = [(u, i, t) for u, items in planted_histories().items() for t, i in enumerate(items)]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": range(1, ITEMS + 1), "cold": 0})
    write_dataset(home / "data", interactions, items, None, "planted")
    short = {"num_rounds": 1, "evaluate_every": 1, "checkpoint_every": 1}
    run_in_process(3, home=str(home), dataset=str(home / "data"), **RUN | SECURE | short)
    return home


def test_a_site_is_seen_bare_or_where_its_masks_are_known(home: Path, tmp_path: Path) -> None:
    given = ["--run", "planted", "--home", home, "--dataset", home / "data"]
    out = tmp_path / "audit.json"
    found = audit(*given, "--attack", "secure", "--users", str(USERS), out=out)
    seen = {row["case"]: row["clipping"] for row in found["rows"]}
    assert seen[BARE] > 0.99
    assert seen[LOST[False]] == seen[BARE]  # what a server that was trusted may not do
    for view in (MESSAGE, COLLUDING, LOST[True]):  # 14 of 150 items of each user: sd 0.023
        assert abs(seen[view] - 0.5) < 0.1, view
    assert 0.6 < seen[SUM] < seen[BARE]
    assert "hr@10" not in found


def test_a_secure_run_is_audited_as_the_bare_one_that_it_equals(home: Path) -> None:
    run = open_run(home, "planted", home / "data", "cpu")
    assert run.secure
    assert run.config["aggregation"] == run.settings.aggregation == "mean"
