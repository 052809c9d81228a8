"""One benchmark from its source to its result: prepared, trained, ranked, held against its bars."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_app.data.dataset import Dataset
from feddmmr.benchmark.bars import held
from feddmmr.benchmark.figures import Rows, summary
from feddmmr.benchmark.prepare import Prepared, prepare
from feddmmr.benchmark.registry import Benchmark
from feddmmr.benchmark.training import (
    CONTROL,
    Driver,
    Job,
    control_job,
    recorded,
    stage_jobs,
    trained,
)
from feddmmr.launch.command import Overrides
from feddmmr.runs.ranks import Table, disagreement, gathered, packed, stage_ranks, unpacked
from feddmmr.runs.read import read_run
from server_app.record.checkpoint import write_atomically
from server_app.record.schema import StageRecord
from shared_model.fingerprint import file_sha256
from shared_model.stages import STAGES

_TODO = "free disk space, then run the same command: it goes on"
Say = Callable[[Job, int, bool], None]  # a job has so many finished rounds; whether it is done


@dataclass(frozen=True)
class Options:
    """What `feddmmr benchmark` is told about every dataset."""

    work: Path
    given: Overrides  # run-config keys
    seeds: list[int] | None = None  # instead of the registry's
    text_model: str = ""
    training: bool = True  # or else only what is finished already


@dataclass(frozen=True)
class Place:
    """Where a benchmark's things lie."""

    folder: Path

    @property
    def home(self) -> Path:
        """Of its runs."""
        return self.folder / "home"

    def log(self, job: Job) -> Path:
        """What the app prints of a job."""
        return self.folder / "logs" / f"{job.run}-stage{job.stage}.txt"

    def ranks(self, name: str) -> Path:
        """A table of ranks."""
        return self.folder / "ranks" / f"{name}.npz"


class Plan:
    """The jobs of one benchmark; the control's rounds follow from what its stages took."""

    def __init__(self, bench: Benchmark, options: Options) -> None:
        self.bench, self.options = bench, options
        self.place = Place(options.work / bench.name)
        self.prepared: Prepared = prepare(bench, self.place.folder, options.text_model)
        self.seeds = options.seeds or bench.seeds
        numbers = [1] if self.prepared.no_features else list(STAGES)
        self.jobs = {
            seed: stage_jobs(bench, options.given, seed, self.dataset, self.place.home, numbers)
            for seed in self.seeds
        }

    @property
    def dataset(self) -> Dataset:
        """What is trained on."""
        return self.prepared.dataset

    @property
    def has_control(self) -> bool:
        """Whether there is anything that Stage 1 alone could be held against."""
        return not self.prepared.no_features

    @property
    def rounds(self) -> int:
        """About how many rounds all jobs have together."""
        each = [sum(job.rounds for job in jobs) for jobs in self.jobs.values()]
        return sum(each) * (2 if self.has_control else 1)


def run_benchmark(plan: Plan, driver: Driver, say: Say) -> dict[str, Any]:
    """Train what is lacking, seed by seed, and tell everything: the JSON document."""
    started, rows, runs = time.monotonic(), Rows(), []
    for seed in plan.seeds:
        _add_baselines(plan, seed, rows)
    for seed in plan.seeds:
        took = 0
        for job in plan.jobs[seed]:
            if (record := _finished(plan, job, driver, say)) is None:
                break
            runs.append(_told(job, record))
            rows.add(job.row, seed, _stage_table(plan, job, record))
            took += max(entry["round"] for entry in record["rounds"])
        else:
            if plan.has_control:
                job = control_job(plan.jobs[seed][0], took)
                if (record := _finished(plan, job, driver, say)) is not None:
                    runs.append(_told(job, record))
                    rows.add(job.row, seed, _stage_table(plan, job, record))
    return _result(plan, rows, runs) | {"seconds": round(time.monotonic() - started, 1)}


def _finished(plan: Plan, job: Job, driver: Driver, say: Say) -> StageRecord | None:
    """The job's record; ``None`` if it is not there and nothing is to be trained."""
    if plan.options.training:
        record = trained(job, driver, plan.place.log(job), lambda rounds: say(job, rounds, False))
    else:
        found = recorded(job)
        if found is None:
            return None
        record = found
    say(job, job.rounds, True)
    return record


def _add_baselines(plan: Plan, seed: int, rows: Rows) -> None:
    """The baselines' ranks of a seed, made once."""
    sha256 = file_sha256(plan.dataset.folder / "dataset.json")[:12]
    names = ["popularity", "markov", "item-knn"]
    names += ["text-knn"] if plan.dataset.info.get("text_dim") else []
    paths = {name: plan.place.ranks(f"{name}-seed{seed}-{sha256}") for name in names}
    if not all(path.is_file() for path in paths.values()):
        for name, table in _baseline_tables(plan.dataset, seed).items():
            _keep(paths[name], table)
    for name, path in paths.items():
        rows.add(name, seed, unpacked(path))


def _baseline_tables(dataset: Dataset, seed: int) -> dict[str, Table]:
    from feddmmr.baselines.baselines import rank_baselines, scorers

    found: dict[str, list[Any]] = {name: [] for name in scorers(dataset)}
    for name, ranked in rank_baselines(dataset, "test", seed):
        found[name].append(ranked)
    return {name: gathered(dataset, ranked) for name, ranked in found.items()}


def _stage_table(plan: Plan, job: Job, record: StageRecord) -> Table:
    """The ranks of a finished job, made once for a checkpoint and checked against its figures."""
    path = plan.place.ranks(f"{job.run}-stage{job.stage}-{record['sha256'][:12]}")
    if not path.is_file():
        run = read_run(plan.place.home, job.run)
        device = str(job.config.get("device", "cpu"))
        table = stage_ranks(run, plan.dataset, job.stage, device)
        disagreement(table, record)
        _keep(path, table)
    return unpacked(path)


def _keep(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, packed(table), _TODO)


def _told(job: Job, record: StageRecord) -> dict[str, Any]:
    """What the JSON says of a run's stage."""
    curve = [
        [entry["round"], entry["valid"]["all"]["full"]["ndcg@10"]]
        for entry in record["rounds"]
        if "valid" in entry
    ]
    return {
        "row": job.row,
        "seed": job.seed,
        "run": job.run,
        "stage": job.stage,
        "rounds": max(entry["round"] for entry in record["rounds"]),
        "best_round": record["best_round"],
        "seconds": round(sum(entry["seconds"] for entry in record["rounds"]), 1),
        "sha256": record["sha256"],
        "app_sha256": record["app_sha256"],
        "config": record["config"],
        "valid": record["valid"],
        "test": record["test"],
        "valid_ndcg@10": curve,
    }


def _result(plan: Plan, rows: Rows, runs: list[dict[str, Any]]) -> dict[str, Any]:
    bench, info = plan.bench, plan.dataset.info
    own = [row for row in rows.names if row.startswith("stage ") or row == CONTROL]
    facts = ("name", "users", "items", "interactions", "cold_items", "cold_cases", "encoders")
    return {
        "benchmark": bench.name,
        "title": bench.title or str(bench.source),
        "dataset": {name: info.get(name) for name in facts},
        "no_features": plan.prepared.no_features,
        "import": bench.options,
        "seeds": plan.seeds,
        "settings": bench.run | plan.options.given,
        **summary(rows, own),
        "bars": held(bench.bars, rows.value, rows.chance, rows.beyond),
        "runs": runs,
    }
