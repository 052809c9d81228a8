"""The ServerApp: read the config, meet the nodes, run the stages in order, print the result."""

import platform
from importlib.metadata import version

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.exit import add_exit_handler

from server_app.admission import (
    asked_stages,
    has_work,
    require_features,
    require_sites,
    secure_record,
    stage_config,
)
from server_app.aggregation.optimizers import ServerOptimizer
from server_app.nodes.census import Census, take_census
from server_app.nodes.fitting import by_data, fit
from server_app.nodes.novelty import novelty_threshold
from server_app.privacy.ledger import (
    can_go_on,
    open_ledger,
    remove_secrets,
    require_one_promise,
)
from server_app.privacy.mechanism import noising_of
from server_app.privacy.releases import Ledger
from server_app.privacy.shares import require_shares
from server_app.record import report
from server_app.record.checkpoint import load_checkpoint
from server_app.record.manifest import Manifest, open_manifest
from server_app.record.mlflow_run import require_mlflow
from server_app.record.schema import AppRecord, ManifestDocument
from server_app.record.tensorboard import require_writer
from server_app.rounds.loop import StageRun
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import DataError, FedDMMRError, ManifestError
from shared_model.fingerprint import app_sha256, arrays_sha256
from shared_model.model.recommender import Arrays, Recommender, build, load_groups, read_groups
from shared_model.protocol.config import Settings, parse_settings
from shared_model.protocol.wire import down
from shared_model.stages import Stage

app = ServerApp()

VERSION = "0.1.0"  # of the app; pyproject.toml has the same (a test compares)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of ``flwr run``. An error is one line in the log and a failed run."""
    try:
        settings = parse_settings(context.run_config)
        federate(grid, settings, flower_run=str(context.run_id))
    except FedDMMRError as error:
        line = f"error: {error}"
        report.say(line)
        add_exit_handler(lambda: report.say(line))  # and last, after all that Flower says of it
        raise error.with_traceback(None) from None


def federate(
    grid: Grid, settings: Settings, secret: bytes | None = None, flower_run: str = ""
) -> ManifestDocument:
    """Run what ``settings`` asks for on the nodes of ``grid``; returns the manifest's document.

    With differential privacy, each stage draws a ``secret`` for its noise, unless one is given: for
    an audit, whose noise has to repeat and is never released. ``flower_run`` is Flower's id of this
    run, by which it can be stopped; empty without one.
    """
    require_writer(settings)
    require_mlflow(settings)
    stages = asked_stages(settings)
    census = take_census(grid, settings)  # first: bad data leaves no trace of a run
    require_training(census)
    require_sites(settings, len(census.nodes))
    require_shares(settings, census)
    require_features(stages, census.features(), census.dims, settings.modalities)
    with open_manifest(settings.home_folder, settings.run, flower_run) as manifest:
        manifest.bind(app_record(), census.dataset(), census.features())
        report.say(f"{len(census.nodes)} nodes, {census.dataset()['users']} users")
        trained = [
            stage.number
            for stage in stages
            if _run_stage(grid, settings, manifest, census, stage, secret)
        ]
        report.closing(manifest, trained)
        return manifest.data


def _run_stage(
    grid: Grid,
    settings: Settings,
    manifest: Manifest,
    census: Census,
    stage: Stage,
    secret: bytes | None,
) -> bool:
    """Train a stage to its end; false if it is complete and was left alone."""
    if not has_work(settings, manifest, stage):
        remove_secrets(manifest)  # of a stage whose server was killed right behind its end
        report.say(
            f"stage {stage.number} ({stage.title}) is complete: nothing to do. To train it again: "
            f"--run-config 'stage={stage.number} redo=true', or another run='NAME'"
        )
        return False
    require_one_promise(manifest, settings)
    old = manifest.stage(stage.number)
    goes_on = old is None or can_go_on(settings, manifest, old, census)
    record = manifest.begin(stage, stage_config(settings), settings.redo, goes_on)
    given, settings = settings, fit(settings, stage, census)
    if line := report.by_data_line(stage.number, given, settings):
        report.say(line)
    record["by_data"] = by_data(settings)
    # They may refuse: then nothing is saved.
    if (secure := secure_record(settings, record, len(census.nodes))) is not None:
        record["secure"] = secure
    ledger = open_ledger(settings, manifest, record, stage, census, secret)
    if record["app_sha256"] != app_sha256():
        report.say(f"note: the app's code changed since stage {stage.number} began")
    try:
        if record["checkpoint"]:  # of a run that goes on: seen now, not after the last round
            load_checkpoint(manifest.folder / record["checkpoint"], record["sha256"])
        model = _initial_model(settings, manifest, census, stage)
        novelty = _novelty(grid, settings, manifest, census, stage) if stage.mixes else None
        record["memory_novelty"] = novelty
        strategy = _strategy(settings, census, model, novelty, ledger)
        run = StageRun(grid, strategy, manifest, record, ledger)
        run.run(read_groups(model, stage.trained))
    except Exception as failure:
        record["status"] = "failed"
        try:
            manifest.save()
        except ManifestError as second:  # a full disk, say: the first failure is what matters
            report.say(f"error: {second}")
            raise failure from second
        raise
    remove_secrets(manifest)  # a file that cannot be deleted does not make a complete stage fail
    return True


def _num_rounds(settings: Settings, stage: Stage, ledger: Ledger | None) -> int:
    """As many rounds as were asked for, or as the privacy budget has room for."""
    asked = settings.num_rounds
    if ledger is None or ledger.rounds >= asked:
        return asked
    report.say(
        f"stage {stage.number}: dp-epsilon={settings.dp_epsilon:g} has room for {ledger.rounds} of "
        f"{asked} rounds; the stage ends there"
    )
    return ledger.rounds


def _initial_model(
    settings: Settings, manifest: Manifest, census: Census, stage: Stage
) -> Recommender:
    """The model that a stage starts from: the best of the stage before, and fresh new groups."""
    shape = settings.shape(census.num_items, *census.dims)
    model = build(shape, settings.seed, stage=stage, gate=settings.initial_gate)
    if stage.loaded:
        parent = manifest.data["stages"][str(stage.number - 1)]
        sha256 = manifest.data["stages"][str(stage.number)]["parent_sha256"]
        arrays = load_checkpoint(manifest.folder / parent["checkpoint"], sha256)
        load_groups(model, arrays, stage.loaded)
    return model


def _novelty(
    grid: Grid, settings: Settings, manifest: Manifest, census: Census, stage: Stage
) -> float:
    """The memory's threshold. All nodes are asked once a run: a stage that resumes, or follows on
    one with a memory, has the same data and the same memory."""
    for number in (stage.number, stage.number - 1):
        record = manifest.stage(number)
        if record and (known := record.get("memory_novelty")) is not None:
            return known
    return novelty_threshold(grid, census, settings)


def _strategy(
    settings: Settings,
    census: Census,
    model: Recommender,
    novelty: float | None,
    ledger: Ledger | None,
) -> StageStrategy:
    stage, mixing = model.stage, None
    frozen: Arrays = {}
    if novelty is not None:
        frozen = down(settings).seen(read_groups(model, stage.frozen))
        mixing = settings.mixing(arrays_sha256(frozen), novelty)
    return StageStrategy(
        stage,
        settings,
        census,
        ServerOptimizer(settings.server_optimizer),
        frozen,
        mixing,
        noising=noising_of(settings, ledger, stage.number) if ledger else None,
        num_rounds=_num_rounds(settings, stage, ledger),
    )


def require_training(census: Census) -> None:
    """``DataError`` if no user has a training target: every round would be empty."""
    if not any(node.trainable for node in census.nodes.values()):
        raise DataError(
            "nobody has anything to train on",
            where=f"{len(census.nodes)} nodes, {census.dataset()['users']} users",
            expected="a user with 4 interactions: the last two are held out, and a target needs "
            "an item before it",
            got="3 interactions each, cold items aside",
            todo="import longer histories: lower --min-rating, raise --last, or hold out fewer "
            "items with --cold-fraction",
        )


def app_record() -> AppRecord:
    """The manifest's ``app``: code, packages and what else may change a run's last bits."""
    packages = {name: version(name) for name in ("flwr", "torch", "numpy", "safetensors")}
    return {
        "name": "feddmmr",
        "version": VERSION,
        "sha256": app_sha256(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "packages": packages,
    }
