"""Parts of a split dataset whose users are alike."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client_app.data.dataset import Dataset, open_dataset
from feddmmr.cli import app
from feddmmr.data.grouping import owners
from tests.conftest import MakeDataset

USERS = 40


def of_two_tastes(make_dataset: MakeDataset) -> Dataset:
    """Even users like items 1 to 20, odd ones 21 to 40; all of them 41 to 45, the popular ones."""
    random = np.random.default_rng(0)
    histories = {}
    for user in range(USERS):
        own = random.permutation(np.arange(1, 21) + 20 * (user % 2))[: 4 + user % 7]
        histories[user] = [*own.tolist(), *range(41, 46)]
    return make_dataset(histories, num_items=45)


def test_rows_are_dealt_out(make_dataset: MakeDataset) -> None:
    dataset = of_two_tastes(make_dataset)
    assert owners(dataset, 3, "row").tolist() == [user % 3 for user in range(USERS)]


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_parts_of_unequal_sizes(make_dataset: MakeDataset, parts: int) -> None:
    found = owners(of_two_tastes(make_dataset), parts, "size")
    sizes = np.bincount(found, minlength=parts)
    assert sizes.sum() == USERS
    assert (sizes > 0).all()
    shares = 1 / np.arange(1, parts + 1)
    expected = 1 + (USERS - parts) * shares / shares.sum()
    assert np.abs(sizes - expected).max() <= 1
    assert parts == 1 or (np.sort(found) != found).any()  # not by row


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_lengths_rise_from_part_to_part(make_dataset: MakeDataset, parts: int) -> None:
    dataset = of_two_tastes(make_dataset)
    found, lengths = owners(dataset, parts, "length"), dataset.lengths(np.arange(USERS))
    sizes = np.bincount(found, minlength=parts)
    assert sizes.max() - sizes.min() <= 1
    for part in range(parts - 1):
        assert lengths[found == part].max() <= lengths[found == part + 1].min()


def test_tastes_are_told_apart_and_popularity_is_not_one(make_dataset: MakeDataset) -> None:
    dataset = of_two_tastes(make_dataset)
    found = owners(dataset, 2, "taste")
    odd = np.arange(USERS) % 2
    assert (found == odd).all() or (found == 1 - odd).all()
    assert (owners(dataset, 2, "taste") == found).all()


def test_the_command_writes_such_parts(tmp_path: Path, make_dataset: MakeDataset) -> None:
    dataset = of_two_tastes(make_dataset)
    given = ["data", "split", str(dataset.folder), str(tmp_path / "parts")]
    result = CliRunner().invoke(app, [*given, "--num-partitions", "2", "--by", "length"])
    assert result.exit_code == 0, result.output
    short, long = (open_dataset(tmp_path / "parts" / f"part-{part}") for part in range(2))
    every = np.arange(USERS // 2)
    assert short.num_users == long.num_users == USERS // 2
    assert short.lengths(every).max() <= long.lengths(every).min()
    wrong = CliRunner().invoke(app, [*given, "--num-partitions", "2", "--by", "mood"])
    assert wrong.exit_code == 2
