"""Settings that could not keep a promise of differential privacy are refused in one line."""

import subprocess
import sys
from typing import Any

import pytest

from shared_model.errors import ConfigError
from shared_model.protocol.config import default_config, parse_settings
from tests.support.paths import ROOT

DEFAULTS = default_config(ROOT / "pyproject.toml")
PRIVATE = DEFAULTS | {
    "stage": 1,
    "dp-clip-norm": 0.5,
    "dp-noise-multiplier": 1.0,
    "weighting": "uniform",
    "aggregation": "mean",
}


SECURE = {"dp-noise-multiplier": 0.0, "aggregation": "secure"}


def test_a_private_run_is_told_from_others() -> None:
    assert parse_settings(PRIVATE).private
    assert not parse_settings(DEFAULTS).private
    clipped = DEFAULTS | {"dp-clip-norm": 0.5, "weighting": "uniform"}
    assert not parse_settings(clipped).private  # a defence, with any aggregation
    assert parse_settings(PRIVATE | {"stage": 0, "memory-novelty": 0.3}).private


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dp-clip-norm": 0.0}, "noise without clipping.*'dp-clip-norm'"),
        ({"dp-noise-multiplier": 0.05}, "'dp-noise-multiplier'; expected >= 0.1; got 0.05"),
        ({"dp-noise-multiplier": 0.0, "dp-epsilon": 8.0}, "budget.*'dp-noise-multiplier'"),
        ({"weighting": "targets"}, "'weighting'; expected uniform; got targets"),
        ({"dp-noise-multiplier": 0.0, "weighting": "targets"}, "'weighting'; expected uniform"),
        ({"aggregation": "clipped"}, "'aggregation'; expected mean; got clipped"),
        ({"aggregation": "median"}, "'aggregation'; expected mean; got median"),
        ({"aggregation": "trimmed"}, "'aggregation'; expected mean; got trimmed"),
        ({"stage": 0}, "'memory-novelty'"),
        ({"stage": 2}, "'memory-novelty'"),
        ({"stage": 3}, "'memory-novelty'"),
        ({"dp-noise-multiplier": 1e160}, "'dp-noise-multiplier'; expected <= 65536"),
        ({"fraction-train": 1e-300}, "'fraction-train'; expected >= 1e-6"),
        ({"dp-noise-multiplier": 0.0, "dp-noise-on": "nodes"}, "no node draws any"),
        ({"dp-noise-on": "moon"}, "'dp-noise-on'.*server, nodes"),
        ({"dp-clip-norm": -1.0}, "'dp-clip-norm'"),
        ({"dp-epsilon": float("inf")}, "'dp-epsilon'"),
        ({"dp-delta": 0.0}, "'dp-delta'"),
        ({"dp-delta": 1.0}, "'dp-delta'"),
        ({"candidates": 512}, "'candidates'; expected 0; got 512"),
        (SECURE | {"candidates": 512}, "'candidates'; expected 0; got 512"),
        (SECURE | {"wire-dtype": "int8"}, "'wire-dtype'; expected float32; got int8"),
    ],
)
def test_what_cannot_keep_a_promise_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as raised:
        parse_settings(PRIVATE | changed)
    assert "\n" not in str(raised.value)


def test_the_limits_alone_load_no_torch() -> None:
    """The command reads them whenever it starts."""
    code = "import sys, feddmmr.cli; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
