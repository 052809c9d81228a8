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
from tests.support.file_map import PACKAGES, PAGE, sources, with_map
from tests.support.paths import ROOT

SOURCES = sources()


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
    page = PAGE.read_text()
    assert page == with_map(page), "uv run python -m tests.support.file_map"


def test_every_room_is_named_and_none_is_crowded() -> None:
    text = PAGE.read_text()
    rooms = {path.parent for path in SOURCES}
    for room in rooms:
        assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 14, room
        top = room.relative_to(ROOT).parts[0]
        told = re.search(rf"^{top}/.*(\n .*)*", text, flags=re.MULTILINE)
        assert told
        assert room.name in f"{top} {told[0]} speed_parts fault_parts quality_parts reading", room


def test_what_is_cited_stands_in_architecture() -> None:
    """ "Invariant 7" is a number on that page; no other design is spoken of."""
    numbers = set(re.findall(r"^(\d+)\. \*\*", PAGE.read_text(), flags=re.MULTILINE))
    assert numbers == {str(number) for number in range(1, 11)}
    tests = sorted((ROOT / "tests").rglob("*.py"))
    for path in [*SOURCES, *(test for test in tests if test != Path(__file__))]:
        source = path.read_text()
        assert "design section" not in source, path
        assert set(re.findall(r"[Ii]nvariants? (\d+)", source)) <= numbers, path
    for cited in set(re.findall(r"`(tests/[\w/]+\.py)`", PAGE.read_text())):
        assert (ROOT / cited).is_file(), cited


def test_no_test_imports_a_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        imported = re.findall(r"^from tests\.(\S+) import", path.read_text(), flags=re.MULTILINE)
        assert all(name.startswith(("support.", "conftest")) for name in imported), path


def test_a_wheel_installs_no_package_that_could_be_anybodys() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) == set(PACKAGES) - {"benchmarks"}


def test_nobody_writes_into_a_strategy() -> None:
    """What a strategy needs is given to its constructor or a call; a round is a value."""
    writing = re.compile(r"strategy\.\w+ [-+*/|&]?= |setattr\(\S*strategy,")
    assert writing.search("self._strategy.split = split")
    assert writing.search("strategy.dropped += [node]")
    for path in SOURCES:
        assert not (found := writing.findall(path.read_text())), f"{path}: {found}"


def test_the_split_and_the_warm_items_have_one_home() -> None:
    rules = (r"lengths\([^)]*\) - \d", r"indptr\[1:\] - \d", r"~(self\.)?(dataset\.)?cold\b(?!_)")
    homes = {"client_app/data/split.py", "client_app/data/dataset.py"}
    for path in SOURCES:
        where = path.relative_to(ROOT).as_posix()
        if where not in homes and where.startswith(("client_app", "server_app", "feddmmr")):
            found = [rule for rule in rules if re.search(rule, path.read_text())]
            assert not found, where
