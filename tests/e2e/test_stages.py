"""All three stages in process: order, arrays, messages, resume and records (docs/stages.md).

Over 300 lines on purpose: every claim is about the same run, which is trained once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from client_app.data.dataset import Dataset
from shared_model.errors import ConfigError, FedDMMRError, ManifestError, ModelError
from shared_model.fingerprint import file_sha256
from shared_model.model.recommender import build
from shared_model.protocol import messages
from shared_model.stages import STAGES, group_of, stage_of
from tests.conftest import CutError
from tests.support.staged import (
    NODES,
    SHAPE,
    Whole,
    edit_manifest,
    plan,
    watching,
)


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    rounds = [{k: v for k, v in e.items() if k != "seconds"} for e in record["rounds"]]
    return record | {"rounds": rounds}


@pytest.mark.parametrize(("stage", "groups"), [(2, ["all"]), (3, ["all", "as-cold"])])
def test_a_stage_begins_where_the_best_of_the_last_one_was(
    whole: Whole, stage: int, groups: list[str]
) -> None:
    """Invariant 2."""
    best, start = whole.stage(stage - 1)["valid"], whole.stage(stage)["rounds"][0]
    assert start["round"] == 0
    for group in groups:
        assert best[group].keys() == start["valid"][group].keys()
        for protocol, cell in best[group].items():
            assert start["valid"][group][protocol] == pytest.approx(cell, abs=1e-6)
            assert cell["users"] > 0
    assert len({str(entry["valid"]) for entry in whole.stage(stage)["rounds"]}) > 1


def test_topology_changes_nothing_in_any_stage(whole: Whole, tmp_path: Path) -> None:
    """Invariant 1: arrays of every last round, and the threshold that the nodes agree upon."""
    novelty = whole.stage(2)["memory_novelty"]
    assert 0 < novelty < 2
    for nodes in (1, 7):
        with watching() as seen:
            manifest = whole.go(tmp_path / f"nodes-{nodes}", nodes, stage=0)
        for stage in STAGES:
            one, other = whole.seen.arrays[stage, 3], seen.arrays[stage, 3]
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert (value - other[name]).abs().max() <= 1e-5, (nodes, stage, name)
        assert manifest["stages"]["2"]["memory_novelty"] == novelty
        assert manifest["stages"]["3"]["memory_novelty"] == novelty


@pytest.mark.parametrize(
    ("before", "overrides", "named"),
    [
        ("nothing", {"stage": 2}, "stage 2 needs a complete stage 1.*not run"),
        ("nothing", {"stage": 3}, "stage 3 needs a complete stage 1.*not run"),
        ("first", {"stage": 3}, "stage 3 needs a complete stage 2.*not run"),
        ("redone", {"stage": 3}, "stage 3 needs a complete stage 2.*stale"),
        ("first", {"stage": 2, "hidden_size": 32}, "hidden_size=16.*hidden_size=32"),
        ("first", {"stage": 0, "seed": 1}, "seed=0.*seed=1"),
        ("whole", {"stage": 3, "modalities": "text", "redo": True}, "modalities=both.*=text"),
    ],
)
def test_a_stage_out_of_order_is_refused_and_nothing_is_trained(
    whole: Whole, tmp_path: Path, before: str, overrides: dict[str, Any], named: str
) -> None:
    """Invariant 3."""
    home = tmp_path / "home"
    if before != "nothing":
        whole.copy(tmp_path, first=before == "first")
    if before == "redone":
        whole.go(home, stage=1, redo=True, num_rounds=1)
    files = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with watching() as seen, pytest.raises(ManifestError, match=named):
        whole.go(home, **overrides)
    assert not seen.sent
    assert not seen.arrays
    assert all(path.read_bytes() == content for path, content in files.items())
    assert set(home.rglob("*.safetensors")) == {p for p in files if p.suffix == ".safetensors"}


def test_a_parent_with_one_other_byte_is_refused(whole: Whole, tmp_path: Path) -> None:
    home = whole.copy(tmp_path, first=True)
    path = home / "runs/default" / whole.stage(1)["checkpoint"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with watching() as seen, pytest.raises(ManifestError, match="missing or was changed"):
        whole.go(home, stage=2)
    assert not seen.sent
    path.write_bytes(content)
    assert whole.go(home, stage=2)["stages"]["2"]["sha256"] == whole.stage(2)["sha256"]


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
@pytest.mark.parametrize(
    ("stage", "name"), [(2, "backbone.positions"), (3, "mixture.fusion.output.weight")]
)
def test_a_parent_that_does_not_fit_is_refused_by_name(
    whole: Whole, tmp_path: Path, stage: int, name: str, fault: str
) -> None:
    """Invariant 4: also if its hash is the recorded one."""
    home = whole.copy(tmp_path, first=stage == 2)
    path = home / "runs/default" / whole.stage(stage - 1)["checkpoint"]
    arrays, key = load_file(path), f"model/{name}"
    if fault == "missing":
        del arrays[key]
    elif fault == "unexpected":
        name = "backbone.more.weight"
        arrays[f"model/{name}"] = torch.ones(2)
    else:
        arrays[key] = arrays[key][:-1].clone()
    save_file(arrays, path)
    edit_manifest(home, stage - 1, sha256=file_sha256(path))
    with watching() as seen, pytest.raises(ModelError, match=f"{fault}: .*{name}"):
        whole.go(home, stage=stage, redo=True)
    assert not seen.sent


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_is_loaded_frozen_and_trained_is_the_tables(whole: Whole, number: int) -> None:
    """Invariants 4 and 6: loaded to the bit, fresh as built, frozen to the end, trained moved."""
    stage, record = stage_of(number), whole.stage(number)
    for key in ("loaded", "trained", "frozen"):
        assert record[key] == list(getattr(stage, key)), key
    start = whole.seen.arrays[number, 0]
    fresh = build(SHAPE, 0, stage=stage, gate=1.0).state_dict()
    parent = whole.best(number - 1) if number > 1 else {}
    assert start.keys() == fresh.keys()
    for name, value in start.items():
        loaded = group_of(name) in stage.loaded
        assert torch.equal(value, parent[name] if loaded else fresh[name]), name
        for round_ in (2, 3):
            now = whole.seen.arrays[number, round_][name]
            assert torch.equal(value, now) == (group_of(name) in stage.frozen), name
    assert {group_of(name) for name in whole.best(number)} == set(stage.groups)


@pytest.mark.parametrize("number", [2, 3])
def test_frozen_groups_travel_once(whole: Whole, number: int) -> None:
    """Invariant 5: to each node, in round 0; updates hold the trained groups alone."""
    stage, seen = stage_of(number), whole.seen
    assert len(seen.frozen_sent(number)) == len(set(seen.frozen_sent(number))) == NODES
    names = set(whole.seen.arrays[number, 0])
    trained = {name for name in names if group_of(name) in stage.trained}
    asked = [(request, plan(request)) for _, request in seen.sent]
    asked = [(r, p) for r, p in asked if p.stage == number and getattr(p, "split", "") != "test"]
    for request, _ in asked:
        records = dict(request.content.array_records)
        assert set(records.pop("frozen", {})) in (set(), names - trained)
        assert [set(record) for record in records.values()] == [trained]
    for entry in whole.stage(number)["rounds"]:
        sizes = [messages.content_bytes(r.content) for r, p in asked if p.round == entry["round"]]
        assert entry["bytes_down"] == sum(sizes)
    updates = [
        set(record)
        for of, content in seen.replies
        for record in content.array_records.values()
        if of == number
    ]
    assert updates == [trained] * (NODES * 3)


@pytest.mark.parametrize("damage", ["deleted", "one byte"])
def test_a_node_that_lost_its_frozen_groups_asks_again(
    whole: Whole, tmp_path: Path, damage: str
) -> None:
    home = whole.copy(tmp_path, first=True)

    def lose() -> None:
        (path,) = (home / "frozen").glob("*.safetensors")
        content = path.read_bytes()
        path.unlink()
        if damage == "one byte":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with watching((2, 1), lose) as seen:
        record = whole.go(home, stage=2)["stages"]["2"]
    assert len(seen.frozen_sent(2)) == 2 * NODES
    assert record["sha256"] == whole.stage(2)["sha256"]
    first = whole.stage(2)["rounds"]
    more = [e["bytes_down"] - f["bytes_down"] for e, f in zip(record["rounds"], first, strict=True)]
    assert more[2] > 0 == more[0] == more[1] == more[3]
    assert not any(entry["dropped"] for entry in record["rounds"])


@pytest.mark.parametrize("at", [(2, 0), (2, 2), (3, 0), (3, 1), (3, 3)])
def test_a_cut_off_run_ends_in_the_same_bytes(
    whole: Whole, tmp_path: Path, at: tuple[int, int]
) -> None:
    """Invariant 9 in Stages 2 and 3."""
    home = whole.copy(tmp_path, first=True)

    def cut() -> None:
        raise CutError

    with watching(at, cut), pytest.raises(CutError):
        whole.go(home, stage=0)
    with watching() as seen:
        manifest = whole.go(home, stage=0)
    every = {(number, round_) for number in (2, 3) for round_ in range(4)}
    assert set(seen.arrays) == {now for now in every if now > at}  # no round is done twice
    for number in (2, 3):
        record = without_seconds(manifest["stages"][str(number)])
        assert record == without_seconds(whole.stage(number))


def test_without_features_stage_1_alone_runs(
    small_dataset: Dataset, whole: Whole, tmp_path: Path
) -> None:
    given = {"dataset": str(small_dataset.folder)}
    for stage in (0, 2):
        with watching() as seen, pytest.raises(ConfigError, match="stage=1") as raised:
            whole.go(tmp_path / "home", stage=stage, **given)
        assert "stage 2 needs features" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert not seen.sent
        assert not (tmp_path / "home").exists()
    stages = whole.go(tmp_path / "home", stage=1, **given)["stages"]
    assert stages["1"]["status"] == "complete"
    with pytest.raises(FedDMMRError, match="needs features"):
        whole.go(tmp_path / "home", stage=2, **given)


def test_rounds_say_what_the_mixture_does(whole: Whole) -> None:
    for entry in whole.stage(1)["rounds"]:
        assert not {"gate", "router", "losses", "memory"} & set(entry)
    for number in (2, 3):
        for entry in whole.stage(number)["rounds"][1:]:
            router, losses, memory = entry["router"], entry["losses"], entry["memory"]
            arrays = whole.seen.arrays[number, entry["round"]]
            assert entry["gate"] == float(arrays["mixture.gate"])
            assert set(router) == {"visual", "text", "entropy"}
            assert 0 < router["visual"] < 1
            assert 0.6 < router["visual"] + router["text"] <= 1 + 1e-6  # some items have neither
            assert 0 < router["entropy"] <= np.log(2)
            assert set(losses) == {"alignment", "load_balance"}
            assert 0 < losses["alignment"] < 20
            assert 0 <= losses["load_balance"] <= 1
            assert set(memory) == {"write_rate", "short_term", "long_term"}
            assert 0 < memory["write_rate"] <= 1
            assert 0 < memory["short_term"] <= 4
            assert 0 < memory["long_term"] <= 5
    assert whole.stage(2)["rounds"][-1]["gate"] != 1.0
    balances = [entry["losses"]["load_balance"] for entry in whole.stage(3)["rounds"][1:]]
    assert balances[0] < 1e-9 < balances[-1]  # the router starts even, and is trained
