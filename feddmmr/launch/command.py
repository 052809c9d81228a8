"""`feddmmr run`: `flwr run` for people and CI, with an exit code that tells the truth.

0 only if the run is `finished:completed`, 130 after Ctrl-C or SIGTERM (the run is stopped first,
and resumes when it is submitted again), otherwise 1 with the reason as the last line of stderr.
"""

import json
import signal
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from feddmmr.launch.flwr_cli import (
    COMPLETED,
    LOCAL,
    NO_HEARTBEAT,
    Log,
    Outcome,
    RunError,
    SuperLink,
    open_superlink,
)
from feddmmr.launch.local_superlink import is_own, reached
from shared_model.errors import ConfigError
from shared_model.stages import STAGES

if TYPE_CHECKING:
    from shared_model.protocol.config import Settings

Overrides = dict[str, Any]
_RESUMES = 3
_LET_GO = 30.0  # seconds: what still runs learns at its next heartbeat that it was given up
INTERRUPTED = 130


def run(
    app: Annotated[
        Path | None, typer.Argument(help="Project folder of the app.", show_default="this app's")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help=r"A TOML file of run-config keys, with tables like \[stage-2] for one stage's; "
            "later files win."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A run-config key, over the files. TOML values; a bare word is a string.",
        ),
    ] = None,
    stage: Annotated[int | None, typer.Option(help="Same as --set stage=N; 0 is all.")] = None,
    name: Annotated[str | None, typer.Option("--run", help="Name of the run.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Folder of an imported dataset; empty for the demo.")
    ] = None,
    num_supernodes: Annotated[int, typer.Option(min=1, help="Simulated SuperNodes.")] = 2,
    cpus_per_node: Annotated[int, typer.Option(min=1, help="CPUs that one node takes.")] = 1,
    gpus_per_node: Annotated[float, typer.Option(min=0, help="GPUs that one node takes.")] = 0.0,
    connection: Annotated[str, typer.Option(help="Connection of the Flower config.")] = LOCAL,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="No SuperLink, no Ray: everything in this process.")
    ] = False,
) -> None:
    """Run the app, show its log and wait for its end; the exit code is 0 only if it completed."""
    shortcuts = {"stage": stage, "run": name, "dataset": _absolute(dataset)}
    given = merge([], set_ or []) | {k: v for k, v in shortcuts.items() if v is not None}
    runs = by_stage(merge(config or [], []), given)
    settings = [parsed(app or own_app(), overrides) for overrides in runs]
    if in_process:
        _refuse_ignored(app, connection, cpus_per_node, gpus_per_node)
    to_start = list(range(len(runs)))
    if in_process or is_own(connection):
        from feddmmr.launch.preflight import runs_with_work

        to_start = runs_with_work(settings, num_supernodes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if in_process:
        for place in to_start:
            _run_here(vars(settings[place]), num_supernodes)
        return
    nodes = federation_config(num_supernodes, cpus_per_node, gpus_per_node)
    superlink = reach(connection)
    for place in to_start:
        run_there(superlink, app or own_app(), runs[place], nodes)


def own_app() -> Path:
    """The source checkout that this command belongs to, or else the current folder."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def merge(files: list[Path], pairs: list[str]) -> Overrides:
    """Run-config keys of the files in order, then of the KEY=VALUE pairs."""
    merged: Overrides = {}
    for file in files:
        try:
            merged |= tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                "unreadable config file", where=str(file), expected="TOML", got=str(error)
            ) from error
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError("not a pair", where="--set", expected="KEY=VALUE", got=pair)
        merged[key.strip()] = typed(text.strip())
    return merged


def by_stage(overrides: Overrides, given: Overrides) -> list[Overrides]:
    """The overrides of each run to submit: one, or with tables such as [stage-2] one a stage.

    A stage's table wins over the files' other keys, and what was ``given`` on the command line over
    both.
    """
    tables = {key: value for key, value in overrides.items() if isinstance(value, dict)}
    common = {key: value for key, value in overrides.items() if key not in tables} | given
    unknown = tables.keys() - {f"stage-{number}" for number in STAGES}
    if unknown:
        raise ConfigError(
            "unknown table in a config file",
            expected="keys, or tables [stage-1], [stage-2], [stage-3]",
            got=", ".join(sorted(unknown)),
        )
    stage = common.get("stage", 0)
    if not tables or stage not in (0, *STAGES):  # a wrong stage is refused with the other keys
        return [common]
    numbers = list(STAGES) if stage == 0 else [stage]
    return [
        common | tables.get(f"stage-{number}", {}) | given | {"stage": number} for number in numbers
    ]


def typed(text: str) -> bool | int | float | str:
    """A TOML value; what is no TOML value of a run-config type is a string as it stands."""
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def checked(app: Path, overrides: Overrides) -> Overrides:
    """All settings by field name: the app's defaults under the overrides, each of them checked."""
    return vars(parsed(app, overrides))


def parsed(app: Path, overrides: Overrides) -> "Settings":
    """The settings of a run: the app's defaults under the overrides, each of them checked."""
    from shared_model.protocol.config import parse_settings

    return parse_settings(defaults(app) | overrides)


def defaults(app: Path) -> Overrides:
    """The app's run-config as its pyproject.toml has it."""
    from shared_model.protocol.config import default_config

    try:
        return default_config(app / "pyproject.toml")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            "not the project folder of the app",
            where=str(app.absolute()),
            expected="a pyproject.toml with [tool.flwr.app.config]",
            got=str(error),
            todo="name the folder: feddmmr run FOLDER",
        ) from error


def as_toml(overrides: Overrides) -> str:
    """Checked overrides (scalars only) as a TOML document; JSON's notation of these is TOML's."""
    pairs = {key: json.dumps(value, ensure_ascii=False) for key, value in overrides.items()}
    lines = [f"{key} = {value}\n" for key, value in pairs.items()]
    return "".join(lines).replace("\x7f", r"\u007f")  # the one character that TOML alone escapes


def federation_config(num_supernodes: int, cpus: int, gpus: float) -> str:
    """The simulated nodes; a SuperLink with real SuperNodes has its own and ignores this."""
    resources = f"client-resources-num-cpus={cpus} client-resources-num-gpus={gpus}"
    return f"num-supernodes={num_supernodes} {resources}"


def verdict(run_id: str, outcome: Outcome, app_error: str) -> None:
    """``RunError`` unless the run completed: the app's own error line, or else Flower's reason."""
    if outcome.status == COMPLETED:
        return
    reason = f"run {run_id} is {outcome.status}: {outcome.details or 'no details'}"
    if not app_error:
        raise RunError(reason)
    print(reason, file=sys.stderr)
    raise RunError(app_error)


def _absolute(dataset: str | None) -> str | None:
    return str(Path(dataset).expanduser().resolve()) if dataset else dataset


def _refuse_ignored(app: Path | None, connection: str, cpus: int, gpus: float) -> None:
    if app is not None and app.resolve() != own_app():
        raise ConfigError(
            "--in-process runs this command's own app", expected=str(own_app()), got=str(app)
        )
    given = {"--connection": connection != LOCAL, "--cpus-per-node": cpus != 1}
    given["--gpus-per-node"] = gpus != 0
    if any(given.values()):
        raise ConfigError(
            "--in-process has no SuperLink and no Ray, whose options these are",
            expected="--num-supernodes and run-config keys alone",
            got=", ".join(name for name, is_given in given.items() if is_given),
        )


def reach(connection: str) -> SuperLink:
    """The connection; the SuperLink of this machine is started first, if it does not run."""
    try:
        return reached(open_superlink(connection))
    except KeyboardInterrupt:
        _interrupted("nothing was submitted; the SuperLink goes on starting")


def _run_here(settings: Overrides, num_supernodes: int) -> None:
    from feddmmr.launch.in_process import run_in_process

    try:
        run_in_process(num_supernodes, **settings)
    except KeyboardInterrupt:
        _interrupted("submit the same run again to resume it")


def run_there(superlink: SuperLink, app: Path, overrides: Overrides, nodes: str) -> None:
    """Run it to its end; again where Flower or Ray gave it up for want of time: it resumes."""
    run_id, outcome, log = _submitted(superlink, app, overrides, nodes)
    for _ in range(_RESUMES):
        reason = _given_up(outcome, log)
        if not reason:
            break
        print(
            f"run {run_id}: {reason}; submitted again in {_LET_GO:g} s, and so resumed",
            file=sys.stderr,
        )
        time.sleep(_LET_GO)
        if log.trained:  # what was to be trained again has begun: now it goes on
            overrides = overrides | {"redo": False}
        run_id, outcome, log = _submitted(superlink, app, overrides, nodes)
    verdict(run_id, outcome, log.error)


def _given_up(outcome: Outcome, log: Log) -> str:
    """Why a run ended that only lacked time; empty for any other end."""
    if outcome.details == NO_HEARTBEAT:
        return "Flower heard nothing of it for a minute (did the machine sleep, or was it busy?)"
    if outcome.status != COMPLETED and log.ray_late:
        return "Ray could not start within its 30 s (the machine is busy)"
    return ""


def _submitted(
    superlink: SuperLink, app: Path, overrides: Overrides, nodes: str
) -> tuple[str, Outcome, Log]:
    """Submit a run and follow it to its end: its id, how it ended, what the app printed."""
    run_id = ""
    try:
        with tempfile.TemporaryDirectory(prefix="feddmmr-") as folder:
            file = Path(folder) / "run.toml"
            file.write_text(as_toml(overrides), encoding="utf-8")
            run_id = superlink.submit(app.resolve(), file, nodes)
        print(f"run {run_id} on {superlink.connection}", flush=True)
        log = superlink.follow(run_id)
        return run_id, superlink.wait(run_id), log
    except KeyboardInterrupt:
        if not run_id:
            _interrupted("the run may have been submitted: see `flwr list`")
        superlink.stop(run_id)
        _interrupted(f"run {run_id} is stopped; submit the same run again to resume it")


def _interrupted(line: str) -> NoReturn:
    print(f"interrupted: {line}", file=sys.stderr)
    raise typer.Exit(INTERRUPTED)
