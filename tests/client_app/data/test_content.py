"""Features as a node uses them: against plain numpy, with each modality missing, and damaged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from client_app.data.content import NO_DIM, content_dims, open_content, side_by_side, unit_rows
from client_app.data.dataset import Dataset, open_dataset
from feddmmr.features.files import read_features
from shared_model.errors import DataError
from shared_model.fingerprint import file_sha256
from shared_model.memory.memory import MemorySettings, novelty_counts

ITEMS = 9
HISTORIES = {user: [1, 2, 3, 4] for user in range(3)}


def rows(seed: int, dim: int, missing: tuple[int, ...] = ()) -> np.ndarray:
    """Stored features [ITEMS, dim]: float16, norms around 1, zero rows at the places `missing`."""
    wide = np.random.default_rng(seed).standard_normal((ITEMS, dim))
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    wide[list(missing)] = 0
    return wide.astype(np.float16)


@pytest.fixture
def both(make_dataset: Any) -> Dataset:
    """Item 2 has no picture, item 3 no text, item 4 neither."""
    features = {"visual": rows(0, 6, (1, 3)), "text": rows(1, 5, (2, 3))}
    dataset: Dataset = make_dataset(HISTORIES, num_items=ITEMS, features=features)
    return dataset


def reference(stored: np.ndarray) -> np.ndarray:
    """Normalised in float64 row by row, PAD in front."""
    wide = stored.astype(np.float64)
    unit = [row / np.sqrt(sum(row**2)) if row.any() else row for row in wide]
    return np.stack([np.zeros(stored.shape[1]), *unit])


def test_rows_are_unit_rows_or_zero(both: Dataset) -> None:
    content = open_content(both, "both")
    stored = read_features(both.folder).arrays
    visual, text = reference(stored["visual"]), reference(stored["text"])
    for found, expected in ((content.visual, visual), (content.text, text)):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)
    joined = reference(np.hstack([visual, text])[1:])
    assert content.combined.dtype == np.float32
    np.testing.assert_allclose(content.combined, joined, atol=1e-7)
    norms = [np.linalg.norm(x, axis=1) for x in (content.visual, content.text, content.combined)]
    assert [np.flatnonzero(norm == 0).tolist() for norm in norms] == [[0, 2, 4], [0, 3, 4], [0, 4]]
    assert all(abs(norm[norm > 0] - 1).max() < 2e-7 for norm in norms)


@pytest.mark.parametrize(("kind", "other"), [("visual", "text"), ("text", "visual")])
def test_what_is_not_asked_for_is_missing(both: Dataset, kind: str, other: str) -> None:
    whole, content = open_content(both, "both"), open_content(both, kind)
    assert torch.equal(getattr(content, kind), getattr(whole, kind))
    assert not getattr(content, other).any()
    assert getattr(content, other).shape == getattr(whole, other).shape
    assert content.combined.shape == whole.combined.shape
    own = content.combined[:, :6] if kind == "visual" else content.combined[:, 6:]
    assert (own == getattr(whole, kind).numpy()).all()  # to the bit
    assert np.count_nonzero(content.combined) == np.count_nonzero(own)


def test_one_modality_alone_has_its_own_novelty(both: Dataset) -> None:
    settings = MemorySettings(novelty=0.0, surprise=1.0)
    text = open_content(both, "text")
    history = [np.arange(1, ITEMS + 1, dtype=np.int32)]
    alone = novelty_counts(text.text.numpy(), history, settings)
    assert alone.sum() > 0
    assert (novelty_counts(text.combined, history, settings) == alone).all()


def test_unknown_modalities_are_refused(both: Dataset) -> None:
    with pytest.raises(ValueError, match="unknown modalities 'image': both, visual, text"):
        open_content(both, "image")


@pytest.mark.parametrize("kind", ["visual", "text"])
def test_a_modality_that_the_file_lacks_is_missing(make_dataset: Any, kind: str) -> None:
    stored = rows(2, 7, (4,))
    dataset = make_dataset(HISTORIES, num_items=ITEMS, features={kind: stored})
    dims = (7, NO_DIM) if kind == "visual" else (NO_DIM, 7)
    assert content_dims(dataset) == dims
    for modalities in ("both", "visual", "text"):
        content = open_content(dataset, modalities)
        assert (content.visual.shape, content.text.shape) == tuple((ITEMS + 1, dim) for dim in dims)
        known = 0 if modalities not in ("both", kind) else ITEMS - 1
        assert content.combined.any(axis=1).sum() == known


def test_the_demo_has_the_dimensions_that_dataset_json_says(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    content = open_content(dataset, "both")
    assert content_dims(dataset) == (512, 384)
    assert content.visual.shape == (dataset.num_items + 1, 512)
    assert content.text.shape == (dataset.num_items + 1, 384)
    assert content.combined.shape == (dataset.num_items + 1, 896)


def test_a_dataset_without_features_says_what_to_do(small_dataset: Dataset) -> None:
    for call in (content_dims, lambda dataset: open_content(dataset, "both")):
        with pytest.raises(DataError, match="has no features") as caught:
            call(small_dataset)
        for hint in ("feddmmr features encode", "feddmmr data import --features", "stage=1"):
            assert hint in str(caught.value)


VISUAL, TEXT = rows(0, 6), rows(1, 5)
NAN = np.where(np.arange(ITEMS)[:, None] == 3, np.float16(np.nan), TEXT)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"visual": VISUAL}, r"expected text as float16 \[9, 5\]; got no such array"),
        ({"visual": VISUAL, "text": TEXT[:8]}, r"expected text .*\[9, 5\]; got float16 \[8, 5\]"),
        ({"visual": VISUAL[:, :5], "text": TEXT}, r"expected visual .*got float16 \[9, 5\]"),
        ({"visual": VISUAL.astype(np.float32), "text": TEXT}, "got float32"),
        ({"visual": VISUAL, "text": TEXT, "audio": TEXT}, "got audio"),
        ({"visual": VISUAL, "text": NAN}, "got NaN or infinity at item 4"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    both: Dataset, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = both.folder / "features.safetensors"
    save_file({kind: np.ascontiguousarray(array) for kind, array in arrays.items()}, path)
    with pytest.raises(DataError, match="changed after the import"):
        open_content(both, "both")
    with pytest.raises(DataError, match=message) as caught:
        open_content(replace(both, features_sha256=file_sha256(path)), "both")
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(both: Dataset) -> None:
    path = both.folder / "features.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="changed after the import"):
        open_content(both, "both")
    with pytest.raises(DataError, match="cannot be read"):
        open_content(replace(both, features_sha256=file_sha256(path)), "both")
    path.unlink()
    with pytest.raises(DataError, match="missing or unreadable"):
        open_content(both, "both")


def test_dimensions_that_are_no_number_are_refused(both: Dataset) -> None:
    both.info["text_dim"] = "5"
    with pytest.raises(DataError, match="expected a whole number as text_dim"):
        content_dims(both)


def test_the_order_of_the_columns_changes_no_bit(demo_folder: Path) -> None:
    stored = read_features(demo_folder).arrays["visual"]
    order = np.random.default_rng(0).permutation(stored.shape[1])
    assert (unit_rows(stored)[:, order] == unit_rows(stored[:, order])).all()


def test_side_by_side_keeps_what_stands_alone() -> None:
    visual, text = unit_rows(rows(0, 6, (1, 3))), unit_rows(rows(1, 5, (2, 3)))
    combined = side_by_side(visual, text)
    assert (combined[1, 6:] == text[1]).all()
    assert (combined[2, :6] == visual[2]).all()
    assert not combined[3].any()
    cosine = (visual[0] @ visual[4] + text[0] @ text[4]) / 2
    assert combined[0] @ combined[4] == pytest.approx(cosine, abs=1e-6)
