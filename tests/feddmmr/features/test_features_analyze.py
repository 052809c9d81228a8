"""`feddmmr features analyze`: statistics against brute force, planted structure, real data."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy import sparse

from client_app.data.dataset import Dataset, open_dataset, split_view
from feddmmr.features.analysis import SETTINGS, analyze, norms, squeeze, train_histories
from feddmmr.features.analysis_output import write_report
from feddmmr.features.files import FeatureFiles, read_features
from feddmmr.features.similarity import (
    Histories,
    lifts,
    mantel_variance,
    near_duplicates,
    random_mean,
)
from shared_model.errors import DataError
from shared_model.memory.memory import BINS_PER_UNIT, MemorySettings, novelties


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def small(seed: int, items: int = 9) -> tuple[np.ndarray, Histories, list[list[int]]]:
    """Features with one missing row, and five users, one of them with a single item."""
    random = np.random.default_rng(seed)
    features = unit(random.standard_normal((items, 4)) + 0.5)
    features[2] = 0
    lists = [random.permutation(items)[:length].tolist() for length in (5, 3, 1, 7, 4)]
    indptr = np.concatenate(([0], np.cumsum([len(one) for one in lists])))
    return features, Histories(indptr, np.concatenate(lists).astype(np.int64)), lists


@pytest.mark.parametrize("seed", range(5))
def test_means_equal_brute_force(seed: int) -> None:
    features, histories, lists = small(seed)
    known = features.any(axis=1)
    cosine = features.astype(np.float64) @ features.T.astype(np.float64)

    def mean_over_users(pairs_of: list[list[tuple[int, int]]]) -> float:
        kept = [[cosine[a, b] for a, b in p if known[a] and known[b]] for p in pairs_of]
        return float(np.mean([np.mean(one) for one in kept if one]))

    found = lifts(features, histories)
    expected = mean_over_users([list(itertools.pairwise(one)) for one in lists])
    assert found["consecutive"].mean == pytest.approx(expected, abs=1e-6)
    expected = mean_over_users([list(itertools.combinations(one, 2)) for one in lists])
    assert found["within"].mean == pytest.approx(expected, abs=1e-6)
    places = np.flatnonzero(known)
    pairs = list(itertools.combinations(places, 2))
    assert random_mean(features[known]) == pytest.approx(np.mean([cosine[p] for p in pairs]))
    counts = np.bincount(histories.items, minlength=len(features)) * known
    weight = {p: counts[p[0]] * counts[p[1]] for p in pairs}
    popular = sum(weight[p] * cosine[p] for p in pairs) / sum(weight.values())
    assert found["within"].popular == pytest.approx(popular, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_shuffle_variance_equals_all_permutations(seed: int) -> None:
    random = np.random.default_rng(seed)
    features = unit(random.standard_normal((6, 3)) + 0.3)
    weights = np.triu(random.random((6, 6)) * (random.random((6, 6)) < 0.6), 1)
    weights = weights + weights.T
    cosine = features.astype(np.float64) @ features.T.astype(np.float64)
    sums = [
        (weights * cosine[np.ix_(order, order)]).sum()
        for order in map(list, itertools.permutations(range(6)))
    ]
    found = mantel_variance(features, sparse.csr_array(weights))
    assert found == pytest.approx(np.var(sums), rel=1e-4)


def test_near_duplicates_equal_brute_force() -> None:
    features = unit(np.random.default_rng(1).standard_normal((60, 3)))
    features[[4, 9]] = 0
    cosine = features @ features.T - 2 * np.eye(60)
    count, examples = near_duplicates(features, 0.98)
    assert count == int((cosine >= 0.98).any(axis=1).sum())
    first = [(a, b) for a, b in np.argwhere(cosine >= 0.98).tolist() if a < b][:5]
    assert examples == first


def test_planted_structure_is_found_and_shuffled_features_show_none(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    histories = train_histories(dataset, 0)
    arrays = read_features(demo_folder).arrays
    outside = []
    for kind, array in arrays.items():
        for name, lift in lifts(array.astype(np.float32), histories).items():
            # A user likes styles, and goes from topic to topic: pictures agree, texts differ.
            assert lift.tells == (kind == "visual"), (kind, name)
            assert lift.difference_low > 0 or lift.difference_high < 0
        for seed in range(50):
            order = np.random.default_rng(seed).permutation(len(array))
            shuffled = lifts(array[order].astype(np.float32), histories)
            outside += [
                one.difference_low > 0 or one.difference_high < 0 for one in shuffled.values()
            ]
    # 95% intervals: 5% of them may miss, here 200; without the shuffles' variance 46% do.
    assert np.mean(outside) < 0.1


def test_the_histories_are_the_train_part(small_dataset: Dataset) -> None:
    histories = train_histories(small_dataset, 0)
    for row in range(small_dataset.num_users):
        own = histories.items[histories.indptr[row] : histories.indptr[row + 1]] + 1
        np.testing.assert_array_equal(own, split_view(small_dataset, row, "train")[0])
    assert len(train_histories(small_dataset, 7).indptr) == 8


def test_the_threshold_is_the_median_that_a_memory_meets(demo_folder: Path) -> None:
    report, drawn = analyze(demo_folder, 0)
    dataset = open_dataset(demo_folder)
    text = read_features(demo_folder).arrays["text"].astype(np.float64)
    text /= np.maximum(np.linalg.norm(text, axis=1, keepdims=True), 1e-9)
    padded = np.vstack([np.zeros((1, text.shape[1])), text]).astype(np.float32)
    split = [split_view(dataset, row, "train")[0] for row in range(dataset.num_users)]
    settings = MemorySettings(novelty=0.7, surprise=1.0)  # neither has a say in it
    met = novelties(padded, split, settings)
    found = report["modalities"]["text"]["preferences"]["novelty"]
    assert found["measured"] == len(met) == drawn["text"].sum()
    for quantile, value in {**found["quantiles"], "0.5": found["threshold"]}.items():
        inside = np.quantile(met, float(quantile), method="inverted_cdf")
        assert 0 < value <= inside < value + 1 / BINS_PER_UNIT
    assert MemorySettings(novelty=0.0, surprise=float("inf")) == SETTINGS


def test_a_squeeze_keeps_what_is_of_low_rank() -> None:
    random = np.random.default_rng(0)
    wide = unit(random.standard_normal((40, 5)) @ random.standard_normal((5, 60)))
    wide[3] = 0
    narrow = squeeze(wide, 8)
    assert narrow.shape == (40, 8)
    assert not narrow[3].any()
    np.testing.assert_allclose(narrow @ narrow.T, wide @ wide.T, atol=1e-5)
    assert squeeze(wide, 60) is wide


def test_stored_norms_are_reported_as_they_are() -> None:
    rows = np.array([[3.0, 4.0], [0, 0], [1, 0]], dtype=np.float16)
    assert norms(FeatureFiles({"text": rows})) == {"text": {"min": 1, "mean": 3, "max": 5}}
    with pytest.raises(DataError, match="NaN"):
        norms(FeatureFiles({"text": rows * np.float16(np.nan)}))


def test_a_features_file_alone_gets_the_plain_facts(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(0).standard_normal((12, 5))).astype(np.float16)
    rows[0] = 0
    save_file({"text": rows}, tmp_path / "f.safetensors")
    report, drawn = analyze(tmp_path / "f.safetensors", 0)
    assert report["modalities"]["text"]["coverage"] == pytest.approx(11 / 12)
    assert "histories" not in report
    assert drawn == {}


def test_features_that_are_almost_all_missing_break_nothing(tmp_path: Path, make_dataset) -> None:  # type: ignore[no-untyped-def]
    rows = np.zeros((6, 4), dtype=np.float16)
    rows[:2, 0] = 1
    histories = {user: [1, 2, 3, 4, 5] for user in range(3)}
    for features in ({"text": rows}, {"text": rows * 0}):
        dataset = make_dataset(histories, num_items=6, features=features)
        report, drawn = analyze(dataset.folder, 0)
        output = tmp_path / f"report of {dataset.folder.name}"
        write_report(output, report, drawn)
        assert json.loads((output / "report.json").read_text()) == report
    with pytest.raises(DataError, match="no features"):
        analyze(make_dataset(histories, num_items=6).folder, 0)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("feddmmr")
    return subprocess.run(
        [program, "features", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_command_writes_json_a_table_and_a_picture(demo_folder: Path, tmp_path: Path) -> None:
    result = command("analyze", demo_folder, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert "consecutive in a history" in result.stdout
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(report["modalities"]) == {"visual", "text", "combined"}
    assert report["modalities"]["combined"]["squeezed"]["dim"] == 128
    with Image.open(tmp_path / "report" / "report.png") as picture:
        assert picture.size[0] > 1000
    again = command("analyze", demo_folder, "--output", tmp_path / "report")
    assert again.returncode == 1
    assert again.stderr.startswith("error: the output exists already")
    command("analyze", demo_folder, "--output", tmp_path / "again")
    first, second = (tmp_path / name / "report.json" for name in ("report", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_movielens_takes_less_than_a_minute(ml1m_dataset: Dataset, tmp_path: Path) -> None:
    start = time.monotonic()
    result = command("analyze", ml1m_dataset.folder, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 60
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for kind in ("visual", "text", "combined"):
        assert report["modalities"][kind]["preferences"]["consecutive"]["tells"], kind
    assert report["modalities"]["visual"]["coverage"] == pytest.approx(0.953, abs=0.001)
