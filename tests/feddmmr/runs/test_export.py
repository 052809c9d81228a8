"""Exported ranks: the manifest's figures come out of them, by plain arithmetic and by ranx."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client_app.data.dataset import input_lengths, open_dataset
from feddmmr.runs.export import COLUMNS
from feddmmr.runs.ranks import Table, disagreement, packed, stage_ranks, unpacked
from feddmmr.runs.read import read_run
from shared_model.errors import DataError
from shared_model.protocol.metrics import CUTOFFS
from tests.support.runs_command import Feddmmr, manifest

GROUPS = {"all", "all-with-cold", "cold", "cold-only"}


@pytest.fixture(scope="module")
def exported(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """The ranks of the stages of run "whole", which had two nodes, read from the files."""
    from typer.testing import CliRunner

    from feddmmr.cli import app

    (home, dataset), found = runs, {}
    for stage in (1, 2, 3):
        file = tmp_path_factory.mktemp("ranks") / f"{stage}.parquet"
        arguments = ["runs", "export", "whole", "--ranks", file, "--stage", stage, "--home", home]
        done = CliRunner().invoke(app, [*map(str, arguments), "--dataset", str(dataset)])
        assert done.exit_code == 0, done.output
        assert f"ranks of stage {stage}: {file}" in done.output
        found[stage] = pd.read_parquet(file)
    return found


def by_hand(part: pd.DataFrame) -> dict[str, float]:
    """The figures of one group and protocol, as the manual defines them."""
    ranks, users = part["rank"].tolist(), len(part)
    figures = {f"hr@{k}": sum(rank <= k for rank in ranks) / users for k in CUTOFFS}
    for k in CUTOFFS:
        figures[f"ndcg@{k}"] = math.fsum(1 / math.log2(r + 1) for r in ranks if r <= k) / users
    figures |= {"mrr": math.fsum(1 / rank for rank in ranks) / users, "users": users}
    return figures | {"candidates": part["candidates"].sum() / users}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_manifests_figures_come_out_of_the_ranks(
    runs: tuple[Path, Path], exported: dict[int, pd.DataFrame], stage: int
) -> None:
    table, told = exported[stage], manifest(runs[0], "whole")["stages"][str(stage)]["test"]
    assert tuple(table.columns) == COLUMNS
    assert set(table["split"]) == {"test"}
    assert set(table["group"]) == GROUPS | ({"as-cold"} if stage > 1 else set())
    for (group, protocol), part in table.groupby(["group", "protocol"]):
        figures = by_hand(part)
        assert figures == pytest.approx(told[group][protocol], rel=1e-12)
        assert figures["hr@10"] == told[group][protocol]["hr@10"]
        assert part["user"].is_unique
        assert (part["rank"] <= part["candidates"] + 1).all()


def test_users_are_hashes_with_the_length_of_their_histories(
    runs: tuple[Path, Path], exported: dict[int, pd.DataFrame]
) -> None:
    dataset = open_dataset(runs[1])
    lengths = input_lengths(dataset, np.arange(dataset.num_users), "test").tolist()
    names = [f"{key:016x}" for key in dataset.user_keys.tolist()]
    part = exported[1].query("group == 'all' and protocol == 'full'")
    expected = dict(zip(names, lengths, strict=True))
    assert dict(zip(part["user"], part["history"], strict=True)) == expected


@pytest.mark.parametrize("protocol", ["full", "full-unseen", "uniform-100"])
def test_ranx_makes_the_same_figures_of_them(
    exported: dict[int, pd.DataFrame],
    runs: tuple[Path, Path],
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each user's list with the target at its rank, as any tool would get it."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # to compile it takes a minute
    ranx = pytest.importorskip("ranx")
    part = exported[3].query("group == 'all' and protocol == @protocol")
    lists = {}
    for user, rank, candidates in zip(part["user"], part["rank"], part["candidates"], strict=True):
        names = [f"other-{place}" for place in range(candidates)]
        names.insert(rank - 1, "target")
        lists[user] = {name: -float(place) for place, name in enumerate(names)}
    qrels = ranx.Qrels({user: {"target": 1} for user in lists})
    names = {"hr@10": "hit_rate@10", "ndcg@10": "ndcg@10", "ndcg@20": "ndcg@20", "mrr": "mrr"}
    found = ranx.evaluate(qrels, ranx.Run(lists), list(names.values()))
    told = manifest(runs[0], "whole")["stages"]["3"]["test"]["all"][protocol]
    for own, theirs in names.items():
        assert found[theirs] == pytest.approx(told[own], abs=1e-12), own


def test_ranks_that_are_not_the_runs_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = read_run(runs[0], "whole")
    record = run.data["stages"]["3"]
    table = stage_ranks(run, open_dataset(runs[1]))
    assert disagreement(table, record) < 1e-12
    kept = tmp_path / "ranks.npz"
    kept.write_bytes(packed(table))
    assert packed(unpacked(kept)) == packed(table)
    worse: Table = {name: replace(one, ranks=one.ranks + 1) for name, one in table.items()}
    with pytest.raises(DataError, match=r"not those of the run's test.*apart"):
        disagreement(worse, record)
    fewer = {
        n: replace(s, ranks=s.ranks[1:], candidates=s.candidates[1:]) for n, s in table.items()
    }
    with pytest.raises(DataError, match=r"expected 24 users; got 23"):
        disagreement(fewer, record)


def test_what_cannot_be_exported_is_one_line(
    runs: tuple[Path, Path], feddmmr: Feddmmr, tmp_path: Path, demo_folder: Path
) -> None:
    home, dataset = runs
    given = ("runs", "export", "--ranks", tmp_path / "r.parquet", "--home", home)
    for more, message in (
        (("cut", "--stage", 2, "--dataset", dataset), "stage 2 of this run is not complete"),
        (("whole",), "the data of this run are not at hand"),
        (("whole", "--dataset", demo_folder), "trained on other dataset and features"),
        (("nobody", "--dataset", dataset), "no such run"),
    ):
        code, _, err = feddmmr(*given, *more)
        assert code == 1
        assert err.count("\n") == 1
        assert message in err
    assert not list(tmp_path.iterdir())
    assert json.loads((home / "runs/whole/manifest.json").read_bytes())
