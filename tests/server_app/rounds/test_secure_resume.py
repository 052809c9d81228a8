"""Secure runs whose server is killed in any step end in the same bytes."""

from pathlib import Path
from typing import Any

import pytest

from server_app.rounds.exchange import Asking
from server_app.rounds.secure import SecureSums
from tests.conftest import CutError, checkpoint
from tests.support.rounds import without_seconds
from tests.support.secure_rounds import SECURE

TWO: dict[str, Any] = {**SECURE, "num_rounds": 2, "evaluate_every": 2, "evaluate_users": 5}


def cut_after(monkeypatch: pytest.MonkeyPatch, step: str, call: int) -> None:
    """The server dies when it has the answers of a step, and says goodbye to nobody."""
    original, calls = getattr(SecureSums, step), []

    def cut(self: SecureSums, *args: Any) -> Any:
        result = original(self, *args)
        calls.append(step)
        if len(calls) == call:
            raise CutError
        return result

    monkeypatch.setattr(SecureSums, step, cut)
    monkeypatch.setattr(Asking, "close", lambda _: None)


def test_a_server_that_is_killed_in_any_step_goes_on_with_new_keys(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 2, when masked vectors are there, and when shares are."""
    whole, home = run(3, run="whole", **TWO), tmp_path / "home"
    expected = checkpoint(tmp_path, "whole", whole)
    for step, call in (("attempt", 2), ("_shares", 2)):
        with monkeypatch.context() as patch:
            cut_after(patch, step, call)
            with pytest.raises(CutError):
                run(3, run=f"cut{step}", **TWO)
        left = {path: path.read_text() for path in (home / "secure").iterdir()}
        assert len(left) == 3
        resumed = run(3, run=f"cut{step}", **TWO)
        assert not any((home / "secure").iterdir())
        found = checkpoint(tmp_path, f"cut{step}", resumed)
        assert all((expected[name] == found[name]).all() for name in expected)
        assert resumed["stages"]["1"]["test"] == whole["stages"]["1"]["test"]
    assert whole["stages"]["1"]["secure"] == {"against": "lying", "threshold": 2, "sites": 3}
    assert without_seconds(whole)["rounds"][-1]["loss"] is None
