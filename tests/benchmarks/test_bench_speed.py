"""The speed benchmark without Flower on tiny data; no figure is judged, the arithmetic is."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.populations import made_up, some_users
from benchmarks.speed import main, print_table, rate, ratio
from benchmarks.speed_parts.work import (
    Work,
    Workers,
    engine_round,
    open_work,
    plain_round,
    trained_user,
)
from client_app.data.dataset import Dataset, open_dataset
from client_app.training.train import train_round
from shared_model.errors import DataError, WorkerError
from shared_model.model.recommender import read_groups
from shared_model.protocol.config import Value, default_config
from tests.support.paths import ROOT

CONFIG = default_config(ROOT / "pyproject.toml")
TINY: dict[str, Value] = {"hidden-size": 8, "num-blocks": 1, "max-length": 10}
TINY |= {"negatives": 8, "targets-per-user": 4, "memory-long-term": 4, "memory-novelty": 0.3}


def tiny_work(folder: Path, stage: int = 1, **keys: Value) -> Work:
    own: dict[str, Value] = {"dataset": str(folder), "home": str(folder.parent)}
    given = {key.replace("_", "-"): value for key, value in keys.items()}
    return open_work(CONFIG | TINY | own | given, stage)


def row(users: int, seconds: float) -> dict[str, float]:
    return {"users": users, "seconds": seconds, "cpu_seconds": 2 * seconds}


def test_ratios_are_medians_over_pairs() -> None:
    assert rate(row(6, 2.0)) == 3.0
    assert rate(row(6, 2.0), "cpu_seconds") == 1.5
    pairs = [(row(10, 1.0), row(5, 1.0)), (row(9, 1.0), row(3, 1.0)), (row(8, 8.0), row(8, 1.0))]
    assert ratio(pairs) == 2.0  # of 2, 3 and 1/8


@pytest.fixture
def double() -> Iterator[None]:
    """float64: two steps turn float32's rounding into differences that would hide a small fault."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("steps", [1, 2])
def test_plain_loop_and_engine_do_the_same_work(small_dataset: Dataset, steps: int) -> None:
    """The same users; without dropout, the same sums."""
    work = tiny_work(small_dataset.folder, local_steps=steps, fraction_train=0.7, dropout=0.0)
    work.model.double()
    assert plain_round(work, 3) == engine_round(work, 3) > 0
    plan, start = work.round(3), read_groups(work.model, work.model.stage.trained)
    update = train_round(work.model, work.dataset, work.rows(), plan, 4)
    sums = {name: torch.zeros_like(value) for name, value in start.items()}
    for user in np.flatnonzero(plan.takes_part(work.dataset.user_keys)):
        if work.dataset.lengths(np.array([user]))[0] < 4:
            continue
        own, weight = trained_user(work, plan, int(user))
        for name, value in read_groups(own, work.model.stage.trained).items():
            sums[name] += weight * (value.detach() - start[name])
    for name, value in sums.items():
        torch.testing.assert_close(update.arrays[name], value, atol=1e-5, rtol=1e-5)


def test_a_plan_clips_nobody_as_the_plain_loop_does(small_dataset: Dataset) -> None:
    clipping = tiny_work(small_dataset.folder, dp_clip_norm=0.5, weighting="uniform")
    assert clipping.plan == tiny_work(small_dataset.folder, weighting="uniform").plan


@pytest.mark.parametrize("stage", [2, 3])
def test_later_stages_train_the_same_users(demo_folder: Path, stage: int) -> None:
    work = tiny_work(demo_folder, stage, fraction_train=0.05)
    assert plain_round(work, 1) == engine_round(work, 1) > 0


def test_workers_share_the_users(small_dataset: Dataset) -> None:
    work = tiny_work(small_dataset.folder, fraction_train=0.7)
    config = CONFIG | TINY | {"dataset": str(small_dataset.folder), "fraction-train": 0.7}
    workers = Workers(config | {"home": str(small_dataset.folder.parent)}, 1, 2)
    try:
        users, seconds = workers.round(3)
    finally:
        workers.close()
    assert users == engine_round(work, 3)
    assert seconds > 0


def test_a_worker_that_dies_ends_the_measurement(small_dataset: Dataset) -> None:
    config = CONFIG | TINY | {"dataset": str(small_dataset.folder)}
    workers = Workers(config | {"home": str(small_dataset.folder.parent)}, 1, 1)
    workers._processes[0].kill()
    with pytest.raises(WorkerError, match="died"):
        workers.round(1)
    workers.close()


def test_the_command_measures_and_writes(
    small_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    arguments = ["--dataset", str(small_dataset.folder), "--out", str(out), "--stages", "1"]
    size = ["--users", "12", "--pairs", "2", "--cores", "1", "--no-flower"]
    main([*arguments, *size, "--set", "fraction-train=1.0", *(f"{k}={v}" for k, v in TINY.items())])
    result = json.loads(out.read_text())
    assert [one["ratio"] for one in result["ratios"]] == [
        "engine / plain, 1 threads",
        "workers / plain, all cores",
    ]
    assert [r["what"] for r in result["rows"]] == ["engine", "plain"] * 2 + ["workers", "plain"] * 2
    pairs = list(zip(result["rows"][:4:2], result["rows"][1:4:2], strict=True))
    assert result["ratios"][0]["seconds"] == ratio(pairs)
    print_table(result)
    assert "engine / plain" in capsys.readouterr().out


def test_populations_have_the_size_asked_for(small_dataset: Dataset, tmp_path: Path) -> None:
    some = open_dataset(some_users(small_dataset.folder, tmp_path / "some", 5))
    assert (some.num_users, some.num_items) == (5, small_dataset.num_items)
    assert set(some.user_keys.tolist()) < set(small_dataset.user_keys.tolist())
    with pytest.raises(DataError, match="too few users"):
        some_users(small_dataset.folder, tmp_path / "more", 500)
    made = open_dataset(made_up(tmp_path / "made", 50, 40))
    assert (made.num_users, made.num_items) == (50, 40)
