"""Drawn datasets and sources: used as they are, or refused in one line (see fuzzing.py)."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st

from client_app.data.content import open_content
from client_app.data.dataset import open_dataset
from client_app.data.folder import sealed_info
from feddmmr.data.importers import ImportOptions, import_dataset
from shared_model.errors import DataError
from shared_model.fingerprint import file_sha256
from tests.support.fuzzing import STRANGE, assert_both, cases, edit_json, outcome, tally
from tests.support.staged import write_mixed

pytestmark = pytest.mark.slow


@st.composite
def damages(draw: st.DrawFn, names: list[str]) -> tuple[str, Callable[[bytes], bytes]]:
    """A file of a dataset, and what happens to its bytes."""
    name = draw(st.sampled_from(names))
    kind = draw(
        st.sampled_from(["flip", "cut", "any", "typed" if name.endswith("npy") else "flip"])
    )
    if kind == "any":
        other = draw(st.binary(max_size=60) | st.sampled_from(STRANGE))
        return name, lambda _: other
    if kind == "typed":
        values = np.array(draw(st.lists(st.integers(-2, 41), max_size=30)))
        array = Array(values.astype(draw(st.sampled_from(["<i4", "<i8", "<u8", "<f4"]))))
        return name, lambda _: array.data
    share, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    if kind == "cut":
        return name, lambda content: content[: int(share * len(content))]

    def flip(content: bytes) -> bytes:
        broken, place = bytearray(content), int(share * len(content))
        broken[place] ^= 1 << bit
        return bytes(broken)

    return name, flip


def assert_sound(folder: Path) -> bool:
    """The dataset opens and nothing in it points outside; its features are unit rows or zero."""
    dataset = open_dataset(folder)
    assert dataset.items.min() >= 1
    assert dataset.items.max() <= dataset.num_items
    assert not dataset.cold[dataset.items].any()
    assert (np.diff(dataset.indptr) >= 3).all()
    assert len(dataset.indptr) == dataset.num_users + 1
    assert dataset.cold[dataset.cold_target[dataset.cold_target > 0]].all()
    content = open_content(dataset, "both")
    for rows in (content.visual, content.text):
        norms = rows.norm(dim=1)
        assert ((norms == 0) | ((norms - 1).abs() < 1e-3)).all()
    return True


def test_datasets(tmp_path: Path) -> None:
    """Wrong: any changed byte that opens; or, hashed anew, a dataset that contradicts itself."""
    seen: Counter[str] = Counter()
    folder = write_mixed(tmp_path / "dataset")
    info = json.loads((folder / "dataset.json").read_bytes())
    del info["sha256"]
    names = sorted(set(info["files"]) - {"interactions.parquet", "arrays/user_ids.parquet"})

    @cases(500)
    @given(damages([*names, "dataset.json"]), st.booleans())
    def check(damage: tuple[str, Callable[[bytes], bytes]], again: bool) -> None:
        name, change = damage
        path = folder / name
        whole, sealed_whole = path.read_bytes(), (folder / "dataset.json").read_bytes()
        path.write_bytes(change(whole))
        if again and name != "dataset.json":
            hashed = info | {"files": info["files"] | {name: file_sha256(path)}}
            (folder / "dataset.json").write_text(sealed_info(hashed))
        opened = outcome(lambda: assert_sound(folder))
        same = path.read_bytes() == whole
        tally(seen, opened is not None)
        path.write_bytes(whole)
        (folder / "dataset.json").write_bytes(sealed_whole)
        assert opened is None or again or same

    check()
    assert_both(seen, 5)
    assert assert_sound(folder)


@st.composite
def edited_infos(draw: st.DrawFn, info: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(info))
    edit_json(draw, data)
    return data


def test_dataset_json(tmp_path: Path) -> None:
    """Wrong: a changed dataset.json that opens; or one, hashed anew, with other counts."""
    seen: Counter[str] = Counter()
    folder = write_mixed(tmp_path / "dataset")
    path = folder / "dataset.json"
    info = json.loads(path.read_bytes())
    own = info.pop("sha256")

    @cases(400)
    @given(edited_infos(info), st.booleans())
    def check(data: dict[str, Any], again: bool) -> None:
        path.write_text(sealed_info(data) if again else json.dumps(data | {"sha256": own}))
        opened = outcome(lambda: assert_sound(folder))
        tally(seen, opened is not None)
        if opened is not None:
            assert again or json.dumps(data) == json.dumps(info)
            assert [data[key] for key in ("users", "items")] == [info["users"], info["items"]]

    check()
    assert_both(seen)


IDS = st.sampled_from(
    ["1", "2", "3", "7", "07", " 4", "x", "ä", "", "nan", "-1", "1.0", "1e3", '"']
)
IDS |= st.text(max_size=3)
TIMES = st.sampled_from(["0", "1", "2", "3.5", "1e9", "-7", "", "inf", "nan", "x", "9" * 30])
HEADER = ["user_id", "item_id", "timestamp"]


def in_json(rows: list[list[str]]) -> str:
    """Lines with a value of an odd type now and then."""
    odd = {"": None, "nan": [1], "3.5": 3.5, "7": 7, "x": True}
    lines = []
    for row in rows:
        values = [odd.get(cell, cell) for cell in row]
        lines.append(json.dumps(dict(zip(HEADER, values, strict=True))))
    return "\n".join(lines)


def quoted(rows: list[list[str]]) -> str:
    cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "\n".join(map(",".join, cells))


@st.composite
def sources(draw: st.DrawFn, name: str) -> bytes:
    """An interactions file: mostly sound rows, some strange ones, now and then any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=80))
    rows = [
        [user, item, str(time)]
        for user in "abc"
        for time, item in enumerate(draw(st.lists(st.sampled_from("123456"), unique=True)))
    ]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        strange = list(draw(st.tuples(IDS, IDS, TIMES)))
        rows.insert(draw(st.integers(0, len(rows))), strange)
    header = draw(st.sampled_from([HEADER] * 8 + [HEADER[:2]]))
    if name == "a.inter":
        header = [f"{column}:token" for column in header]
    if name == "a.jsonl":
        text = in_json(rows)
    elif name == "b.csv":
        text = quoted([header, *rows])
    else:
        text = "\n".join(map(("," if name == "a.csv" else "\t").join, [header, *rows]))
    content = text.encode("utf-8", "surrogatepass")
    return (
        content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content
    )


def items_of(name: str, content: bytes) -> list[str]:
    """What the second column or `item_id` of each row is, read by the standard library."""
    lines = content.decode("utf-8", "replace").splitlines()
    if name == "a.jsonl":
        return [str(json.loads(line).get("item_id")) for line in lines]
    kinds = {"quoting": csv.QUOTE_MINIMAL} if "csv" in name else {"quoting": csv.QUOTE_NONE}
    rows = list(csv.reader(lines, delimiter="," if "csv" in name else "\t", **kinds))
    return [row[1] for row in rows[1:]]


@pytest.mark.parametrize("name", ["a.csv", "b.csv", "a.tsv", "a.inter", "a.jsonl"])
def test_imported_sources(tmp_path: Path, name: str) -> None:
    """Wrong: a dataset that does not open, or has an interaction that the source has not."""
    seen: Counter[str] = Counter()
    source, output = tmp_path / name, tmp_path / "dataset"

    @cases(60)
    @given(
        sources(name),
        st.sampled_from(["refuse", "first", "last"]),
        st.booleans(),
        st.integers(1, 2),
    )
    def check(content: bytes, duplicates: str, sort: bool, k_core: int) -> None:
        source.write_bytes(content)
        options = ImportOptions(duplicates=duplicates, sort=sort, k_core=k_core, seed=1)
        info = outcome(lambda: import_dataset(source, output, options))
        tally(seen, info is not None)
        if info is None:
            assert not output.exists()
            return
        dataset = open_dataset(output)
        items = items_of(name, content)
        assert 3 <= len(dataset.items) <= len(items)
        assert dataset.num_items <= len({item.strip() for item in items})
        shutil.rmtree(output)

    check()
    assert_both(seen, 5)
    assert {path.name for path in tmp_path.iterdir()} == {name}  # no half of a dataset


def test_rows_with_more_fields_than_the_header_are_refused(tmp_path: Path) -> None:
    """pandas drops what is too much with a warning, and so may read a time as an item."""
    source = tmp_path / "source.csv"
    rows = [f"a,{item},{item},9" for item in range(4)]
    source.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    with pytest.raises(DataError, match="cannot be parsed"):
        import_dataset(source, tmp_path / "dataset", ImportOptions(k_core=1))
