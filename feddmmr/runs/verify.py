"""What of a run can be proved: seal, order of the stages, checkpoints to the byte, and the data.

The seal and the shape of the manifest are checked when it is read; a run that gets here has both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from client_app.data.content import NO_DIM
from feddmmr.runs.data import data_of
from feddmmr.runs.read import Run, read_run
from server_app.record.checkpoint import load_checkpoint
from server_app.record.manifest import checkpoint_names
from server_app.record.schema import StageRecord
from shared_model.errors import FedDMMRError
from shared_model.fingerprint import app_sha256, file_sha256
from shared_model.model.recommender import ModelShape, Recommender, build, load_groups
from shared_model.stages import STAGES

_GROUPS: tuple[Literal["loaded", "trained", "frozen"], ...] = ("loaded", "trained", "frozen")
_AGAIN = 5  # times that a run is read anew if it was saved meanwhile


@dataclass(frozen=True)
class Check:
    """One thing that holds, does not hold, or (``None``) is only told."""

    what: str
    ok: bool | None
    found: str


def verify(home: Path, name: str, folder: Path | None) -> tuple[Run, list[Check]]:
    """A run by its name, and every check of it (``verify_run``).

    Of one that goes on, files may have gone while they were looked at: then it is read again.
    """
    run = read_run(home, name)
    checks = verify_run(run, home, folder)
    for _ in range(_AGAIN):
        wrong = any(check.ok is False for check in checks)
        now = read_run(home, name) if wrong else run
        if now.data == run.data:
            break
        run, checks = now, verify_run(now, home, folder)
    return run, checks


def verify_run(run: Run, home: Path, folder: Path | None) -> list[Check]:
    """Every check of a run; ``folder`` is its dataset, by default the demo if it is one of it."""
    fields = len(run.data["seal"])
    checks = [Check("manifest", True, f"sealed and whole, {fields} fields")]
    for number, record in run.stages:
        checks += [_order(run, number, record), *_files(run, number, record)]
    checks += [_superseded(run), _strangers(run), _data(run, home, folder)]
    same = run.data["app"]["sha256"] == app_sha256()
    checks.append(Check("code", None, "this app's" if same else "another version than this app's"))
    return checks


def shape_of(run: Run, record: StageRecord) -> ModelShape:
    """The shape of a stage's model, from the manifest alone."""
    config = record["config"]
    features: Mapping[str, Any] = run.data["features"]
    dims = [features.get(f"{kind}_dim") or NO_DIM for kind in ("visual", "text")]
    sizes = [config[key] for key in ("hidden_size", "num_heads", "num_blocks", "max_length")]
    return ModelShape(run.data["dataset"]["items"], *sizes, *dims)


def best_model(run: Run, number: int) -> Recommender:
    """A stage's best checkpoint, verified by hash and loaded strictly."""
    record, stage = run.data["stages"][str(number)], STAGES[number]
    arrays = load_checkpoint(run.folder / record["checkpoint"], record["sha256"])
    model = build(shape_of(run, record), record["seed"], stage=stage)
    load_groups(model, arrays, stage.groups)
    return model


def _order(run: Run, number: int, record: StageRecord) -> Check:
    """Whether a stage stands on the one before it, with the table's groups (invariants 3, 4)."""
    what, stage = f"stage {number}, order", STAGES[number]
    for key in _GROUPS:
        if record[key] != list(getattr(stage, key)):
            return Check(what, False, f"{key} groups are {', '.join(record[key]) or 'none'}")
    if record["status"] == "stale":
        return Check(what, None, "stale: an earlier stage was trained again")
    if number == 1:
        return Check(what, not record["parent_sha256"], "the first one")
    before = run.data["stages"].get(str(number - 1))
    if before is None or before["status"] != "complete":
        status = before["status"] if before else "not there"
        return Check(what, False, f"stage {number - 1} is {status}")
    same = before["sha256"] == record["parent_sha256"]
    found = "starts from" if same else "does not start from"
    return Check(what, same, f"{found} stage {number - 1}'s best round {before['best_round']}")


def _files(run: Run, number: int, record: StageRecord) -> list[Check]:
    """The best checkpoint and, of a stage that goes on, the last one."""
    checks = []
    if record["checkpoint"]:
        what = f"stage {number}, best of round {record['best_round']}"
        checks.append(_best(run, number, record, what))
    elif record["status"] == "complete":
        checks.append(Check(f"stage {number}, best round", False, "complete without a checkpoint"))
    last = record["last"]
    if "file" in last:
        what = f"stage {number}, last of round {last['round']}"
        checks.append(_hash(run.folder / last["file"], last["sha256"], what))
    return checks


def _best(run: Run, number: int, record: StageRecord, what: str) -> Check:
    try:
        model = best_model(run, number)
    except FedDMMRError as error:
        return Check(what, False, str(error))
    finite = all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    count = sum(value.numel() for value in model.state_dict().values())
    size = f"{count:,} numbers, sha256 {record['sha256'][:12]}"
    return Check(what, finite, size if finite else f"{size}, not all finite")


def _hash(path: Path, sha256: str, what: str) -> Check:
    found = file_sha256(path) if path.is_file() else ""
    same = found == sha256
    return Check(what, same, f"sha256 {sha256[:12]}" if same else _gone(path, found))


def _gone(path: Path, found: str) -> str:
    return f"{path.name} is another file, sha256 {found[:12]}" if found else f"{path.name} is gone"


def _superseded(run: Run) -> Check:
    """The checkpoints of stages that were trained again."""
    old = [record for record in run.data["superseded"] if record["checkpoint"]]
    for record in old:
        check = _hash(run.folder / record["checkpoint"], record.get("sha256", ""), "superseded")
        if not check.ok:
            return check
    return Check("superseded", True if old else None, f"{len(old)} stages trained again")


def _strangers(run: Run) -> Check:
    """Checkpoints that nobody names: of a process that was killed, or was just about to save."""
    named = checkpoint_names(run.data)
    unnamed = [p.name for p in run.folder.glob("*.safetensors*") if p.name not in named]
    return Check("other files", None, ", ".join(sorted(unnamed)) or "none")


def _data(run: Run, home: Path, folder: Path | None) -> Check:
    try:
        dataset = data_of(run, home, folder)
    except FedDMMRError as error:
        return Check("dataset", False, str(error))
    if dataset is None:
        return Check("dataset", None, "not at hand: pass --dataset")
    return Check("dataset", True, f"{dataset.folder}, sha256 {run.data['dataset']['sha256'][:12]}")
