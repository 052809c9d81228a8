"""The house rules: import contract, sizes, no pickles, one version, a file map that is true."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from server_app.app import VERSION
from shared_model.stages import STAGES
from tests.support.paths import ROOT

PACKAGES = ("client_app", "server_app", "shared_model", "feddmmr", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_the_import_contract_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_sizes_docstrings_and_forbidden_calls(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert source.count("\n") <= 300
    assert ast.get_docstring(tree), "a file says what its one idea is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    for forbidden in ("torch.load(", "pickle", "strict=False", "weights_only=False", "np.random."):
        uses = [line for line in source.splitlines() if re.search(re.escape(forbidden), line)]
        if forbidden == "torch.load(":  # .pt files of users, as tensors alone
            uses = [u for u in uses if "weights_only=True" not in u]
        if forbidden == "np.random.":
            uses = [u for u in uses if not re.search(r"np\.random\.(Generator|Philox)", u)]
        if forbidden == "pickle":
            uses = [u for u in uses if not re.search(r"allow_pickle=False|never|no pickle", u)]
        assert not uses


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_the_apps_start_light() -> None:
    """A message may be a new process: it imports no pandas, pyarrow, ray or torch's compiler."""
    code = (
        "import sys, client_app.app; from shared_model import stages; "
        "from shared_model.model import recommender as model; "
        "shape = model.ModelShape(9, 8, 2, 1, 5, 512, 384); "
        "[model.build(shape, 0, stage=stage) for stage in stages.STAGES.values()]; "
        "heavy = ('pandas', 'pyarrow', 'ray', 'scipy', 'torch._dynamo', 'sympy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_config_key_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = (ROOT / "docs" / "configuration.md").read_text()
    for key, default in project["tool"]["flwr"]["app"]["config"].items():
        shown = str(default).lower() if isinstance(default, bool) else default
        assert f"| `{key}` | `{shown!s}` |" in text or f'| `{key}` | `"{shown}"` |' in text, key


def test_the_stages_own_defaults_are_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    stages = STAGES.values()
    for key, values in (
        ("num-rounds", [stage.default_rounds for stage in stages]),
        ("server-learning-rate", [stage.default_rate for stage in stages]),
    ):
        *first, last = map(str, values)
        assert f"({', '.join(first)} and {last}" in rows[key], key


def test_the_file_map_is_true() -> None:
    text = (ROOT / "README.md").read_text()
    mapped = set(re.findall(r"^(?:  )?(\w+\.py)\s", text, flags=re.MULTILINE))
    actual = {path.name for path in SOURCES if path.name != "__init__.py"}
    assert mapped == actual
