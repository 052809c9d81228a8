"""The manifest: its contract, what it refuses, and what it leaves alone."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server_app.record.manifest import open_manifest
from server_app.rounds.loop import StageRun
from shared_model.errors import ConfigError, ManifestError
from shared_model.stages import stage_of
from tests.conftest import CutError, MakeDataset, checkpoint
from tests.support.paths import ROOT


def test_the_manifest_keeps_its_contract(run: Any, tmp_path: Path) -> None:
    manifest = run(2)
    on_disk = json.loads((tmp_path / "home/runs/default/manifest.json").read_text())
    assert on_disk == json.loads(json.dumps(manifest))
    counts = {"users", "items", "interactions", "cold_items"}
    assert set(manifest["dataset"]) == counts | {"sha256", "catalogue_sha256"}
    assert manifest["dataset"]["users"] == 20
    stage = manifest["stages"]["1"]
    fields = "status parent_sha256 checkpoint sha256 loaded trained frozen config seed best_round"
    assert {*fields.split(), "rounds", "valid", "test", "privacy"} <= set(stage)
    assert stage["trained"] == ["item_embedding", "backbone"]
    for entry in stage["rounds"]:
        keys = "round participants nodes loss valid seconds bytes_down bytes_up dropped"
        assert set(keys.split()) == set(entry)
    metrics = {"hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20"}
    metrics |= {"mrr", "users", "candidates"}
    for split in ("valid", "test"):
        assert set(stage[split]["all"]) == {"uniform-100", "full", "full-unseen"}
        for cell in stage[split]["all"].values():
            assert set(cell) == metrics
            assert cell["users"] == 20


def test_a_complete_stage_is_left_alone_and_can_be_redone(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(1)
    assert "warm targets" in capsys.readouterr().out
    path = tmp_path / "home/runs/default/manifest.json"
    before = path.read_bytes()
    capsys.readouterr()
    run(1)
    said = capsys.readouterr().out
    assert "complete: nothing to do" in said
    assert "redo=true" in said
    assert "warm targets" not in said
    assert "feddmmr runs show default --all" in said
    assert path.read_bytes() == before
    redone = run(1, redo=True, seed=5)
    assert redone["superseded"][0]["sha256"] == first["stages"]["1"]["sha256"]
    assert redone["stages"]["1"]["sha256"] != first["stages"]["1"]["sha256"]
    assert checkpoint(tmp_path, "default", first)  # the superseded one is still there
    assert checkpoint(tmp_path, "default", redone)


def test_a_redone_stage_that_was_cut_off_resumes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run(1)
    original = StageRun._finish_round

    def cut(self: StageRun, entry: Any, started: float, save: Any) -> None:
        original(self, entry, started, save)
        if entry["round"] == 2:
            raise CutError

    monkeypatch.setattr(StageRun, "_finish_round", cut)
    with pytest.raises(CutError):
        run(1, redo=True, seed=5)
    monkeypatch.setattr(StageRun, "_finish_round", original)
    manifest = run(1, redo=True, seed=5)
    assert len(manifest["superseded"]) == 1
    assert [entry["round"] for entry in manifest["stages"]["1"]["rounds"]] == [0, 1, 2, 3]


def test_another_dataset_under_the_same_name_is_refused(
    run: Any, tmp_path: Path, make_dataset: MakeDataset, small_histories: Any
) -> None:
    run(1)
    path = tmp_path / "home/runs/default/manifest.json"
    before = path.read_bytes()
    user = next(iter(small_histories))
    other = make_dataset(small_histories | {user: small_histories[user][::-1]}, num_items=30)
    with pytest.raises(ManifestError, match="another dataset"):
        run(1, dataset=str(other.folder))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("stage", "message"), [(4, "key 'stage'"), (3, "stage 3 needs features"), (0, "stage 2 needs")]
)
def test_stages_that_cannot_run_are_refused(
    run: Any, tmp_path: Path, stage: int, message: str
) -> None:
    """There is no stage 4, and the dataset has no features: nothing is trained or written."""
    with pytest.raises(ConfigError, match=message):
        run(1, stage=stage)
    assert not (tmp_path / "home").exists()


def test_two_processes_cannot_write_one_run(run: Any, tmp_path: Path) -> None:
    with (
        open_manifest(tmp_path / "home", "default"),
        pytest.raises(ManifestError, match="another process"),
    ):
        run(1)
    assert run(1)["stages"]["1"]["status"] == "complete"


HOLDER = """
import sys, time
from pathlib import Path
from server_app.record.manifest import open_manifest
with open_manifest(Path(sys.argv[1]), "default"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_free(run: Any, tmp_path: Path) -> None:
    """Another process, and SIGKILL: nobody tidies up, and the file of the lock stays."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "home")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ManifestError, match="another process writes this run") as raised:
                run(1)
        finally:
            holder.kill()
        assert "\n" not in str(raised.value)
    assert (tmp_path / "home/runs/default/lock").exists()
    assert run(1)["stages"]["1"]["status"] == "complete"


def test_a_folder_that_cannot_be_locked_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(ManifestError, match=r"cannot be locked.*No locks available"),
        open_manifest(tmp_path, "a"),
    ):
        pass


def test_a_changed_checkpoint_is_refused_on_use(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StageRun._complete

    def damage(self: StageRun) -> None:
        path = self.manifest.folder / self.record["checkpoint"]
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        original(self)

    monkeypatch.setattr(StageRun, "_complete", damage)
    with pytest.raises(ManifestError, match="was changed"):
        run(1)


CONFIG = {"seed": 0, "hidden_size": 16, "num_rounds": 3, "modalities": "both"}


@pytest.mark.parametrize("status", ["", "running", "failed", "stale", "complete"])
def test_a_stage_runs_only_on_a_complete_one(tmp_path: Path, status: str) -> None:
    """Invariant 3: nothing but the record of the stage before decides."""
    with open_manifest(tmp_path, "a") as manifest:
        if status:
            manifest.data["stages"]["1"] = {"status": status, "config": CONFIG}
        if status == "complete":
            manifest.require_order(stage_of(2), CONFIG)
            return
        with pytest.raises(ManifestError, match=f"stage 2 needs.*{status or 'not run'}"):
            manifest.require_order(stage_of(2), CONFIG)


@pytest.mark.parametrize("changed", ["seed", "hidden_size"])
def test_a_later_stage_keeps_what_the_model_means(tmp_path: Path, changed: str) -> None:
    with open_manifest(tmp_path, "a") as manifest:
        manifest.data["stages"]["1"] = {"status": "complete", "config": CONFIG}
        manifest.require_order(stage_of(2), CONFIG | {"num_rounds": 9, "modalities": "text"})
        with pytest.raises(ManifestError, match=rf"stage 2 has other settings.*{changed}=7"):
            manifest.require_order(stage_of(2), CONFIG | {changed: 7})


def test_both_mixture_stages_share_memory_and_modalities(tmp_path: Path) -> None:
    with open_manifest(tmp_path, "a") as manifest:
        for number in ("1", "2"):
            manifest.data["stages"][number] = {"status": "complete", "config": CONFIG}
        manifest.require_order(stage_of(3), CONFIG | {"num_rounds": 9})
        for changed in ({"modalities": "text"}, {"memory_short_term": 9}):
            with pytest.raises(ManifestError, match="stage 3 has other settings than stage 2"):
                manifest.require_order(stage_of(3), CONFIG | changed)


def test_a_redone_stage_marks_later_ones_stale(tmp_path: Path) -> None:
    with open_manifest(tmp_path, "a") as manifest:
        manifest.data["app"] = {"sha256": "app"}
        first = manifest.begin(stage_of(1), CONFIG, redo=False)
        first |= {"status": "complete", "sha256": "abc", "checkpoint": "stage1.safetensors"}
        second = manifest.begin(stage_of(2), CONFIG, redo=False)
        assert second["parent_sha256"] == "abc"
        assert second["frozen"] == second["loaded"] == ["item_embedding", "backbone"]
        second |= {"status": "complete", "sha256": "def"}
        third = manifest.begin(stage_of(3), CONFIG, redo=False)
        assert third["parent_sha256"] == "def"
        third["status"] = "complete"
        manifest.begin(stage_of(1), CONFIG | {"seed": 1}, redo=True)
        assert second["status"] == third["status"] == "stale"
        with pytest.raises(ManifestError, match="running"):
            manifest.require_order(stage_of(2), CONFIG)
