"""The registry: every file of it is read, and what cannot be is refused in one line."""

from pathlib import Path

import pytest

from client_app.data.dataset import Dataset
from feddmmr.benchmark.registry import benchmark_of, read_benchmark, registered, registry_folder
from feddmmr.benchmark.training import control_job, stage_jobs
from shared_model.errors import ConfigError
from tests.conftest import MakeDataset

ROWS = {"stage 1", "stage 2", "stage 3", "control"}
ROWS |= {"popularity", "markov", "item-knn", "text-knn"}


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    return make_dataset({1: [1, 2, 3, 4], 2: [4, 3, 2, 1]}, num_items=5)


@pytest.mark.parametrize("name", registered())
def test_every_file_can_be_trained_and_its_bars_speak_of_rows(
    name: str, tmp_path: Path, dataset: Dataset
) -> None:
    bench = benchmark_of(name, tmp_path)
    assert bench.source.parent == tmp_path
    assert bench.import_options.name == name
    assert len(bench.seeds) >= 2  # or else there is no error over seeds
    jobs = stage_jobs(bench, {}, 1, dataset, tmp_path, [1, 2, 3])
    assert [(job.row, job.config["stage"], job.config["seed"]) for job in jobs] == [
        ("stage 1", 1, 1),
        ("stage 2", 2, 1),
        ("stage 3", 3, 1),
    ]
    for bar in bench.bars:
        assert {bar.row, bar.above or "control"} <= ROWS
        assert (bar.least > 0) + (bar.chance > 0) + bool(bar.above) == 1


def test_stages_have_their_tables_and_the_control_has_all_rounds(
    tmp_path: Path, dataset: Dataset
) -> None:
    bench = benchmark_of("ml-1m", tmp_path)
    first, second, third = stage_jobs(bench, {"dropout": 0.3}, 0, dataset, tmp_path, [1, 2, 3])
    assert (first.rounds, second.rounds, third.rounds) == (300, 60, 100)
    assert second.config["targets-per-user"] == 100
    assert {job.config["dropout"] for job in (first, second, third)} == {0.3}
    control = control_job(first, 460)
    assert control.config == first.config | {"num-rounds": 460, "run": "control-seed0"}
    with pytest.raises(ConfigError, match=r"not for --set.*seed"):
        stage_jobs(bench, {"seed": 3}, 0, dataset, tmp_path, [1])


def test_a_folder_that_nobody_listed_has_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "my data!"
    folder.mkdir()
    bench = benchmark_of(str(folder), None)
    assert (bench.name, bench.source, bench.run, bench.bars) == ("my-data", folder, {}, [])
    assert bench.import_options.duplicates == "first"
    with pytest.raises(ConfigError, match="neither a benchmark nor a folder"):
        benchmark_of(str(tmp_path / "absent"), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", "unknown keys.*seed"),
        ("[import]\nkcore = 5", r"unknown \[import\] keys.*kcore"),
        ("[features]\nmodel = 'x'", r"unknown \[features\] keys.*model"),
        ("[[bar]]\nrow = 'stage 1'", r"not a \[\[bar\]\]"),
        ("[[bar]", "unreadable config file"),
    ],
)
def test_what_a_file_cannot_say_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_benchmark(file, None)
    assert registry_folder().is_dir()
