"""Frozen groups on a node's disk: whole and the right ones, or lost, never something else."""

import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from client_app import frozen
from client_app.frozen import keep_frozen, read_frozen
from shared_model.errors import NodeError
from shared_model.fingerprint import arrays_sha256
from shared_model.model.recommender import ModelShape, build, read_groups
from shared_model.stages import STAGES

SHAPE = ModelShape(num_items=9, hidden=8, heads=2, blocks=1, max_length=5, visual=12, text=6)
ARRAYS = read_groups(build(SHAPE, 0, stage=STAGES[2]), STAGES[2].frozen)
SHA256 = arrays_sha256(ARRAYS)


def only_file(home: Path) -> Path:
    (path,) = (home / "frozen").iterdir()
    return path


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    assert read_frozen(tmp_path, SHA256) is None
    keep_frozen(tmp_path, SHA256, ARRAYS)
    found = read_frozen(tmp_path, SHA256)
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert only_file(tmp_path).name == f"{SHA256}.safetensors"  # and nothing temporary


def test_two_models_lie_side_by_side(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in ARRAYS.items()}
    for arrays in (ARRAYS, other, ARRAYS):
        keep_frozen(tmp_path, arrays_sha256(arrays), arrays)
    for arrays in (ARRAYS, other):
        found = read_frozen(tmp_path, arrays_sha256(arrays))
        assert found is not None
        assert arrays_sha256(found) == arrays_sha256(arrays)
    assert read_frozen(tmp_path, "0" * 64) is None


def test_every_cut_and_every_changed_byte_counts_as_lost(tmp_path: Path) -> None:
    keep_frozen(tmp_path, SHA256, ARRAYS)
    path = only_file(tmp_path)
    content = path.read_bytes()
    for length in range(0, len(content), 101):
        path.write_bytes(content[:length])
        assert read_frozen(tmp_path, SHA256) is None
    harmless = 0
    for place in [*range(200), *range(200, len(content), 53)]:
        broken = bytearray(content)
        broken[place] ^= 1
        path.write_bytes(broken)
        found = read_frozen(tmp_path, SHA256)
        harmless += found is not None  # a space of the header, say: then the arrays are the same
        assert found is None or arrays_sha256(found) == SHA256
    assert harmless < 5
    keep_frozen(tmp_path, SHA256, ARRAYS)  # what was lost comes again
    assert read_frozen(tmp_path, SHA256) is not None


def test_a_whole_file_of_another_model_counts_as_lost(tmp_path: Path) -> None:
    keep_frozen(tmp_path, SHA256, ARRAYS)
    path = only_file(tmp_path)
    for other in (
        {name: value + 1 for name, value in ARRAYS.items()},
        {name: value for name, value in ARRAYS.items() if "positions" not in name},
        {name: value.double() for name, value in ARRAYS.items()},
        {name: value.bfloat16() for name, value in ARRAYS.items()},
        {},
    ):
        path.write_bytes(save(other))
        assert read_frozen(tmp_path, SHA256) is None
    path.unlink()
    path.mkdir()
    assert read_frozen(tmp_path, SHA256) is None


def test_wrong_content_is_refused_and_not_kept(tmp_path: Path) -> None:
    changed = {name: value.clone() for name, value in ARRAYS.items()}
    changed["item_embedding.weight"][1, 1] += 1e-6
    with pytest.raises(NodeError, match="not those of the plan") as raised:
        keep_frozen(tmp_path, SHA256, changed)
    assert SHA256[:12] in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def assert_one_clear_line(error: NodeError, home: Path) -> None:
    line = str(error)
    assert "\n" not in line
    assert line.startswith("cannot keep the frozen groups; where: ")
    assert str(home) in line
    assert "free disk space, or choose a writable 'home'" in line


@pytest.mark.parametrize("place", ["", "frozen"])
def test_a_file_in_the_place_of_the_folder_is_one_clear_line(tmp_path: Path, place: str) -> None:
    home = tmp_path / "home"
    blocked = home / place
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    with pytest.raises(NodeError) as raised:
        keep_frozen(home, SHA256, ARRAYS)
    assert_one_clear_line(raised.value, home)
    assert blocked.read_text() == "in the way"
    assert read_frozen(home, SHA256) is None


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    (tmp_path / "frozen").mkdir(mode=0o555)
    with pytest.raises(NodeError) as raised:
        keep_frozen(tmp_path, SHA256, ARRAYS)
    assert_one_clear_line(raised.value, tmp_path)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """As a limit on the size of files, which fails in the middle of a write, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(NodeError, match="File too large") as raised:
            keep_frozen(tmp_path, SHA256, ARRAYS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_one_clear_line(raised.value, tmp_path)
    assert list((tmp_path / "frozen").iterdir()) == []


def test_tensors_with_strides_are_kept(tmp_path: Path) -> None:
    """safetensors refuses a transposed view, such as a message may hold."""
    arrays = {"a": torch.arange(12.0).reshape(3, 4).T, "b": torch.arange(10.0)[::3]}
    keep_frozen(tmp_path, arrays_sha256(arrays), arrays)
    found = read_frozen(tmp_path, arrays_sha256(arrays))
    assert found is not None
    assert found["a"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert found["b"].tolist() == [0, 3, 6, 9]


def variant(number: int) -> tuple[str, dict[str, torch.Tensor]]:
    arrays = {name: value + number for name, value in ARRAYS.items()}
    return arrays_sha256(arrays), arrays


def keep_many(home: Path, numbers: range) -> list[str]:
    """Keep variants, each used a second after the one before it; their hashes."""
    hashes = []
    for number in numbers:
        sha256, arrays = variant(number)
        keep_frozen(home, sha256, arrays)
        os.utime(home / "frozen" / f"{sha256}.safetensors", (number, number))
        hashes.append(sha256)
    return hashes


def test_the_folder_does_not_grow_and_the_oldest_unused_goes_first(tmp_path: Path) -> None:
    first, second, *others = keep_many(tmp_path, range(1, 17))
    assert read_frozen(tmp_path, first) is not None  # used now, so the second is the oldest
    sha256, arrays = variant(17)
    keep_frozen(tmp_path, sha256, arrays)
    assert read_frozen(tmp_path, second) is None
    for known in (first, *others, sha256):
        assert read_frozen(tmp_path, known) is not None
    keep_many(tmp_path, range(18, 40))
    assert len(list((tmp_path / "frozen").iterdir())) == 16


def test_what_was_just_written_stays_and_what_was_left_behind_goes(tmp_path: Path) -> None:
    """Also by a clock that is behind those of the others."""
    hashes = keep_many(tmp_path, range(1, 17))
    for path in (tmp_path / "frozen").iterdir():
        os.utime(path, (2**33, 2**33))
    left = tmp_path / "frozen" / f"{hashes[0]}.safetensors.77.tmp"
    left.write_bytes(b"cut")
    os.utime(left, (5, 5))
    sha256, arrays = variant(17)
    keep_frozen(tmp_path, sha256, arrays)
    assert read_frozen(tmp_path, sha256) is not None
    assert not left.exists()


def test_another_process_may_clean_up_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vanishes before it is looked at, or before it is deleted, is no error."""
    keep_many(tmp_path, range(1, 17))
    stat, unlink, names = Path.stat, Path.unlink, sorted((tmp_path / "frozen").iterdir())

    def vanishing(self: Path, **options: bool) -> os.stat_result:
        if self == names[0]:
            self.unlink(missing_ok=True)
        return stat(self, **options)

    def raced(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=True)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "stat", vanishing)
    monkeypatch.setattr(Path, "unlink", raced)
    sha256, arrays = variant(17)
    monkeypatch.setattr(frozen, "_MOST", 3)
    keep_frozen(tmp_path, sha256, arrays)
    monkeypatch.undo()
    assert len(list((tmp_path / "frozen").iterdir())) == 3
    assert read_frozen(tmp_path, sha256) is not None
