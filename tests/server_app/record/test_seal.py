"""The manifest's file: what was changed since it was saved is refused, and the field is named."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server_app.record.manifest import open_manifest
from server_app.record.manifest_file import sealed, unsealed
from shared_model.errors import ManifestError
from tests.support.manifests import (
    CELL,
    SHA256,
    document,
)

PATH = Path("/runs/a/manifest.json")


def test_a_document_comes_back_as_it_was() -> None:
    data = document()
    content = sealed(data)
    assert json.loads(content) == data
    found = unsealed(content, PATH)
    assert found == data
    assert sealed(found) == content
    assert found["seal"].keys() >= {"run", "superseded", "stages/1/sha256", "stages/2/rounds"}


Edit = Callable[[dict[str, Any]], object]
EDITS: list[tuple[str, Edit]] = [
    ("stages/1/valid", lambda d: d["stages"]["1"]["valid"]["all"]["full"].update({"hr@10": 0.5})),
    ("stages/1/status", lambda d: d["stages"]["1"].update(status="stale")),
    ("stages/2/status", lambda d: d["stages"]["2"].update(status="complete")),
    ("stages/1/sha256", lambda d: d["stages"]["1"].update(sha256="f" * 64)),
    ("stages/1/seed", lambda d: d["stages"]["1"].update(seed=0.0)),
    ("stages/1/config", lambda d: d["stages"]["1"]["config"].update(redo=0)),
    ("stages/2/rounds", lambda d: d["stages"]["2"]["rounds"].pop()),
    ("stages/1/test", lambda d: d["stages"]["1"].pop("test")),
    ("stages/1/note", lambda d: d["stages"]["1"].update(note="better")),
    ("stages/2/app_sha256, stages/2/best_round", lambda d: d["stages"].pop("2")),
    ("stages/3", lambda d: d["stages"].update({"3": None})),
    ("stages", lambda d: d.update(stages=[])),
    ("app", lambda d: d["app"].update(sha256="f" * 64)),
    ("superseded", lambda d: d["superseded"].clear()),
    ("note", lambda d: d.update(note="mine")),
    ("privacy", lambda d: d.update(privacy={})),
    ("run", lambda d: d.pop("run")),
    ("stages/1/test", lambda d: d["seal"].pop("stages/1/test")),
    ("stages/1/test", lambda d: d["seal"].update({"stages/1/test": SHA256})),
    ("app", lambda d: d.update(seal=["app"])),
]


def refusal(content: bytes) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ManifestError) as raised:
        unsealed(content, PATH)
    line = str(raised.value)
    assert "\n" not in line
    assert str(PATH) in line
    assert "restore the file" in line
    return line


@pytest.mark.parametrize(("field", "edit"), EDITS)
def test_an_edited_field_is_named(field: str, edit: Edit) -> None:
    data = json.loads(sealed(document()))
    edit(data)
    line = refusal(json.dumps(data).encode())
    assert "was changed after it was saved" in line
    assert f"got {field}" in line


MISSHAPEN: list[tuple[str, Edit]] = [
    ("stages", lambda d: d.update(stages={"9": d["stages"]["1"]})),
    ("stages/1/valid", lambda d: d["stages"]["1"].pop("valid")),
    ("stages/1/status", lambda d: d["stages"]["1"].update(status="done")),
    ("stages/1/status", lambda d: d["stages"]["1"].update(status=["complete"])),
    ("stages/1/seed", lambda d: d["stages"]["1"].update(seed=True)),
    ("stages/1/sha256", lambda d: d["stages"]["1"].update(sha256="z" * 64)),
    ("stages/1/checkpoint", lambda d: d["stages"]["1"].update(checkpoint="../../etc/passwd")),
    ("stages/1/checkpoint", lambda d: d["stages"]["1"].update(checkpoint="a" * 300)),
    ("stages/1/config", lambda d: d["stages"]["1"].update(config=None)),
    ("stages/1/rounds/2/round", lambda d: d["stages"]["1"]["rounds"][2].pop("round")),
    ("stages/1/rounds/0", lambda d: d["stages"]["1"].update(rounds=["0"])),
    ("stages/1/valid/all", lambda d: d["stages"]["1"]["valid"].update(all=None)),
    ("stages/1/valid/all/full", lambda d: d["stages"]["1"]["valid"]["all"].pop("full")),
    ("stages/1/test/new/full", lambda d: d["stages"]["1"]["test"].update(new={})),
    ("stages/2/last", lambda d: d["stages"]["2"]["last"].pop("optimizer_steps")),
    ("stages/2/last", lambda d: d["stages"]["2"].update(last=[])),
    ("superseded/0/last", lambda d: d["superseded"][0].pop("last")),
    ("dataset/sha256", lambda d: d["dataset"].pop("sha256")),
    ("features", lambda d: d.update(features="none")),
]


@pytest.mark.parametrize(("field", "edit"), MISSHAPEN)
def test_a_wrong_shape_is_named_even_under_a_new_seal(field: str, edit: Edit) -> None:
    data = document()
    edit(data)
    line = refusal(sealed(data))
    assert "has no such shape" in line
    assert f"got {field}" in line


@pytest.mark.parametrize("stages", ["[]", "null", '{"1": 7}', '{"1": []}'])
def test_stages_that_are_no_records_are_named(stages: str) -> None:
    data = json.loads(sealed(document()))
    data["stages"] = json.loads(stages)
    assert "got stages" in refusal(json.dumps(data).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unreadable"),
        (b"{", "unreadable"),
        (b"\xff\xfe\xfa", "unreadable"),
        (b"[" * 100_000, "unreadable"),
        (b"[]", "not a manifest of this version"),
        (b'{"format": 2}', "not a manifest of this version"),
        (b'{"format": true, "seal": {}}', "not a manifest of this version"),
        (b'{"format": 1, "seal": {}}', "got format 1;"),
        (b'{"format": 2, "seal": {}, "run": NaN}', "never saved: NaN"),
        (b'{"format": 2, "seal": {}, "run": 1e999}', "never saved: 1e999"),
        (
            b'{"format": 2, "seal": {}, "run": 0.30000000000000001}',
            "never saved: 0.30000000000000001",
        ),
        (b'{"format": 2, "seal": {}, "a\\nb\\ud800": 1}', r"a b\ud800, format"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(content: bytes, message: str) -> None:
    assert message in refusal(content)


def test_an_edited_file_stops_the_run_before_anything_is_used(tmp_path: Path) -> None:
    with open_manifest(tmp_path, "a") as manifest:
        manifest.data |= document()
        manifest.save()
        text = manifest.path.read_text()
    edited = text.replace('"status": "complete"', '"status": "stale"')
    assert edited != text
    manifest.path.write_text(edited)
    before = sorted(manifest.folder.iterdir())
    with pytest.raises(ManifestError, match="got stages/1/status"), open_manifest(tmp_path, "a"):
        pass
    assert manifest.path.read_text() == edited
    assert sorted(manifest.folder.iterdir()) == before


def test_the_seal_of_many_rounds_is_quick() -> None:
    """A manifest is saved every round: three stages of 300 rounds, as fast as JSON itself."""
    data, noise = document(300), np.random.default_rng(0)
    for record in data["stages"].values():
        for entry in record["rounds"]:
            entry["valid"] = {
                str(n): {p: dict.fromkeys(CELL, noise.random()) for p in ("full", "other")}
                for n in range(9)
            }
    started = time.process_time()
    content = sealed(data)
    assert unsealed(content, PATH) == data
    assert time.process_time() - started < 1.0  # measured: 0.1
