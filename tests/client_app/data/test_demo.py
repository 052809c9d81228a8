"""The demo: the same bytes every time, safe to race for, and with the structure it promises."""

import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client_app.data import demo
from client_app.data.dataset import open_dataset

HASHES = dict[str, str]


def hashes(folder: Path) -> HASHES:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_demo_is_the_same_in_every_process(demo_folder: Path, tmp_path: Path) -> None:
    """Two processes race for one folder: one copy stays, whole, equal to this process's."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        folders = pool.map(demo.demo_dataset, [tmp_path, tmp_path])
    assert folders[0] == folders[1]
    assert list(tmp_path.iterdir()) == [folders[0]]
    assert hashes(folders[0]) == hashes(demo_folder)


def test_another_process_may_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_folder: Path
) -> None:
    """The other's folder appears between our look and our rename: ours is discarded."""
    target = tmp_path / demo_folder.name
    generate = demo.demo_frames

    def slow(seed: int) -> object:
        tables = generate(seed)
        target.mkdir()
        (target / "dataset.json").write_text("theirs")
        return tables

    monkeypatch.setattr(demo, "demo_frames", slow)
    assert demo.demo_dataset(tmp_path) == target
    assert (target / "dataset.json").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_demo_is_not_generated_again(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "write_demo", None)
    assert demo.demo_dataset(demo_folder.parent) == demo_folder


def test_sizes_are_what_the_design_says(demo_folder: Path) -> None:
    dataset = open_dataset(demo_folder)
    info = dataset.info
    assert (info["users"], info["items"], info["cold_items"]) == (200, 500, 50)
    assert (info["visual_dim"], info["text_dim"]) == (512, 384)
    assert info["visual_coverage"] == info["text_coverage"] == 0.95
    lengths = dataset.lengths(np.arange(200))
    assert 30 <= lengths.min() <= lengths.max() <= 65
    assert (dataset.cold_target > 0).mean() > 0.9
    features = load_file(demo_folder / "features.safetensors")
    missing = {kind: ~array.any(axis=1) for kind, array in features.items()}
    assert not (missing["visual"] & missing["text"]).any()


def test_another_seed_gives_another_demo() -> None:
    first, second = demo.demo_frames(0)[0], demo.demo_frames(1)[0]
    assert not first.equals(second)


def test_histories_walk_along_rings() -> None:
    """Far more steps go to the next place of the same cluster than to any other item."""
    interactions, _, _ = demo.demo_frames()
    item = interactions["item_id"].to_numpy() - 1
    same_user = np.diff(interactions["user_id"].to_numpy()) == 0
    ring, place = np.divmod(item, demo.RING)
    step = (ring[1:] == ring[:-1]) & ((place[:-1] + 1) % demo.RING == place[1:])
    assert 0.65 < step[same_user].mean() < 0.8


def nearest_centre(features: np.ndarray, groups: np.ndarray) -> float:
    """How often an item is nearest to the mean of its own group, itself left out."""
    sums = np.stack([features[groups == group].sum(axis=0) for group in range(groups.max() + 1)])
    counts = np.bincount(groups)
    right = 0
    for row, group in zip(features, groups, strict=True):
        own = sums[group] - row
        centres = np.where(np.arange(len(sums))[:, None] == group, own, sums)
        sizes = np.where(np.arange(len(sums)) == group, counts - 1, counts)
        right += int(np.argmax(centres / sizes[:, None] @ row) == group)
    return right / len(features)


def test_each_modality_shows_its_half_and_only_that() -> None:
    _, _, features = demo.demo_frames()
    index = np.arange(demo.ITEMS)
    cluster, place = np.divmod(index, demo.RING)
    style, topic = np.divmod(cluster, demo.TOPICS)
    shows = {"visual": (style, place % 4), "text": (topic, place % 5)}
    hides = {"visual": topic, "text": style}
    for kind, halves in shows.items():
        present = features[kind].any(axis=1)
        rows = features[kind][present].astype(np.float32)
        for half in halves:
            assert nearest_centre(rows, half[present]) > 0.95
        assert nearest_centre(rows, hides[kind][present]) < 0.4
