"""Features that stay on the disk: to the bit those that are read at once, without their memory."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_app.data import content, feature_rows
from client_app.data.content import open_content, present, whole
from client_app.data.dataset import Dataset
from shared_model.errors import DataError
from tests.conftest import MakeDataset

ITEMS, V, S = 2_000, 256, 128
HISTORIES: dict[int | str, list[int]] = {user: [1, 2, 3, 4] for user in range(3)}


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    """A fifth of the items lacks a modality."""
    random, features = np.random.default_rng(0), {}
    for name, dim in (("visual", V), ("text", S)):
        rows = random.standard_normal((ITEMS, dim))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        rows[random.random(ITEMS) < 0.2] = 0
        features[name] = rows.astype(np.float16)
    return make_dataset(HISTORIES, num_items=ITEMS, features=features)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """This catalogue is taken for a large one, in many parts."""
    monkeypatch.setattr(content, "_WHOLE", 0)
    for module in (content, feature_rows):
        monkeypatch.setattr(module, "AT_ONCE", 2**12)


@pytest.mark.parametrize("modalities", ["both", "visual", "text"])
def test_rows_are_those_of_the_whole_table(
    dataset: Dataset, modalities: str, request: pytest.FixtureRequest
) -> None:
    table = open_content(dataset, modalities)
    request.getfixturevalue("mapped")
    rows = open_content(dataset, modalities)
    asked = torch.tensor([[0, 7, ITEMS], [7, 1, 0]])
    for kind in ("visual", "text"):
        expected, found = getattr(table, kind), getattr(rows, kind)
        assert tuple(found.shape) == tuple(expected.shape)
        assert torch.equal(found[asked], expected[asked])
        assert torch.equal(whole(found), expected)
        assert torch.equal(present(found), expected.any(1))
    items = np.array([3, 0, ITEMS, 3], dtype=np.int32)
    assert (rows.combined[items] == table.combined[items]).all()
    assert (rows.known == table.combined[np.arange(ITEMS + 1)].any(1)).all()
    assert not isinstance(rows.visual, torch.Tensor) or modalities == "text"


@pytest.mark.usefixtures("mapped")
def test_to_open_them_takes_no_memory_in_proportion(dataset: Dataset) -> None:
    features = ITEMS * (V + S)
    tracemalloc.start()
    opened: Any = open_content(dataset, "both")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < features  # half of what the file has
    assert opened.visual[torch.arange(9)].any()


@pytest.mark.usefixtures("mapped")
def test_a_file_that_is_written_into_is_not_used_on(dataset: Dataset) -> None:
    opened, path = open_content(dataset, "both"), dataset.folder / content.FILE
    before = opened.text[torch.tensor([5, 6])]
    path.with_suffix(".new").write_bytes(b"another file")
    path.with_suffix(".new").replace(path)  # what was opened is still there
    assert torch.equal(opened.text[torch.tensor([5, 6])], before)
    with pytest.raises(DataError, match="changed after the import"):
        open_content(dataset, "both")


@pytest.mark.usefixtures("mapped")
def test_what_is_written_over_is_refused(dataset: Dataset) -> None:
    opened, path = open_content(dataset, "both"), Path(dataset.folder / content.FILE)
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(DataError, match="changed while it was in use"):
        opened.text[torch.tensor([5])]
