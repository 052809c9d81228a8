"""The GPU benchmark on tiny input, on the CPU: what it measures and what it misses."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.one_gpu import bars, difference, main
from feddmmr.benchmark.bars import Bar
from feddmmr.benchmark.registry import Benchmark
from tests.support.staged import SETTINGS, write_mixed

TINY = [f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in SETTINGS.items()]


def cells(hr: float, ndcg: float) -> dict[str, dict[str, float]]:
    return {p: {"hr@10": hr, "ndcg@10": ndcg} for p in ("uniform-100", "full-unseen")}


def test_it_times_all_stages_and_names_the_bars_that_are_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, dataset = tmp_path / "out.json", write_mixed(tmp_path / "dataset")
    given = ["--dataset", str(dataset), "--out", str(out), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--set", *TINY, "num-rounds=1"])
    assert ended.value.code == 1
    result = json.loads(out.read_bytes())
    assert [len(stage["seconds"]) for stage in result["stages"].values()] == [2, 2, 2]
    missed = [bar["what"] for bar in result["bars"] if not bar["reached"]]
    assert capsys.readouterr().err == f"error: missed: {', '.join(missed)}\n"
    assert "stage 1 uniform-100 ndcg@10 >= 0.61" in missed  # 24 users after one round
    assert "training seconds" not in missed


def test_a_missing_dataset_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--dataset", str(tmp_path / "nothing"), "--out", str(tmp_path / "o"), "--device=cpu"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_bars_are_held_against_the_registry_the_clock_and_the_cpu() -> None:
    tests = {"1": cells(0.82, 0.60), "2": cells(0.1, 0.1), "3": cells(0.82, 0.61)}
    rounds = [{"seconds": 100.0}, {"seconds": 0.5}]
    stages = {n: {"test": {"all": test}, "rounds": rounds} for n, test in tests.items()}
    known = [
        Bar("stage 1", "uniform-100", "hr@10", least=0.81),
        Bar("stage 1", "uniform-100", "ndcg@10", least=0.61),
        Bar("stage 3", "uniform-100", "ndcg@10", above="stage 1"),
        Bar("stage 3", "full-unseen", "hr@10", above="control"),  # there is none here
    ]
    bench = Benchmark("some", Path(), bars=known, speed={"training-seconds": 300.0})
    found = bars({"stages": stages}, {"1": 2e-5, "3": 1e-6}, bench)  # type: ignore[typeddict-item]
    assert {bar["what"]: bar["reached"] for bar in found} == {
        "training seconds": False,
        "stage 1 uniform-100 hr@10 >= 0.81": True,
        "stage 1 uniform-100 ndcg@10 >= 0.61": False,
        "stage 3 uniform-100 ndcg@10 >= stage 1": True,
        "stage 1 against the CPU": False,
        "stage 3 against the CPU": True,
    }
    assert next(bar["found"] for bar in found if bar["what"] == "training seconds") == 301.5


def test_the_difference_is_that_of_the_worst_tensor() -> None:
    reference = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0]), "zero": torch.zeros(2)}
    moved = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.25]), "zero": torch.zeros(2)}
    assert difference(moved, reference) == 0.25
    assert difference(reference, reference) == 0.0
