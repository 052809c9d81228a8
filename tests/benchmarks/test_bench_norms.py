"""The benchmark of the norm limit on tiny input: added up, many nodes' updates are few nodes'."""

import json
from pathlib import Path

import pytest

from benchmarks.sites import norms
from benchmarks.sites.norms import main
from tests.support.staged import SETTINGS, write_mixed

TINY = [f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in SETTINGS.items()]


def shares(folder: Path, dataset: Path, *given: str) -> dict[str, dict[str, list[float]]]:
    out = folder / "norms.json"
    main(["--dataset", str(dataset), "--out", str(out), "--rounds", "1", *given, "--set", *TINY])
    found: dict[str, dict[str, list[float]]] = json.loads(out.read_bytes())["stages"]
    return found


def test_many_nodes_added_up_have_the_shares_of_few(tmp_path: Path) -> None:
    dataset = write_mixed(tmp_path / "dataset")
    many = shares(tmp_path, dataset, "--nodes", "12", "--into", "3", "6", "12")
    few = shares(tmp_path, dataset, "--nodes", "3", "--into", "3")
    assert list(many) == ["1", "2", "3"]
    for stage, found in many.items():
        assert list(found) == ["3", "6", "12"]
        assert found["3"] == pytest.approx(few[stage]["3"], rel=1e-4)
        assert all(0 < share < 1 / norms.ROOM for of in found.values() for share in of)


def test_too_little_room_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "limit", lambda participants, mixes: 0.1)
    with pytest.raises(SystemExit) as ended:
        shares(tmp_path, write_mixed(tmp_path / "dataset"), "--nodes", "3", "--into", "3")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: less than 1.5 times of room\n"


def test_nodes_that_do_not_add_up_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "out.json"), "--nodes", "12", "--into", "3", "5"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "divisors of --nodes (12)" in error
    assert error.count("\n") == 1
