"""Feature arrays beside a source: every type, shape and scale, and which row is of which item."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from client_app.data.compile import write_dataset
from client_app.data.dataset import open_dataset
from feddmmr.data.importers import ImportOptions, import_dataset
from feddmmr.features.analysis import analyze
from feddmmr.features.arrays import ImportArrays, import_arrays
from feddmmr.features.files import FeatureFiles, align_features, read_features
from feddmmr.features.output import write_features
from shared_model.errors import DataError

ROWS = np.array([[3, 4], [-4, 3], [0, 5], [5, 0]], dtype=np.float32)
UNIT = np.array([[0.6, 0.8], [-0.8, 0.6], [0, 1], [1, 0]])  # ROWS by hand
IDS = pd.Series([1, 2, 3, 4])


def folder(path: Path, rows: np.ndarray, ids: Any) -> Path:
    """A folder with text.npy and item_ids.npy."""
    path.mkdir(exist_ok=True)
    np.save(path / "text.npy", rows)
    np.save(path / "item_ids.npy", np.asarray(ids))
    return path


def align(source: Path, item_ids: pd.Series = IDS) -> np.ndarray:
    return align_features(read_features(source), item_ids, item_ids)["text"]


@pytest.mark.parametrize("kind", ["<i8", ">i8", "<i2", "|u1", "<u8", "<f8", ">f8", "<f4", "<U4"])
def test_ids_of_every_type_find_their_items(tmp_path: Path, kind: str) -> None:
    ids = np.array([3, 1, 4, 2]).astype(kind)
    found = align(folder(tmp_path / "a", ROWS[[2, 0, 3, 1]], ids))
    np.testing.assert_allclose(found, UNIT, atol=1e-3)


def test_whole_floats_written_as_text_in_the_catalogue_stay_text(tmp_path: Path) -> None:
    found = align(folder(tmp_path / "a", ROWS, ["a", "b", "c", "007"]), pd.Series(["007", "b"]))
    np.testing.assert_allclose(found, UNIT[[3, 1]], atol=1e-3)


@pytest.mark.parametrize(
    ("ids", "examples"),
    [
        (["B01", "B02", "B03", "B04"], "'B01', 'B02'"),
        ([101.0, 102.0, 103.0, 104.0], "101, 102"),
        (["001", "002", "003", "004"], "'001', '002'"),
    ],
)
def test_another_catalogue_is_an_error_with_examples(
    tmp_path: Path, ids: Any, examples: str
) -> None:
    source = folder(tmp_path / "a", ROWS, ids)
    with pytest.raises(DataError, match="another catalogue") as error:
        align(source)
    for part in (str(source), "the catalogue", "ids like 1, 2", f"got {examples};"):
        assert part in str(error.value)


def test_another_catalogue_is_no_import(tmp_path: Path) -> None:
    pd.DataFrame({"item_id": [1, 2, 3, 4]}).to_csv(tmp_path / "items.csv", index=False)
    np.savez(tmp_path / "a.npz", text=ROWS, item_ids=np.array(["x1", "x2", "x3", "x4"]))
    output = tmp_path / "out.safetensors"
    options = ImportArrays(items=tmp_path / "items.csv", output=output, text=tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"another catalogue.*a\.npz and .*items\.csv.*'x1', 'x2'"):
        import_arrays(options)
    assert not output.exists()


def test_a_folder_without_features_is_no_import(tmp_path: Path) -> None:
    """Named with --features, an empty folder is a mistake; nothing came of it, without a word."""
    rows = [f"{user},{item},{item}" for user in range(3) for item in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (tmp_path / "empty").mkdir()
    options = ImportOptions(k_core=1, features=tmp_path / "empty")
    with pytest.raises(DataError, match=r"no features there.*empty.*visual\.npy or text\.npy"):
        import_dataset(tmp_path / "a.csv", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_partial_misses_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero-padded ids: of 1 to 12 only 10, 11 and 12 are written alike."""
    ids = [f"{item:02}" for item in range(1, 13)]
    source = folder(tmp_path / "a", np.ones((12, 2)), ids)
    found = align(source, pd.Series(range(1, 13)))
    assert np.flatnonzero(found.any(axis=1)).tolist() == [9, 10, 11]
    assert capsys.readouterr().err.splitlines() == [
        f"{source}: 9 of 12 items have no row of features, such as 1, 2",
        f"{source}: 9 of 12 rows belong to no item of the catalogue, such as '01', '02'",
    ]
    align(folder(tmp_path / "b", ROWS, [4, 3, 2, 1]))
    assert capsys.readouterr().err == ""


def test_rows_of_items_that_a_filter_left_out_are_no_strangers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = FeatureFiles({"text": ROWS}, np.array([1, 2, 3, 4]))
    found = align_features(files, pd.Series([2, 4]), IDS)["text"]
    np.testing.assert_allclose(found, UNIT[[1, 3]], atol=1e-3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e20, 1e30, 6e37])
def test_no_scale_of_float32_is_lost(tmp_path: Path, scale: float) -> None:
    rows = ROWS * np.float32(scale)
    if scale > 1e-40:  # below, float32 itself keeps too few digits of 3 and 4
        np.testing.assert_allclose(align(folder(tmp_path / "a", rows, IDS)), UNIT, atol=1e-3)
    assert align(folder(tmp_path / "a", rows, IDS)).any(axis=1).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 7e4, 1e200, 3e306])
def test_no_scale_of_float64_is_lost(tmp_path: Path, scale: float) -> None:
    rows = ROWS.astype(np.float64) * scale
    np.testing.assert_allclose(align(folder(tmp_path / "a", rows, IDS)), UNIT, atol=1e-3)
    save_file({"text": rows}, tmp_path / "f.safetensors")
    report, _ = analyze(tmp_path / "f.safetensors", 0)
    assert report["norms"]["text"]["min"] == pytest.approx(5 * scale)
    assert report["modalities"]["text"]["coverage"] == 1


def test_the_memory_layout_changes_nothing(tmp_path: Path) -> None:
    wide = np.repeat(np.repeat(ROWS, 2, axis=0), 3, axis=1)
    layouts = {
        "fortran": np.asfortranarray(ROWS),
        "strided": wide[::2, ::3],
        "backwards": ROWS[::-1, ::-1][::-1, ::-1],
        "big-endian": ROWS.astype(">f4"),
        "int8": ROWS.astype(np.int8),
        "half": ROWS.astype(np.float16),
    }
    for name, rows in layouts.items():
        np.testing.assert_allclose(align(folder(tmp_path / name, rows, IDS)), UNIT, atol=1e-3)


def test_integers_are_told_to_be_taken_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    align(folder(tmp_path / "a", ROWS.astype(np.int8), IDS))
    assert "text are int8, taken as they are; if they are quantised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(4), r"no text features.*float64 \[4\]"),
        (np.ones((4, 1, 2)), r"no text features.*\[4, 1, 2\]"),
        (np.ones((4, 0)), r"no text features.*\[4, 0\]"),
        (np.ones((4, 2), dtype=bool), "no text features.*bool"),
        (np.ones((4, 2)) * 1j, "no text features.*complex128"),
        (np.full((4, 2), b"ab"), r"no text features.*S2"),
        (np.full((4, 2), "ab"), r"no text features.*U2"),
        (np.zeros((4, 2), dtype=[("a", "<f4")]), "no text features"),
        (np.zeros((4, 2), dtype=np.longdouble), "no text features.*float128"),
        (np.array([[1, 2], [np.nan, 0], [1, 1], [1, 1]]), "NaN or infinity.*row 2"),
        (np.array([[1, 2], [1, 0], [1, np.inf], [1, 1]]), "NaN or infinity.*row 3"),
        (np.ones((5, 2)), "do not fit.*expected 4 rows.*got 5"),
        (np.ones((0, 2)), "do not fit.*expected 4 rows.*got 0"),
    ],
)
def test_what_is_no_features_is_one_line(tmp_path: Path, rows: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        align(folder(tmp_path / "a", rows, IDS))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a") in str(error.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[1], [2], [3], [4]]), r"no item ids.*int64 \[4, 1\]"),
        (np.array([b"1", b"2", b"3", b"4"]), "no item ids.*S1"),
        (np.array([True, False, True, True]), "no item ids.*bool"),
        (np.array([1, 2, 3, 4]) * 1j, "no item ids.*complex"),
        (np.zeros(4, dtype=[("a", "<i4")]), "no item ids"),
        (np.array(5), r"no item ids.*\[\]"),
        (np.array([1, 2.5, 3, 4]), r"no whole number.*row 2.*2\.5"),
        (np.array([1, 2, np.nan, 4]), "no whole number.*row 3.*nan"),
        (np.array([1, 2, 2**24 + 2, 4], dtype=np.float32), "too large for its type.*row 3"),
        (np.array([1, 2, 1, 4]), "two rows of features.*item 1"),
        (np.array(["1", "", "3", "4"]), "missing value.*row 2"),
    ],
)
def test_what_is_no_item_id_is_one_line(tmp_path: Path, ids: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        align(folder(tmp_path / "a", ROWS, ids))


def test_arrays_without_a_row_are_of_no_item(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"another catalogue.*got no rows"):
        align(folder(tmp_path / "a", ROWS[:0], np.array([], dtype=np.int64)))


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", ROWS, IDS)
    whole = (source / "text.npy").read_bytes()
    claims_too_much = whole.replace(b"(4, 2), }" + b" " * 14, b"(99999999999999, 2), }" + b" ")
    for content in (b"", whole[:50], whole[:-1], b"PK\x03\x04", claims_too_much):
        (source / "text.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"the array cannot be read.*text\.npy"):
            read_features(source)
    np.savez(tmp_path / "z.npz", a=ROWS)
    (source / "text.npy").write_bytes((tmp_path / "z.npz").read_bytes())
    with pytest.raises(DataError, match="an archive of arrays"):
        read_features(source)


def test_a_safetensors_file_may_hold_ids_and_bfloat16_is_one_line(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    ids = np.array([4, 3, 2, 1])
    save_file({"text": ROWS[::-1].copy(), "item_ids": ids}, tmp_path / "f.safetensors")
    np.testing.assert_allclose(align(tmp_path / "f.safetensors"), UNIT, atol=1e-3)
    save_tensors({"text": torch.ones(4, 2).bfloat16()}, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "b.safetensors")
    save_file({"text": ROWS}, tmp_path / "m.safetensors", metadata={"feddmmr": "[]"})
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / "m.safetensors")


def test_strided_arrays_are_written_as_they_are(tmp_path: Path) -> None:
    """safetensors 0.8.0 writes the memory of an array and ignores its strides."""
    unit = UNIT.astype(np.float16)
    wide = np.repeat(np.repeat(unit, 2, axis=0), 3, axis=1)
    layouts = (np.asfortranarray(unit), wide[::2, ::3], unit[::-1].copy()[::-1])
    items = pd.DataFrame({"item_id": [1, 2, 3, 4]})
    rows = [(user, item, time) for user in (1, 2) for time, item in enumerate((1, 2, 3, 4))]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    for place, array in enumerate(layouts):
        assert not array.flags.c_contiguous
        write_features(tmp_path / f"{place}.safetensors", {"text": array}, {"text": "x"}, {})
        found = load_file(tmp_path / f"{place}.safetensors")["text"]
        np.testing.assert_array_equal(found, unit)
        write_dataset(tmp_path / f"{place}", table, items, {"text": array}, "small")
        dataset = open_dataset(tmp_path / f"{place}")
        found = load_file(dataset.folder / "features.safetensors")["text"]
        np.testing.assert_array_equal(found, unit)
