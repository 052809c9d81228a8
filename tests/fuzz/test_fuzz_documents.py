"""Drawn manifests and configs: used as they are, or refused in one line (see fuzzing.py)."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_app.record.manifest_file import sealed, unsealed
from shared_model.protocol.config import default_config, parse_settings
from tests.support.fuzzing import FLOATS, INTS, assert_both, cases, edit_json, outcome, tally
from tests.support.manifests import document
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

DEFAULTS = default_config(ROOT / "pyproject.toml")


@st.composite
def edited_manifests(draw: st.DrawFn) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(sealed(document()))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        edit_json(draw, data)
    return data


def test_manifests() -> None:
    """Wrong: any change, however small, that the seal does not tell of."""
    seen: Counter[str] = Counter()
    whole = json.loads(sealed(document()))
    saved = json.dumps(whole, sort_keys=True)

    @cases(1200)
    @given(edited_manifests())
    def check(data: dict[str, Any]) -> None:
        found = outcome(lambda: unsealed(json.dumps(data).encode(), Path("/m")))
        tally(seen, found is not None)
        same = json.dumps(data, sort_keys=True) == saved
        assert (found is not None) == same

    check()
    assert_both(seen, 2)  # what is the same is drawn once, or by edits that change nothing


def use_manifest(data: dict[str, Any]) -> bool:
    """What server_app reads of a manifest: if the shape is right, all of it can be read."""
    stages = data["stages"].values()
    for record in [*stages, *data["superseded"]]:
        assert isinstance(record["checkpoint"] + record["last"].get("file", ""), str)
    for record in stages:
        assert record["status"] in ("running", "complete", "failed", "stale")
        assert sorted(record["config"]) is not None
        assert max([entry["round"] for entry in record["rounds"]], default=0) < math.inf
        for report in (record["valid"], record["test"]):
            assert all(
                f"{cell['hr@10']:.4f}" for cells in report.values() for cell in cells.values()
            )
            assert all(cells["full"]["ndcg@10"] + 0.5 for cells in report.values())
    return bool(data["app"]["sha256"][:12] + data["features"]["sha256"][:12] or True)


def test_manifests_that_were_sealed_anew() -> None:
    """Wrong: a shape that what reads the manifest would stumble over."""
    seen: Counter[str] = Counter()

    @cases(1000)
    @given(edited_manifests())
    def check(data: dict[str, Any]) -> None:
        try:
            content = sealed(data)
        except (AttributeError, KeyError, TypeError):  # too broken to be sealed
            content = json.dumps(data).encode()
        found = outcome(lambda: unsealed(content, Path("/m")))
        tally(seen, found is not None and use_manifest(found))

    check()
    assert_both(seen)


VALUES = st.sampled_from(
    ["", "adam", "cuda:0", "cpu", "/a", "~", "~/x", "~x", "/a\0b", "/\ud800", "a\n"]
)
VALUES |= st.none() | st.booleans() | INTS | FLOATS | st.text(max_size=8) | st.just([1])


def test_configs() -> None:
    """Wrong: a value of another type, a number that is not finite, a path that cannot be one."""
    seen: Counter[str] = Counter()
    keys = st.sampled_from(sorted(DEFAULTS)) | st.text(max_size=5)
    changes = st.dictionaries(keys, VALUES, min_size=1, max_size=2)

    @cases(1200)
    @given(changes, st.sampled_from([None, *DEFAULTS]))
    def check(changed: dict[str, Any], missing: str | None) -> None:
        given_ = DEFAULTS | changed
        if missing is not None and len(changed) == 2:
            del given_[missing]
        found = outcome(lambda: parse_settings(given_))
        tally(seen, found is not None)
        if found is None:
            return
        assert given_.keys() == DEFAULTS.keys()
        for key, default in DEFAULTS.items():
            value = getattr(found, key.replace("-", "_"))
            assert type(value) is type(default)
            assert value == given_[key]
            assert type(value) is not float or math.isfinite(value)
            assert type(value) is not int or abs(value) < 2**31
        for path in (found.home_folder, Path(found.dataset)):
            assert not str(path).startswith("~")
            path.exists()

    check()
    assert_both(seen)
