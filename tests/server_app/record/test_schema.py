"""The manifest's declaration: the manual has its fields and no others, and runs keep to it."""

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import pytest

from server_app.record.schema import (
    PARTS,
    SPLITS,
    Empty,
    Figures,
    ManifestDocument,
    PrivacyLedger,
    RoundRecord,
    StageRecord,
)
from shared_model.protocol.metrics import Ranks, rank_sums
from tests.support.paths import ROOT
from tests.support.private_runs import DP
from tests.support.staged import Whole

# Each of these has a table of its own in docs/manifest.md, under this heading.
TABLES: dict[str, Any] = {
    "The document": ManifestDocument,
    "A stage's record": StageRecord,
    "A round": RoundRecord,
    "Figures": Figures,
    "The ledger": PrivacyLedger,
}


def records_in(kind: Any) -> Iterator[Any]:
    """The ``TypedDict``s that a field's type speaks of, through lists, unions and the like."""
    if is_typeddict(kind):
        yield kind
    for inner in get_args(kind):
        yield from records_in(inner)


def declared(kind: Any, path: str = "") -> Iterator[str]:
    """Every field of a record, and, after a dot, those of records in it that have no own table."""
    for name, inner in get_type_hints(kind).items():
        yield path + name
        for record in records_in(inner):
            if record is not Empty and record not in TABLES.values():
                yield from declared(record, f"{path}{name}.")


def documented(heading: str) -> list[str]:
    """The names in the first column of the table under a heading of the manual."""
    text = (ROOT / "docs" / "manifest.md").read_text()
    _, _, section = text.partition(f"\n## {heading}\n")
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.MULTILINE)
    return [name for row in rows for name in re.findall("`([^`]+)`", row)]


@pytest.mark.parametrize("heading", TABLES)
def test_the_manual_has_every_field_once_and_no_other(heading: str) -> None:
    assert sorted(documented(heading)) == sorted(declared(TABLES[heading]))


def test_the_manual_has_what_was_forgotten_before() -> None:
    assert {"refused.reason", "epsilon", "left", "joined", "memory.write_rate"} <= set(
        documented("A round")
    )
    assert "candidates" in documented("Figures")


def test_figures_are_those_that_are_measured() -> None:
    nobody = np.zeros(0, np.int64)
    assert set(rank_sums(Ranks(nobody, nobody))) == set(get_type_hints(Figures))


def test_names_by_which_fields_are_looped_over_are_fields() -> None:
    assert set(SPLITS) <= StageRecord.__required_keys__
    assert set(PARTS) <= ManifestDocument.__required_keys__


def undeclared(value: Any, kind: Any, path: str = "") -> Iterator[str]:
    """Paths of the fields in a value that its type does not have."""
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        for name, inner in value.items():
            if name not in hints:
                yield f"{path}/{name}"
            else:
                yield from undeclared(inner, hints[name], f"{path}/{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from undeclared(inner, get_args(kind)[0], path)
    elif isinstance(value, dict) and get_origin(kind) is dict:
        for name, inner in value.items():
            yield from undeclared(inner, get_args(kind)[1], f"{path}/{name}")
    elif value and (records := [record for record in records_in(kind) if record is not Empty]):
        yield from undeclared(value, records[0], path)


def test_a_run_writes_only_what_is_declared(run: Any) -> None:
    run(1)
    document = run(1, redo=True)
    assert document["superseded"]
    found = undeclared(document, ManifestDocument)
    assert {path for path in found if not path.startswith("/superseded/")} == set()


def test_a_private_run_writes_only_what_is_declared(run: Any) -> None:
    document = run(1, **DP)
    assert document["stages"]["1"]["privacy"]
    assert list(undeclared(document, ManifestDocument)) == []


@pytest.mark.slow
def test_stages_that_mix_write_only_what_is_declared(whole: Whole) -> None:
    assert {"gate", "router", "losses", "memory"} <= set(whole.manifest["stages"]["2"]["rounds"][1])
    assert list(undeclared(whole.manifest, ManifestDocument)) == []
