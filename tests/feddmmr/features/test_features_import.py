"""`feddmmr features import`: every format of arrays, and one clear line for every bad one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from feddmmr.features.arrays import ImportArrays, import_arrays, read_arrays
from shared_model.errors import DataError

IDS = [30, 10, 20, 40]


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    pd.DataFrame({"item_id": IDS}).to_csv(tmp_path / "items.csv", index=False)
    return tmp_path


def run(shop: Path, **options: Any) -> dict[str, np.ndarray]:
    settings = ImportArrays(items=shop / "items.csv", output=shop / "out.safetensors", **options)
    import_arrays(settings)
    return load_file(shop / "out.safetensors")


def write(path: Path, rows: np.ndarray) -> Path:
    """The same array in the format that the suffix says."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez(path, visual=rows)
    elif path.suffix == ".safetensors":
        save_file({"visual": rows}, path)
    else:
        torch.save({"visual": torch.from_numpy(rows)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_every_format_gives_the_same_unit_rows(shop: Path, rows: np.ndarray, suffix: str) -> None:
    found = run(shop, visual=write(shop / f"a{suffix}", rows))["visual"]
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_item_ids_put_rows_in_the_catalogues_order(shop: Path, rows: np.ndarray) -> None:
    np.savez(shop / "a.npz", text=rows[:3], item_ids=np.array([20, 30, 40]))
    found = run(shop, text=shop / "a.npz")["text"].astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found[[0, 2, 3]], unit[[1, 0, 2]], atol=1e-3)
    assert not found[1].any()


def test_a_bare_tensor_and_bfloat16(shop: Path, rows: np.ndarray) -> None:
    torch.save(torch.from_numpy(rows), shop / "a.pt")
    save_tensors({"text": torch.from_numpy(rows).bfloat16()}, shop / "b.safetensors")
    found = run(shop, visual=shop / "a.pt", text=shop / "b.safetensors")
    np.testing.assert_allclose(found["visual"], found["text"], atol=0.01)


def test_a_parameter_and_a_float64_beyond_float32(shop: Path) -> None:
    """An embedding's weight asks for gradients, and a tensor of float64 has rows of 1e300."""
    directions = torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 1.0], [-1.0, 0.0]])
    torch.save({"visual": torch.nn.Parameter(directions)}, shop / "a.pt")
    save_tensors({"text": directions.double() * 1e300}, shop / "b.safetensors")
    found = run(shop, visual=shop / "a.pt", text=shop / "b.safetensors")
    for kind in ("visual", "text"):
        expected = [[0.6, 0.8], [0.8, -0.6], [0, 1], [-1, 0]]
        np.testing.assert_allclose(found[kind], expected, atol=1e-3)


class Trap:
    """Something that a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


def test_nothing_in_a_file_is_executed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"visual": Trap()}, shop / "a.pt")
    np.save(shop / "b.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for name in ("a.pt", "b.npy"):
        with pytest.raises(DataError, match="the arrays cannot be read"):
            run(shop, visual=shop / name)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"visual": np.ones((3, 2))}, "features do not fit"),
        ({"visual": np.ones(4)}, "no visual features"),
        ({"visual": np.ones((4, 2)) * 1j}, "no visual features"),
        ({"visual": np.full((4, 2), np.nan)}, "NaN or infinity"),
        ({"a": np.ones((4, 2)), "b": np.ones((4, 2))}, "which array is visual"),
        ({"visual": np.ones((2, 2)), "item_ids": np.array([10, 99])}, r"unknown item id.*row 2"),
        ({"visual": np.ones((2, 2)), "item_ids": np.array([10, 10])}, "two rows of features"),
        ({"visual": np.ones((2, 2)), "item_ids": np.array([10])}, "do not fit the catalogue"),
    ],
)
def test_bad_arrays_are_one_line(shop: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(shop / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        run(shop, visual=shop / "a.npz")
    assert "\n" not in str(error.value)
    assert not (shop / "out.safetensors").exists()


def test_bad_files(shop: Path, rows: np.ndarray) -> None:
    with pytest.raises(DataError, match="nothing to import"):
        run(shop)
    with pytest.raises(DataError, match="no known format"):
        read_arrays(shop / "items.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(shop / "nowhere.npy")
    (shop / "b.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(shop / "b.safetensors")
    run(shop, visual=write(shop / "a.npy", rows))
    with pytest.raises(DataError, match="the output exists already"):
        run(shop, visual=shop / "a.npy")
