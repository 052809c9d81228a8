"""What an import says it read, dropped and kept: by hand, on drawn sources and on MovieLens."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.data.dataset import Dataset, open_dataset
from feddmmr import cli
from feddmmr.data.importers import ImportOptions, import_dataset
from shared_model.errors import DataError
from tests.support.fuzzing import cases, outcome
from tests.support.imports import histories_of, import_to, write
from tests.support.paths import DATA

COUNTED = ("interactions", "users", "items")


def a_bit_of_everything(folder: Path) -> dict[str, Path]:
    """A source from which each rule takes something; by hand below."""
    users = {
        1: "a5 b5 c5 d5 a5",  # a comes again; the last three are wanted
        2: "a5 b5 c5 d5",
        3: "a5 b5 c5",
        4: "a5 b5 zz5 yy5 xx5",  # three unknown items, and then fewer than 3
        5: "e1",  # below the rating
        6: "f5",  # not in the core
        7: "a5 b5",  # not of the four most active
    }
    rows = [
        f"{user},{event[:-1]},{event[-1]},{time}"
        for user, events in users.items()
        for time, event in enumerate(events.split())
    ]
    source = write(folder / "a.csv", ["user_id,item_id,rating,timestamp", *rows])
    listed = ["item_id,cold", *(f"{item},0" for item in "abcdefg"), "h,1"]  # nobody met g and h
    return {"source": source, "items": write(folder / "items.csv", listed)}


EVERY_RULE: dict[str, Any] = {
    "min_rating": 2,
    "duplicates": "first",
    "k_core": 2,
    "most_active": 4,
    "last": 3,
}
BY_HAND = {
    "read": (21, 7, 11),
    "item not in the items file": (3, 0, 3),
    "rating below 2": (1, 1, 1),
    "repeated (user, item) pair": (1, 0, 0),
    "k-core of 2": (1, 1, 1),
    "no interactions and no features": (0, 0, 1),
    "not of the 4 most active users": (2, 1, 0),
    "before the last 3 of a user": (2, 0, 0),
    "user with fewer than 3 items not cold": (2, 1, 0),
    "kept": (9, 3, 5),
}


def counts(found: dict[str, Any]) -> tuple[int, ...]:
    return tuple(found[what] for what in COUNTED)


def test_every_rule_is_counted(tmp_path: Path) -> None:
    dataset = import_to(tmp_path / "out", **a_bit_of_everything(tmp_path), **EVERY_RULE)
    assert histories_of(dataset) == {1: [*"bcd"], 2: [*"bcd"], 3: [*"abc"]}
    imported = dataset.info["imported"]
    found = {"read": counts(imported["read"])}
    found |= {rule["reason"]: counts(rule) for rule in imported["dropped"]}
    assert list((found | {"kept": counts(imported["kept"])}).items()) == list(BY_HAND.items())
    assert imported["dropped"][0]["examples"] == ["xx", "yy"]
    assert imported["new_items"] == 1
    assert imported["ties"] == {"rule": "hash", "users_sharing_newest_time": 0}


def printed(monkeypatch: Any, capsys: Any, *arguments: object) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["feddmmr", "data", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    return str(out).splitlines()


def test_import_and_info_print_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = a_bit_of_everything(tmp_path)
    given = ["import", files["source"], tmp_path / "out", "--items", files["items"]]
    for option, value in EVERY_RULE.items():
        given += [f"--{option.replace('_', '-')}", value]
    lines = printed(monkeypatch, capsys, *given)
    assert printed(monkeypatch, capsys, "info", tmp_path / "out") == lines
    assert max(len(line) for line in lines[1:]) <= 80  # the first one is the path
    rows = [re.fullmatch(r"\s+(\S.*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)\s*", line) for line in lines]
    table = {row[1]: tuple(abs(int(row[n])) for n in (2, 3, 4)) for row in rows if row}
    assert table == BY_HAND
    text = " ".join(" ".join(lines).split())
    assert "item not in the items file: for example 'xx', 'yy'" in text
    assert "1 items have no interaction: they are cold" in text
    assert "0 of 3 users share their newest time" in text


def test_ids_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"1,{item},{time}" for time, item in enumerate(["a", "b", "c", "[red]", "[/]"])]
    source = write(tmp_path / "a.csv", ["user_id,item_id,timestamp", *rows])
    items = write(tmp_path / "items.csv", ["item_id", *"abc"])
    given = ["import", source, tmp_path / "out", "--k-core", 1, "--items", items]
    out = "\n".join(printed(monkeypatch, capsys, *given))
    assert "for example '[/]', '[red]'" in out


def test_interactions_with_cold_items_are_kept_but_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{user},{item},{item}" for user in range(3) for item in range(5)]
    source = write(tmp_path / "a.csv", ["user_id,item_id,timestamp", *rows])
    items = write(
        tmp_path / "items.csv", ["item_id,cold", *(f"{n},{int(n == 2)}" for n in range(5))]
    )
    given = ["import", source, tmp_path / "out", "--k-core", 1, "--items", items]
    assert "  3 of the kept interactions are with cold items, and held out" in printed(
        monkeypatch, capsys, *given
    )
    info = open_dataset(tmp_path / "out").info
    assert (info["imported"]["kept"]["interactions"], info["interactions"]) == (15, 12)


def test_the_record_is_sealed(tmp_path: Path) -> None:
    dataset = import_to(tmp_path / "out", **a_bit_of_everything(tmp_path), **EVERY_RULE)
    path = dataset.folder / "dataset.json"
    info = json.loads(path.read_bytes())
    info["imported"]["read"]["interactions"] -= 1
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"dataset\.json was changed"):
        open_dataset(dataset.folder)


def test_a_dataset_without_a_record_opens_and_is_described(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was imported before there were records, a demo, a part of a split."""
    assert "imported" not in small_dataset.info
    lines = printed(monkeypatch, capsys, "info", small_dataset.folder)
    assert lines[1] == f"  20 users, 30 items, {len(small_dataset.items)} interactions"
    assert len(lines) == 2


@pytest.mark.parametrize("listed", [False, True])
def test_an_id_of_text_that_is_dropped_leaves_numbers(tmp_path: Path, listed: bool) -> None:
    """The ids left are numbers, and mean the items file's; in the source they all were text."""
    rows = [f"{user},{item},{n}" for user in range(3) for n, item in enumerate((2, 10, 9))]
    source = write(tmp_path / "a.csv", ["user_id,item_id,timestamp", *rows, "0,x,99"])
    items = write(tmp_path / "items.csv", ["item_id", "2", "9", "10"]) if listed else None
    dataset = import_to(tmp_path / "out", source, items=items, k_core=2)
    assert histories_of(dataset) == {user: [2, 10, 9] for user in range(3)}
    assert counts(dataset.info["imported"]["kept"]) == (9, 3, 3)


def assert_adds_up(dataset: Dataset, rows: list[tuple[str, str]], listed: list[str]) -> None:
    """`rows` are user and item of the source's lines, `listed` the items file's ids."""
    imported = dataset.info["imported"]
    users, items = {user for user, _ in rows}, {item for _, item in rows} | set(listed)
    assert counts(imported["read"]) == (len(rows), len(users), len(items))
    table = pd.read_parquet(dataset.folder / "interactions.parquet")
    catalogue = pd.read_csv(dataset.folder / "items.csv")
    kept = (len(table), table["user_id"].nunique(), len(catalogue))
    assert counts(imported["kept"]) == kept
    for what, read, left in zip(COUNTED, counts(imported["read"]), kept, strict=True):
        assert min(rule[what] for rule in imported["dropped"]) >= 0
        assert read == left + sum(rule[what] for rule in imported["dropped"])
    assert dataset.info["users"] == kept[1]
    cold = set(catalogue.loc[catalogue["cold"] == 1, "item_id"])
    assert dataset.info["interactions"] == (~table["item_id"].isin(cold)).sum()


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[list[str]], list[str], dict[str, Any]]:
    """Rows of user, item, rating, time, the ids of an items file, and options."""
    row = st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from("12345678"),
        st.sampled_from("12345"),
        st.sampled_from("0123"),
    )
    rows = draw(st.lists(row.map(list), min_size=12, max_size=60))
    options = {
        "min_rating": draw(st.sampled_from([None, 2, 3])),
        "duplicates": draw(st.sampled_from(["first", "last"])),
        "k_core": draw(st.integers(1, 3)),
        "most_active": draw(st.sampled_from([None, 1, 4])),
        "last": draw(st.sampled_from([None, 3, 5])),
        "new_items": draw(st.sampled_from(["cold", "drop"])),
        "cold_fraction": draw(st.sampled_from([0.0, 0.2])),
    }
    listed = draw(st.lists(st.sampled_from("123456789xyz"), min_size=6, unique=True))
    return rows, listed, options


def test_what_is_read_is_dropped_or_kept(tmp_path: Path) -> None:
    source, output, accepted = tmp_path / "a.csv", tmp_path / "out", []

    @cases(60)
    @given(sources(), st.booleans())
    def check(drawn: tuple[list[list[str]], list[str], dict[str, Any]], with_items: bool) -> None:
        rows, listed, options = drawn
        write(source, ["user_id,item_id,rating,timestamp", *map(",".join, rows)])
        items = write(tmp_path / "items.csv", ["item_id", *listed]) if with_items else None
        told = ImportOptions(items=items, sort=True, **options)
        if outcome(lambda: import_dataset(source, output, told)) is not None:
            pairs = [(user, item) for user, item, _, _ in rows]
            assert_adds_up(open_dataset(output), pairs, listed if with_items else [])
            shutil.rmtree(output)
            accepted.append(options)

    check()
    assert len(accepted) >= 20


def test_movielens_adds_up(tmp_path: Path) -> None:
    folder = DATA / "ml-latest-small"
    if not (folder / "ratings.csv").is_file():
        pytest.skip("MovieLens latest-small is not at hand (../shared/data/ml-latest-small)")
    options = {"min_rating": 3, "k_core": 5, "most_active": 300, "last": 20, "cold_fraction": 0.1}
    dataset = import_to(tmp_path / "out", folder, **options)
    read = {}
    for name in ("ratings.csv", "movies.csv"):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            read[name] = list(csv.reader(file))[1:]
    pairs = [(row[0], row[1]) for row in read["ratings.csv"]]
    assert_adds_up(dataset, pairs, [row[0] for row in read["movies.csv"]])
    by_reason = {rule["reason"]: counts(rule) for rule in dataset.info["imported"]["dropped"]}
    lower = sum(float(row[2]) < 3 for row in read["ratings.csv"])
    assert by_reason["rating below 3"][0] == lower
    unrated = len({row[0] for row in read["movies.csv"]} - {item for _, item in pairs})
    assert by_reason["no interactions and no features"] == (0, 0, unrated)
