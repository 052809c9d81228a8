"""`feddmmr data`: every format, every filter, and one clear line for every bad input.

Over 300 lines on purpose: one case for each fault that a source can have, on the same few writers.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from client_app.data.dataset import Dataset, history_digest, open_dataset
from feddmmr import cli
from feddmmr.data import filters
from feddmmr.data.importers import split_dataset
from tests.support.imports import (
    Rating,
    histories_of,
    import_to,
    title,
    write,
    write_ratings_csv,
)

GENRES_OF_UDATA = 19


@pytest.fixture
def ratings() -> list[Rating]:
    """user, item, rating, time: 8 users, 12 items, in no order, each pair once."""
    random = np.random.default_rng(3)
    pairs = [(user, item) for user in range(1, 9) for item in range(1, 13)]
    chosen = random.permutation(len(pairs))[:70]
    times = random.permutation(70) + 1000
    return [
        (*pairs[place], int(random.integers(1, 6)), int(time))
        for place, time in zip(chosen, times, strict=True)
    ]


def write_ratings_dat(folder: Path, ratings: list[Rating]) -> None:
    write(folder / "ratings.dat", ["::".join(map(str, row)) for row in ratings], "latin-1")
    movies = [f"{item}::{title(item)}::Comedy|Drama" for item in range(1, 13)]
    write(folder / "movies.dat", movies, "latin-1")


def write_udata(folder: Path, ratings: list[Rating]) -> None:
    write(folder / "u.data", ["\t".join(map(str, row)) for row in ratings])
    flags = ["1" if place in (5, 8) else "0" for place in range(GENRES_OF_UDATA)]
    movies = [f"{i}|{title(i)}|1-Jan-2001||http://x|{'|'.join(flags)}" for i in range(1, 13)]
    write(folder / "u.item", movies, "latin-1")


def naive_histories(ratings: list[Rating]) -> dict[int, list[int]]:
    by_user: dict[int, list[int]] = {}
    for user, item, _, _ in sorted(ratings, key=lambda row: (row[0], row[3])):
        by_user.setdefault(user, []).append(item)
    return by_user


@pytest.mark.parametrize("writer", [write_ratings_dat, write_ratings_csv, write_udata])
def test_movielens_formats_give_the_same_dataset(
    tmp_path: Path, ratings: list[Rating], writer: Any
) -> None:
    (tmp_path / "source").mkdir()
    writer(tmp_path / "source", ratings)
    dataset = import_to(tmp_path / "out", tmp_path / "source")
    assert histories_of(dataset) == naive_histories(ratings)
    items = pd.read_csv(dataset.folder / "items.csv")
    assert items.columns.tolist() == [
        "item_id",
        "title",
        "genres",
        "text",
        "popularity_bucket",
        "cold",
    ]
    assert items["title"].tolist() == [title(item) for item in range(1, 13)]
    assert set(items["genres"]) == {"Comedy|Drama"}


def test_csv_and_parquet_with_other_column_names(tmp_path: Path, ratings: list[Rating]) -> None:
    rows = sorted(ratings, key=lambda row: row[3])
    table = pd.DataFrame(rows, columns=["who", "what", "rating", "when"])
    table["who"] = "u" + table["who"].astype(str)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    table.set_index(["who", "when"]).to_parquet(tmp_path / "index.parquet")
    table.set_index("when", append=True).to_parquet(tmp_path / "part.parquet")
    names = {"user_column": "who", "item_column": "what", "time_column": "when"}
    expected = {f"u{user}": history for user, history in naive_histories(ratings).items()}
    for source in ("a.csv", "a.parquet", "index.parquet", "part.parquet"):
        dataset = import_to(tmp_path / f"out-{source}", tmp_path / source, **names)
        assert histories_of(dataset) == expected


def test_sort_duplicates_and_min_rating(tmp_path: Path, ratings: list[Rating]) -> None:
    header = "user_id,item_id,rating,timestamp"
    again = [(user, item, rating, time + 500) for user, item, rating, time in ratings[:9]]
    rows = [",".join(map(str, row)) for row in [*again, *ratings]]
    source = write(tmp_path / "a.csv", [header, *rows])
    first = import_to(tmp_path / "first", source, sort=True, duplicates="first")
    assert histories_of(first) == naive_histories(ratings)
    last = import_to(tmp_path / "last", source, sort=True, duplicates="last")
    assert histories_of(last) == naive_histories([*again, *ratings[9:]])
    liked = import_to(tmp_path / "liked", source, sort=True, duplicates="first", min_rating=2)
    assert histories_of(liked) == {
        user: history
        for user, history in naive_histories([r for r in ratings if r[2] >= 2]).items()
        if len(history) >= 3
    }


def naive_k_core(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    while True:
        kept = [
            (user, item)
            for user, item in pairs
            if sum(u == user for u, _ in pairs) >= k and sum(i == item for _, i in pairs) >= k
        ]
        if kept == pairs:
            return kept
        pairs = kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 3, 5])
def test_k_core_equals_brute_force(k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = sorted({(int(u), int(i)) for u, i in random.zipf(1.3, (90, 2)) % 17})
    table = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    kept = filters.k_core(table, k)
    assert list(kept.itertuples(index=False, name=None)) == naive_k_core(pairs, k)


def test_k_core_repeats_until_nothing_changes() -> None:
    """A chain: each removal takes the next user or item below 2, and all goes but the square."""
    square = [(1, 1), (1, 2), (2, 1), (2, 2)]
    chain = [(2, 3), (3, 3), (3, 4), (4, 4)]
    table = pd.DataFrame(square + chain, columns=["user_id", "item_id"])
    assert list(filters.k_core(table, 2).itertuples(index=False, name=None)) == square
    assert filters.k_core(table, 3).empty


def test_most_active_and_last_keep_the_catalogue(tmp_path: Path, ratings: list[Rating]) -> None:
    write_ratings_csv(tmp_path / "source", ratings)
    histories = naive_histories(ratings)
    ranked = sorted(histories, key=lambda user: (-len(histories[user]), user))
    dataset = import_to(tmp_path / "out", tmp_path / "source", most_active=3, last=4)
    assert histories_of(dataset) == {user: histories[user][-4:] for user in sorted(ranked[:3])}
    assert dataset.num_items == 12


def test_cold_items_are_the_fraction_and_out_of_the_histories(
    tmp_path: Path, ratings: list[Rating]
) -> None:
    write_ratings_csv(tmp_path / "source", ratings)
    dataset = import_to(tmp_path / "out", tmp_path / "source", cold_fraction=0.25, seed=4)
    items = pd.read_csv(dataset.folder / "items.csv")
    cold = set(items["item_id"][items["cold"] == 1])
    assert len(cold) == 3
    expected = {
        user: [item for item in history if item not in cold]
        for user, history in naive_histories(ratings).items()
    }
    assert histories_of(dataset) == expected
    again = import_to(tmp_path / "again", tmp_path / "source", cold_fraction=0.25, seed=4)
    assert again.info == dataset.info


@pytest.fixture
def folder_source(tmp_path: Path, ratings: list[Rating]) -> Path:
    """interactions.parquet, items.csv and feature arrays in another order, without item 12."""
    folder = tmp_path / "shop"
    folder.mkdir()
    table = pd.DataFrame(ratings, columns=["user_id", "item_id", "rating", "timestamp"])
    table.sort_values("timestamp").to_parquet(folder / "interactions.parquet")
    pd.DataFrame({"item_id": range(1, 13), "title": "x"}).to_csv(folder / "items.csv", index=False)
    ids = np.array([7, 99, *range(11, 7, -1), *range(1, 7)])
    np.save(folder / "item_ids.npy", ids)
    np.save(folder / "text.npy", np.eye(20)[ids % 20].astype(np.float16))
    np.save(folder / "visual.npy", 3.0 * np.eye(16)[ids % 16] * (ids != 5)[:, None])
    return folder


def test_features_follow_the_catalogue(tmp_path: Path, folder_source: Path) -> None:
    dataset = import_to(tmp_path / "out", folder_source, text_encoder="minilm")
    features = load_file(dataset.folder / "features.safetensors")
    text, visual = np.eye(20)[1:13], np.eye(16)[1:13]
    text[11] = visual[11] = visual[4] = 0
    np.testing.assert_array_equal(features["text"], text.astype(np.float16))
    np.testing.assert_array_equal(features["visual"], visual.astype(np.float16))
    assert dataset.info["encoders"] == {"text": "minilm", "visual": "unknown"}
    assert (dataset.info["text_dim"], dataset.info["visual_dim"]) == (20, 16)
    assert dataset.info["text_coverage"] == pytest.approx(11 / 12)
    assert dataset.info["visual_coverage"] == pytest.approx(10 / 12)


def test_features_of_a_file_follow_the_items_file(tmp_path: Path) -> None:
    """Rows as in the items file, also where items are taken out of the catalogue."""
    source = write(tmp_path / "a.csv", LINES)
    items = write(tmp_path / "items.csv", ["item_id", "9", "3", "1", "8", "2"])
    save_file({"text": np.eye(5, dtype=np.float32)}, tmp_path / "f.safetensors")
    files = {"items": items, "features": tmp_path / "f.safetensors"}
    dataset = import_to(tmp_path / "out", source, **files, new_items="drop")
    assert pd.read_csv(dataset.folder / "items.csv")["item_id"].tolist() == [3, 1, 2]
    text = load_file(dataset.folder / "features.safetensors")["text"]
    assert text.argmax(axis=1).tolist() == [1, 2, 4]


def test_an_import_of_an_import_changes_nothing(tmp_path: Path, folder_source: Path) -> None:
    first = import_to(tmp_path / "first", folder_source, text_encoder="minilm", cold_fraction=0.2)
    second = import_to(tmp_path / "second", first.folder)
    assert second.info["files"] == first.info["files"]
    assert second.info["encoders"] == first.info["encoders"]


def test_split_gives_every_user_to_one_part(tmp_path: Path, folder_source: Path) -> None:
    whole = import_to(tmp_path / "whole", folder_source)
    split_dataset(whole.folder, tmp_path / "parts", 3)
    parts = [open_dataset(tmp_path / "parts" / f"part-{part}") for part in range(3)]
    for number, part in enumerate(parts):
        assert part.user_keys.tolist() == whole.user_keys[number::3].tolist()
        assert part.catalogue_sha256 == whole.catalogue_sha256
        assert part.features_sha256 == whole.features_sha256 != ""
    digests = [history_digest(part, np.arange(part.num_users)) for part in parts]
    assert sum(digests) % 2**256 == history_digest(whole, np.arange(whole.num_users))


LINES = ["user_id,item_id,timestamp", "1,1,10", "1,2,11", "1,3,12", "2,1,5", "2,2,6", "2,3,7"]


def with_line(number: int, line: str) -> list[str]:
    """LINES with another line; numbers count from 1, as editors do."""
    return [*LINES[: number - 1], line, *LINES[number:]]


BAD_FILES = [
    (with_line(1, "user,item_id,timestamp"), [], "no column user_id.*got user, item_id"),
    (with_line(4, "1,3"), [], r"missing value.*a\.csv, line 4, column timestamp"),
    (with_line(4, "1,3,12,9"), [], r"cannot be parsed.*a\.csv.*line 4"),
    (with_line(4, ""), [], r"missing value.*line 4"),
    (with_line(3, "1,NaN,11"), [], "missing value.*line 3, column item_id"),
    (with_line(3, "1,2,NaN"), [], "missing value.*line 3, column timestamp"),
    (with_line(3, "1,2,soon"), [], "not a number.*line 3, column timestamp.*got soon"),
    (with_line(6, "-2,2,6"), [], "negative id.*line 6, column user_id.*got -2"),
    (with_line(6, "2,-2,6"), [], "negative id.*line 6, column item_id.*got -2"),
    (with_line(6, "2,1,6"), [], r"repeated.*line 6.*do: pass --duplicates"),
    (with_line(3, "1,2,13"), [], r"out of time order.*line 4.*pass --sort"),
    (with_line(3, "1,2,13"), ["--min-rating", "3"], "no column rating"),
    (LINES, ["--k-core", "4"], "no interactions are left.*--k-core"),
    (LINES[:1], [], "no interactions"),
    ([""], [], "cannot be parsed|missing|no column"),
    (LINES, ["--items", "gone.csv"], r"cannot be read.*gone\.csv"),
    (LINES, ["--format", "parquet"], r"cannot be read.*a\.csv"),
    (LINES, ["--format", "movielens"], r"no MovieLens ratings.*a\.csv"),
    (LINES, ["--features", "gone.safetensors"], r"cannot be read.*gone\.safetensors"),
]


@pytest.mark.parametrize(("lines", "extra", "message"), BAD_FILES)
def test_bad_input_gets_one_line_exit_1_and_no_output(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: list[str],
    extra: list[str],
    message: str,
) -> None:
    source = write(tmp_path / "a.csv", lines)
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "import", str(source), "out", "--k-core", "1", *extra]
    assert_refused(monkeypatch, capsys, arguments, message)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def assert_refused(monkeypatch: Any, capsys: Any, arguments: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["feddmmr", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    printed = capsys.readouterr()
    assert caught.value.code == 1
    assert printed.out == ""
    assert re.fullmatch("error: [^\n]+\n", printed.err)
    assert re.search(message, printed.err), printed.err


def test_commands_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.csv", LINES)
    whole, out = tmp_path / "whole", tmp_path / "out"
    import_to(whole, source)
    for arguments, message in [
        (["data", "import", tmp_path / "gone", out], "source does not exist"),
        (["data", "import", tmp_path, out], r"no known format.*ratings\.dat"),
        (["data", "import", source, whole], "output exists already"),
        (["data", "demo", whole], "output exists already"),
        (["data", "split", whole, out, "--num-partitions", 3], "1 to 2 partitions; got 3"),
        (["data", "split", tmp_path, out, "--num-partitions", 2], "not an imported dataset"),
        (["data", "info", tmp_path], "not an imported dataset"),
        (["baselines", tmp_path], "not an imported dataset"),
        (["baselines", whole, "--json", tmp_path / "no" / "b.json"], "JSON file does not exist"),
    ]:
        assert_refused(monkeypatch, capsys, [str(part) for part in arguments], message)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "whole"}


def test_a_second_choice_of_cold_items_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.csv", LINES)
    items = write(tmp_path / "items.csv", ["item_id,cold", "1,0", "2,1", "3,0"])
    command = ["data", "import", str(source), str(tmp_path / "out"), "--k-core", "1"]
    command += ["--items", str(items), "--cold-fraction", "0.4"]
    assert_refused(monkeypatch, capsys, command, "marks cold items")


def test_import_info_and_split_say_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.csv", [*LINES, "3,1,9"])
    for arguments, expected in [
        (["import", source, tmp_path / "out", "--k-core", 1], "fewer than 3"),
        (["info", tmp_path / "out"], "2 users, 3 items, 6 interactions"),
        (["split", tmp_path / "out", tmp_path / "parts", "--num-partitions", 2], "part-1"),
    ]:
        monkeypatch.setattr(sys, "argv", ["feddmmr", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_movielens_1m_is_whole(ml1m_dataset: Dataset) -> None:
    info = ml1m_dataset.info
    assert (info["users"], info["items"], info["interactions"]) == (6040, 3416, 999_611)
    assert (info["visual_dim"], info["text_dim"], info["skipped_users"]) == (512, 384, 0)
    assert info["visual_coverage"] == pytest.approx(0.953, abs=5e-4)
    imported = info["imported"]
    assert imported["kept"] == imported["read"]
    assert imported["ties"]["users_sharing_newest_time"] == 0


@pytest.mark.slow
def test_movielens_1m_is_what_it_was_before_there_was_a_rule_for_ties(
    ml1m_dataset: Dataset,
) -> None:
    """Its times are positions: the manifest's fingerprint of earlier runs still fits."""
    everyone = np.arange(ml1m_dataset.num_users)
    assert ml1m_dataset.catalogue_sha256.startswith("39eb225c8bdf918f")
    assert f"{history_digest(ml1m_dataset, everyone):064x}".startswith("9c24c0a574616f18")
