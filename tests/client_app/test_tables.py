"""The item table on a node's disk: the right version, or lost, never something else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from client_app.tables import HeldTable
from shared_model.errors import NodeError
from shared_model.fingerprint import rows_sum
from shared_model.protocol.plan import TableVersion

ITEMS, SIZE = 30, 4


def version_of(table: Tensor, base: str = "") -> TableVersion:
    return TableVersion(f"{rows_sum(range(len(table)), table):064x}", base)


def history(rounds: int) -> list[tuple[TableVersion, Tensor | None, Tensor, Tensor]]:
    """A whole table, then rounds that change five rows: version, rows, part, the table then."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ITEMS, SIZE, generator=generator)
    told: list[tuple[TableVersion, Tensor | None, Tensor, Tensor]]
    told = [(version_of(table), None, table.clone(), table.clone())]
    for _ in range(rounds):
        rows = torch.randperm(ITEMS, generator=generator)[:5].sort().values
        table[rows] += torch.randn(5, SIZE, generator=generator)
        version = version_of(table, told[-1][0].sha256)
        told.append((version, rows.int(), table[rows], table.clone()))
    return told


def test_rows_lead_from_version_to_version_in_one_process_or_many(tmp_path: Path) -> None:
    """Over more versions than are kept as rows."""
    going_on = HeldTable(tmp_path / "one")
    for version, rows, part, table in history(30):
        for held in (going_on, HeldTable(tmp_path / "many")):
            assert held.bring(version, rows, part)
            assert held.sha256 == version.sha256
            assert torch.equal(held.table, table)
            assert held.bring(version, rows, part)  # twice is once
    assert len(list((tmp_path / "many" / "tables").iterdir())) <= 27


def test_a_node_that_was_away_goes_on_from_its_own_version(tmp_path: Path) -> None:
    told = history(6)
    for version, rows, part, _ in told[:3]:
        assert HeldTable(tmp_path).bring(version, rows, part)
    changed = (told[2][3] != told[6][3]).any(1).nonzero().squeeze(1)
    later = version_of(told[6][3], told[2][0].sha256)
    assert later.sha256 == told[6][0].sha256  # whatever way led there
    held = HeldTable(tmp_path)
    assert held.bring(later, changed.int(), told[6][3][changed])
    assert torch.equal(held.table, told[6][3])


def test_what_is_missing_cut_or_changed_counts_as_lost(tmp_path: Path) -> None:
    told = history(3)
    for version, rows, part, _ in told[:3]:
        assert HeldTable(tmp_path).bring(version, rows, part)
    for name in (told[0][0].sha256, told[2][0].sha256):  # the whole table, and rows on top of it
        path = tmp_path / "tables" / f"{name}.safetensors"
        content = path.read_bytes()
        changed = content[:-1] + bytes([content[-1] ^ 1])
        for broken in (None, b"", content[: len(content) // 2], changed):
            path.unlink() if broken is None else path.write_bytes(broken)
            assert not HeldTable(tmp_path).bring(*told[3][:3])
        path.write_bytes(content)
    assert HeldTable(tmp_path).bring(*told[3][:3])


def test_other_content_than_the_plans_is_refused(tmp_path: Path) -> None:
    first, second = history(1)
    held = HeldTable(tmp_path)
    with pytest.raises(NodeError, match="not that of the plan"):
        held.bring(first[0], None, first[2] + 1)
    held.bring(*first[:3])
    rows, part = second[1:3]
    assert rows is not None
    for bad in ((rows, part + 1), (rows + 1, part), (rows + 30, part), (rows, part[:2])):
        with pytest.raises(NodeError):
            held.bring(second[0], *bad)
        assert torch.equal(held.table, first[3])
