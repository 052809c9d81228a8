"""The ablation benchmark: every row runs for real on tiny data; no figure is judged here."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.ablations import NAMES
from benchmarks.quality import main
from benchmarks.quality_parts.table import print_table
from client_app.data.compile import write_dataset
from client_app.data.dataset import open_dataset
from server_app.record.checkpoint import load_checkpoint
from shared_model.model.recommender import ModelShape, build, read_groups
from shared_model.stages import STAGES

ROUNDS = (2, 1, 1)
DIMS = {"visual": 160, "text": 144}
SMALL = [
    *("hidden-size=8", "num-blocks=1", "max-length=10", "memory-long-term=4"),
    *("negatives=8", "targets-per-user=4", "evaluate-every=1", "dropout=0.2"),
]


def write_small(folder: Path) -> None:
    """24 users with 12 to 20 of 40 items, 3 of them cold, and features of more than 128 numbers."""
    random = np.random.default_rng(5)
    rows = [
        (user, item + 1, time)
        for user in range(24)
        for time, item in enumerate(random.permutation(40)[: random.integers(15, 21)])
    ]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": range(1, 41), "title": [f"Nr. {n}, new" for n in range(40)]})
    items["cold"] = items["item_id"].isin([3, 17, 30]).astype(int)
    features = {kind: random.standard_normal((40, dim)) for kind, dim in DIMS.items()}
    features = {kind: a / np.linalg.norm(a, axis=1)[:, None] for kind, a in features.items()}
    features["text"][7] = 0
    write_dataset(folder, interactions, items, features, "tiny", popularity=True)


@dataclass(frozen=True)
class Done:
    """A benchmark that has run: its folder, its command line and its JSON."""

    folder: Path
    arguments: list[str]
    result: dict[str, Any]

    def row(self, name: str, stage: int) -> dict[str, Any]:
        rows = self.result["rows"]
        [found] = [r for r in rows if (r["row"], r["stage"]) == (name, stage)]
        return dict(found)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("quality")
    write_small(folder / "data")
    paths = {"dataset": "data", "work": "work", "output": "quality.json"}
    arguments = [part for k, v in paths.items() for part in (f"--{k}", str(folder / v))]
    arguments += ["--fraction", "0.5", "--rounds", *map(str, ROUNDS), "--set", *SMALL]
    main(arguments)
    return Done(folder, arguments, json.loads((folder / "quality.json").read_text()))


def test_every_row_is_there_with_its_config_and_seed(done: Done) -> None:
    one, two, three = ROUNDS
    found = {(r["row"], r["stage"]): r["config"]["num-rounds"] for r in done.result["rows"]}
    both = [name for name in NAMES if name not in ("stage 1", "control", "no alignment")]
    expected = {("stage 1", 1): one, ("control", 1): one + two + three, ("squeezed 128", 1): one}
    expected |= {("no alignment", 2): 1, ("no alignment", 3): two + three}
    expected |= {(name, 2): two for name in both} | {(name, 3): three for name in both}
    assert found == expected
    assert len(done.result["rows"]) == len(expected)
    for row in done.result["rows"]:
        config = row["config"]
        assert (config["seed"], config["fraction-train"], config["hidden-size"]) == (0, 0.5, 8)
        assert config["stage"] == row["stage"]
        assert {"all", "cold", "cold-only"} <= set(row["test"])
        assert len(row["gate"]) == len(row["router"]) == config["num-rounds"]
    assert done.result["dataset"]["users"] == 24


def test_rows_differ_in_what_they_say(done: Done) -> None:
    differing = {
        "text only": ("modalities", "text"),
        "visual only": ("modalities", "visual"),
        "gate 0.0001": ("initial-gate", 0.0001),
        "gate 0.01": ("initial-gate", 0.01),
    }
    for stage in (2, 3):
        whole = done.row("stages 2 and 3", stage)["config"]
        for name, (key, value) in differing.items():
            assert done.row(name, stage)["config"] == whole | {key: value}
    whole = done.row("stages 2 and 3", 3)["config"]
    alone = {"num-rounds": ROUNDS[1] + ROUNDS[2], "alignment-weight": 0.0}
    assert done.row("no alignment", 3)["config"] == whole | alone
    assert done.row("no alignment", 2)["config"]["server-learning-rate"] == 1e-12


def test_rows_share_stage_1(done: Done) -> None:
    shared = manifest(done, "stage 1")["stages"]["1"]
    for name in NAMES:
        own = manifest(done, name)["stages"]["1"]
        assert (own["sha256"] == shared["sha256"]) == (name != "control"), name


def test_a_second_invocation_trains_nothing(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("manifest.json")}
    (done.folder / "quality.json").rename(done.folder / "first.json")
    main(done.arguments)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    first, second = (done.folder / name for name in ("first.json", "quality.json"))
    assert second.read_bytes() == first.read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("[") for line in lines) == 2 * len(NAMES)
    assert not any(" round " in line for line in lines)


def test_a_row_that_was_lost_is_trained_again_to_the_same_figures(
    done: Done, tmp_path: Path
) -> None:
    work, output = tmp_path / "work", tmp_path / "again.json"
    shutil.copytree(done.folder / "work", work, ignore=shutil.ignore_patterns("gate-0.01"))
    main([*done.arguments, "--work", str(work), "--output", str(output), "--rows", "gate 0.01"])
    rows = json.loads(output.read_text())["rows"]
    assert [(row["row"], row["stage"]) for row in rows] == [
        ("stage 1", 1),
        ("gate 0.01", 2),
        ("gate 0.01", 3),
    ]
    for row in rows:
        before = done.row(row["row"], row["stage"])
        for changing in ("seconds", "manifest"):
            before.pop(changing)
            row.pop(changing)
        assert row == before


def test_the_squeezed_dataset_differs_in_dims_only(done: Done) -> None:
    [folder] = (done.folder / "work").glob("dataset-squeezed-*")
    before, after = open_dataset(done.folder / "data").info, open_dataset(folder).info
    before["files"].pop("features.safetensors")
    after["files"].pop("features.safetensors")
    assert after == before | {"visual_dim": 128, "text_dim": 128}
    whole, squeezed = manifest(done, "stages 2 and 3"), manifest(done, "squeezed 128")
    assert whole["dataset"] == squeezed["dataset"]
    assert done.row("squeezed 128", 3)["features"]["text_dim"] == 128
    assert done.row("stages 2 and 3", 3)["features"]["text_dim"] == DIMS["text"]


def test_no_alignment_leaves_the_experts_as_they_were_initialised(done: Done) -> None:
    record = manifest(done, "no alignment")["stages"]
    assert record["3"]["parent_sha256"] == record["2"]["sha256"]
    folder = Path(done.row("no alignment", 3)["manifest"]).parent
    start = load_checkpoint(folder / record["2"]["checkpoint"], record["2"]["sha256"])
    stage = STAGES[2]
    fresh = build(ModelShape(40, 8, 2, 1, 10, DIMS["visual"], DIMS["text"]), 0, stage=stage)
    for name, initial in read_groups(fresh, stage.trained).items():
        assert (start[name] - initial).abs().max() < 1e-11, name
    begin = record["3"]["rounds"][0]["valid"]["all"]
    assert begin == record["1"]["valid"]["all"]  # experts that say nothing yet


def test_other_settings_are_refused_in_one_line(
    done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, message in (
        (["--set", "dropout=0.5"], "dropout=0.2; got dropout=0.5; do: restore"),
        (["--set", "redo=true"], "not for --set: the benchmark sets it; got redo"),
        (["--set", "color=red"], "unknown run-config key"),
        (["--rounds", "1", "0", "1"], "a stage without rounds"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*done.arguments, *extra])
        [line] = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1
        assert line.startswith("error: ")
        assert message in line


def test_the_table_has_a_line_a_stage_and_means_over_seeds(
    done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(json.dumps(done.result))
    first = done.row("gate 0.01", 3)
    second = json.loads(json.dumps(first)) | {"seed": 1, "best_gate": first["best_gate"] + 2}
    result["rows"].append(second)
    print_table(result)
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if "mean of 2" in line]
    hr, ndcg = (first["test"]["all"]["full"][name] for name in ("hr@10", "ndcg@10"))
    assert f"{hr:.4f}/{ndcg:.4f}" in line
    assert line.split()[-1] == f"{first['best_gate'] + 1:.4f}"
    assert sum("stages 2 and 3" in line for line in lines) == 2


def manifest(done: Done, name: str) -> dict[str, Any]:
    path = done.folder / "work" / "seed-0" / name.replace(" ", "-") / "runs/quality/manifest.json"
    return dict(json.loads(path.read_text()))
