"""A benchmark's runs: what each is trained with, and training what is not there yet.

For each seed a run of all stages, and the control: Stage 1 for as many rounds as all stages took
together. What a manifest holds complete is not trained again.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client_app.data.dataset import Dataset
from feddmmr.benchmark.registry import Benchmark
from feddmmr.launch.command import (
    Overrides,
    by_stage,
    checked,
    federation_config,
    own_app,
    reach,
    run_there,
)
from feddmmr.launch.flwr_cli import LOCAL
from server_app.record.manifest import open_manifest
from server_app.record.schema import StageRecord
from shared_model.errors import ConfigError, ManifestError
from shared_model.protocol.config import key_of
from shared_model.stages import STAGES

CONTROL = "control"
# What the benchmark or its own options set: --set may not.
OWN = {"stage", "run", "home", "dataset", "redo", "seed"}
Driver = Callable[[Overrides], None]  # trains one stage, with its log on stdout
Heard = Callable[[int], None]  # of rounds that are finished
_ROUND = re.compile(r"stage \d(?: round +(\d+)/|: resumed after round (\d+))")


@dataclass(frozen=True)
class Job:
    """One stage of one run; ``row`` is its line of the table."""

    row: str
    seed: int
    run: str
    stage: int
    config: Overrides  # run-config keys
    interactions: int  # of the dataset

    @property
    def rounds(self) -> int:
        """How many it is to have."""
        by_data = STAGES[self.stage].rounds_for(self.interactions)
        return int(self.config.get("num-rounds") or by_data)


def stage_jobs(
    bench: Benchmark, given: Overrides, seed: int, dataset: Dataset, home: Path, stages: list[int]
) -> list[Job]:
    """The stages of the run of one seed, in order."""
    if taken := sorted(OWN & given.keys()):
        raise ConfigError("not for --set: the benchmark sets it", got=", ".join(taken))
    tables = {f"stage-{number}": bench.run.get(f"stage-{number}", {}) for number in STAGES}
    configs = by_stage(bench.run | tables, {**given, "stage": 0})
    run = f"stages-seed{seed}"
    where = {"home": str(home), "dataset": str(dataset.folder), "seed": seed, "run": run}
    jobs = []
    for config in configs:
        number = config["stage"]
        interactions = dataset.info["interactions"]
        jobs.append(Job(f"stage {number}", seed, run, number, config | where, interactions))
    return [job for job in jobs if job.stage in stages]


def control_job(first: Job, rounds: int) -> Job:
    """Stage 1 as in that job, for so many rounds."""
    run = f"{CONTROL}-seed{first.seed}"
    config = first.config | {"num-rounds": rounds, "run": run}
    return replace(first, row=CONTROL, run=run, config=config)


def recorded(job: Job) -> StageRecord | None:
    """The job's record if it is complete. ``ManifestError`` if it was begun with other settings."""
    home = Path(job.config["home"])
    if not (home / "runs" / job.run / "manifest.json").is_file():
        return None
    wanted = checked(own_app(), job.config)
    with open_manifest(home, job.run) as manifest:
        record = manifest.stage(job.stage)
        old = record["config"] if record else {}
        changed = [key for key in sorted(old) if old[key] != wanted.get(key)]
        if changed:
            raise ManifestError(
                "this run was begun with other settings",
                where=str(manifest.path),
                expected=", ".join(f"{key_of(key)}={old[key]}" for key in changed),
                got=", ".join(f"{key_of(key)}={wanted.get(key)}" for key in changed),
                todo="restore them, or choose another --work",
            )
        return record if manifest.is_complete(job.stage) else None


def trained(job: Job, driver: Driver, log: Path, heard: Heard) -> StageRecord:
    """The job's record, trained only if it is not complete yet; the app prints into ``log``."""
    if (record := recorded(job)) is None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", buffering=1) as file, contextlib.redirect_stdout(_Watched(file, heard)):
            driver(job.config)
        record = recorded(job)
    if record is None:
        raise ManifestError("a run ended without its stage", where=job.run, todo=f"see {log}")
    return record


def in_process(num_supernodes: int) -> Driver:
    """Trains in this process: no SuperLink, no Ray."""
    from feddmmr.launch.in_process import run_in_process

    def drive(config: Overrides) -> None:
        run_in_process(num_supernodes, **checked(own_app(), config))

    return drive


def through_flower(num_supernodes: int) -> Driver:
    """Submits to the local SuperLink, as `feddmmr run` does."""
    superlink = reach(LOCAL)
    nodes = federation_config(num_supernodes, 1, 0.0)
    return lambda config: run_there(superlink, own_app(), config, nodes)


DRIVERS: dict[str, Callable[[int], Driver]] = {
    "in-process": in_process,
    "flower": through_flower,
}


class _Watched(io.TextIOBase):
    """A log that tells which rounds are finished as they are written into it."""

    def __init__(self, log: Any, heard: Heard) -> None:
        self._log, self._heard = log, heard

    def write(self, text: str) -> int:
        """Pass it on to the file."""
        for round_ in _rounds_in(text):
            self._heard(round_)
        return int(self._log.write(text))

    def flush(self) -> None:
        """Pass it on."""
        self._log.flush()


def _rounds_in(text: str) -> Iterator[int]:
    for match in _ROUND.finditer(text):
        yield int(match[1] or match[2])
