"""`feddmmr benchmark` on tiny data, for real: what is trained, kept, told and gone on with."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feddmmr.benchmark import command, training
from feddmmr.benchmark.prepare import prepare
from feddmmr.benchmark.registry import benchmark_of
from feddmmr.launch.federation import free_ports
from shared_model.errors import ConfigError
from tests.conftest import CutError
from tests.support.flower import end_processes
from tests.support.paths import ROOT
from tests.support.runs_command import Feddmmr
from tests.support.staged import SETTINGS, watching, write_mixed

SMALL = [f"{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
SMALL = [pair for pair in SMALL if not pair.startswith("num-rounds")] + ["num-rounds=1"]
SET = [part for pair in SMALL for part in ("--set", pair)]
ROWS = ["popularity", "markov", "item-knn", "text-knn", "stage 1", "stage 2", "stage 3", "control"]

Result = dict[str, Any]


def result_of(work: Path, name: str) -> Result:
    found: Result = json.loads((work / name / "result.json").read_bytes())
    return found


def less_clocks(result: Result) -> Result:
    runs = [{k: v for k, v in run.items() if k != "seconds"} for run in result["runs"]]
    return {k: v for k, v in result.items() if k != "seconds"} | {"runs": runs}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished benchmark of a folder that nobody listed, two seeds: the folder, and its work."""
    folder = tmp_path_factory.mktemp("benchmark")
    source = write_mixed(folder / "mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["feddmmr"])
        command.benchmark(
            [str(source)], work=folder / "work", seeds="0,1", set_=SMALL, num_supernodes=1
        )
    return source, folder / "work"


def test_every_row_is_there_with_its_seeds_groups_and_differences(done: tuple[Path, Path]) -> None:
    result = result_of(done[1], "mixed")
    rows = {(row["row"], row["group"], row["protocol"]): row for row in result["rows"]}
    assert list(dict.fromkeys(row for row, _, _ in rows)) == ROWS
    assert {row["seeds"] == [0, 1] for row in result["rows"]} == {True}
    assert {group for _, group, _ in rows} == {"all", "all-with-cold", "cold", "cold-only"}
    for row, group, protocol in rows:
        mean = rows[row, group, protocol]["hr@10"]["mean"]
        tests = [run["test"] for run in result["runs"] if run["row"] == row]
        if tests:  # what the manifests say
            figures = [test[group][protocol]["hr@10"] for test in tests]
            assert mean == pytest.approx(sum(figures) / 2)
    for found in result["differences"]:
        cell = (found["group"], found["protocol"])
        own, other = rows[found["row"], *cell], rows[found["against"], *cell]
        apart = own[found["metric"]]["mean"] - other[found["metric"]]["mean"]
        assert found["difference"] == pytest.approx(apart, abs=1e-12)
    rounds = {(run["row"], run["seed"]): run["rounds"] for run in result["runs"]}
    assert rounds["control", 0] == 3 == sum(rounds[f"stage {n}", 0] for n in (1, 2, 3))


def test_a_second_call_trains_nothing(done: tuple[Path, Path], feddmmr: Feddmmr) -> None:
    source, work = done
    before, kept = result_of(work, "mixed"), list(work.rglob("*.npz"))
    manifests = {path: path.stat().st_mtime_ns for path in work.rglob("manifest.json")}
    assert len(kept) == 2 * len(ROWS)
    given = ("benchmark", "--dataset", source, "--work", work, "--seeds", "0,1")
    code, out, err = feddmmr(*given, *SET)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in manifests} == manifests
    assert less_clocks(result_of(work, "mixed")) == less_clocks(before)
    assert err.count("finished before") == 8
    assert "stage 3, NDCG@10 more than" in out
    page = (work / "report" / "index.html").read_text()
    assert f"{before['rows'][0]['ndcg@10']['mean']:.4f}" in page
    assert len(list((work / "report").glob("mixed-*.png"))) == page.count("data:image/svg") == 3
    code, _, err = feddmmr(*given, *SET, "--set", "dropout=0.5")
    assert code == 1
    assert "this run was begun with other settings" in err


def test_a_killed_benchmark_goes_on_and_ends_the_same(
    done: tuple[Path, Path], tmp_path: Path, feddmmr: Feddmmr
) -> None:
    source, work = done

    def cut() -> None:
        raise CutError

    with watching((2, 1), cut), pytest.raises(CutError):
        command.benchmark([str(source)], work=tmp_path, seeds="0", set_=SMALL, page=False)
    code, out, _ = feddmmr(
        "benchmark", source, "--work", tmp_path, "--seeds", "0", "--no-training", "--no-page", *SET
    )
    assert code == 0
    assert "stage 1, NDCG@10 more than" in out  # all that is finished
    command.benchmark([str(source)], work=tmp_path, seeds="0", set_=SMALL, page=False)
    resumed, whole = result_of(tmp_path, "mixed"), result_of(work, "mixed")
    hashes = {run["run"] + str(run["stage"]): run["sha256"] for run in whole["runs"]}
    assert {run["run"] + str(run["stage"]) for run in resumed["runs"]} < set(hashes)
    for run in resumed["runs"]:
        assert run["sha256"] == hashes[run["run"] + str(run["stage"])]
    assert "resumed after round" in (tmp_path / "mixed/logs/stages-seed0-stage2.txt").read_text()


@pytest.fixture
def own_flower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A SuperLink apart from the user's, which ends with the test."""
    http, control = free_ports(2)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", http)
    monkeypatch.setenv("FLWR_LOCAL_CONTROL_API_PORT", control)
    yield
    end_processes(tmp_path / "flower")


def test_flower_is_asked_for_the_same_runs(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_flower: None
) -> None:
    """Submitted configurations are those of the in-process runs; Flower itself is tested in e2e."""
    submitted: list[Any] = []

    def run_there(superlink: Any, app: Path, config: Any, nodes: str) -> None:
        submitted.append((config, nodes))
        training.in_process(3)(config)

    monkeypatch.setattr(training, "run_there", run_there)
    through = command.Through.flower
    command.benchmark(
        [str(done[0])], work=tmp_path, seeds="0", set_=SMALL, through=through, num_supernodes=3
    )
    assert [(config["run"], config["stage"]) for config, _ in submitted] == [
        ("stages-seed0", 1),
        ("stages-seed0", 2),
        ("stages-seed0", 3),
        ("control-seed0", 1),
    ]
    assert {nodes.split()[0] for _, nodes in submitted} == {"num-supernodes=3"}
    ours, theirs = result_of(done[1], "mixed"), result_of(tmp_path, "mixed")
    for one in theirs["runs"]:  # invariant 1, through the whole command
        [same] = [r for r in ours["runs"] if (r["run"], r["stage"]) == (one["run"], one["stage"])]
        assert one["test"]["all"]["full"] == pytest.approx(same["test"]["all"]["full"], abs=1e-6)


def test_neither_ray_nor_encoders_are_imported_where_features_exist(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    code = (
        "import sys; from feddmmr.benchmark import command; "
        f"command.benchmark(['{done[0]}'], work=__import__('pathlib').Path('{done[1]}'), "
        f"seeds='0,1', set_={SMALL!r}, page=False); "
        "heavy = {'ray', 'sentence_transformers', 'open_clip', 'transformers', 'pandas'}; "
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Writes a source: interactions in no order, one of them twice, and items with titles."""

    def write() -> Path:
        folder, random = tmp_path / "source", np.random.default_rng(3)
        folder.mkdir()
        rows = [
            (u, int(i) + 1, t) for u in range(30) for t, i in enumerate(random.permutation(20)[:14])
        ]
        table = pd.DataFrame([*rows, rows[0]], columns=["user_id", "item_id", "timestamp"])
        table.sample(frac=1, random_state=1).to_csv(folder / "interactions.csv", index=False)
        items = pd.DataFrame({"item_id": range(1, 21), "title": [f"Thing {n}" for n in range(20)]})
        items.to_csv(folder / "items.csv", index=False)
        return folder

    return write


def test_texts_that_cannot_be_encoded_leave_stage_1_alone_and_say_so(
    source: Callable[..., Path], tmp_path: Path, feddmmr: Feddmmr
) -> None:
    given = ("benchmark", source(), "--work", tmp_path / "work", "--seeds", "0", *SET)
    code, out, err = feddmmr(*given, "--text-model", "./absent", "--no-page")
    assert code == 0, err
    assert "has no features, so Stage 1 alone: the weights do not exist" in err
    result = result_of(tmp_path / "work", "source")
    assert [run["row"] for run in result["runs"]] == ["stage 1"]
    assert "the weights do not exist" in result["no_features"]
    assert "stage 1, NDCG@10 more than" in out
    code, _, err = feddmmr(*given, "--text-model", "./other", "--no-page")
    assert code == 1
    assert "begun with another source or other options" in err


def test_features_are_added_to_what_was_imported(
    source: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same histories, with rows in the order of the catalogue."""
    from feddmmr.benchmark import prepare as preparing
    from feddmmr.features.output import write_features

    rows = np.random.default_rng(1).standard_normal((20, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1)[:, None]

    def encode(bench: Any, dataset: Any, kinds: Any, output: Path, text_model: str) -> str:
        assert kinds == ["text"]
        write_features(output, {"text": rows.astype(np.float16)}, {"text": "made up"}, {})
        return ""

    monkeypatch.setattr(preparing, "_encode", encode)
    bench = benchmark_of(str(source()), None)
    first = prepare(bench, tmp_path / "work").dataset
    assert first.info["encoders"] == {"text": "made up"}
    assert first.info["imported"]
    assert (first.num_users, first.num_items) == (30, 20)
    assert prepare(bench, tmp_path / "work").dataset.info == first.info
    plain = json.loads((tmp_path / "work/imported/dataset.json").read_bytes())
    assert {n: plain["files"][n] for n in plain["files"] if n.startswith("arrays/i")} == {
        n: first.info["files"][n] for n in plain["files"] if n.startswith("arrays/i")
    }


def test_what_cannot_be_benchmarked_is_one_line(tmp_path: Path, feddmmr: Feddmmr) -> None:
    for given, message in (
        ((), "no dataset"),
        (("office",), "the source of this benchmark is not there"),
        (("office", "office", "--data", tmp_path), "two datasets of one name"),
        ((tmp_path, "--seeds", "one"), "not seeds"),
        ((tmp_path, "--set", "seed=1"), "no known format"),
    ):
        code, _, err = feddmmr("benchmark", *given, "--work", tmp_path / "work")
        assert code == 1
        assert err.count("error: ") == 1
        assert ConfigError.__name__ not in err
        assert message in err or "error: " in err
