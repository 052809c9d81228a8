"""The packages: the committed set fits pyproject.toml, and writes what it is given."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from safetensors.numpy import load_file, save

from client_app.data.compile import write_dataset
from feddmmr.features.output import write_features
from server_app.record.checkpoint import load_checkpoint, save_checkpoint
from tests.support.paths import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def asked_for() -> list[Requirement]:
    """Everything that pyproject.toml names: dependencies, extras and development."""
    project = PYPROJECT["project"]
    groups = [*project["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    named = [*project["dependencies"], *(text for group in groups for text in group)]
    found = [Requirement(text) for text in named]
    return [requirement for requirement in found if requirement.name != "feddmmr"]


def committed(python: str) -> dict[str, str]:
    """Name and version of each package of the set, on Linux with this Python."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    found = {}
    for line in CONSTRAINTS.splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate(where):
                (pin,) = one.specifier
                assert pin.operator == "==", line
                assert canonicalize_name(one.name) not in found, line
                found[canonicalize_name(one.name)] = pin.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_committed_set_is_what_the_project_asks_for(python: str) -> None:
    assert python in SpecifierSet(PYPROJECT["project"]["requires-python"])
    versions = committed(python)
    for requirement in asked_for():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (str(requirement), version)


def test_no_registry_is_named_in_it() -> None:
    assert "://" not in CONSTRAINTS
    assert not re.search(r"^-|@", CONSTRAINTS, re.MULTILINE)


def test_what_counts_as_the_code_of_a_private_run_is_pinned() -> None:
    """By server_app.app.app_record: a fresh installation gets the same versions."""
    for requirement in map(Requirement, PYPROJECT["project"]["dependencies"]):
        if requirement.name in {"flwr", "torch", "numpy", "safetensors"}:  # flwr by two bounds,
            versions = {one.version for one in requirement.specifier}  # as Flower Hub asks for
            assert len(versions) == 1, str(requirement)
            assert not requirement.specifier.contains(versions.pop() + ".1")


def strided(rows: int) -> np.ndarray:
    """Unit rows [rows, 4] as a view with strides, each of them another: what 0.8.0 gets wrong."""
    wide = np.random.default_rng(0).standard_normal((4, 3 * rows)).astype(np.float32)
    view = wide.T[::3]
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    assert not view.flags.c_contiguous
    return view


def test_safetensors_writes_strided_arrays_right(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(save({"a": strided(6)}))
    np.testing.assert_array_equal(load_file(tmp_path / "file")["a"], strided(6))


def test_our_writers_write_strided_arrays_right(tmp_path: Path) -> None:
    view = strided(6)
    write_features(tmp_path / "own.safetensors", {"text": view}, {"text": "x"}, {})
    np.testing.assert_allclose(load_file(tmp_path / "own.safetensors")["text"], view, atol=1e-3)
    times = pd.DataFrame(
        [(user, item, item) for user in (1, 2) for item in range(1, 7)],
        columns=["user_id", "item_id", "timestamp"],
    )
    items = pd.DataFrame({"item_id": range(1, 7), "cold": 0})
    write_dataset(tmp_path / "data", times, items, {"text": view}, "small")
    found = load_file(tmp_path / "data" / "features.safetensors")["text"]
    np.testing.assert_allclose(found, view, atol=1e-3)
    tensors = {"a": torch.arange(12.0).reshape(3, 4).T, "b": torch.arange(10.0)[::3]}
    file, sha256 = save_checkpoint(tmp_path, "stage1", tensors)
    for name, value in load_checkpoint(tmp_path / file, sha256).items():
        assert torch.equal(value, tensors[name])
