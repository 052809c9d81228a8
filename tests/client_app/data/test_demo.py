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
    assert (info["users"], info["items"], info["cold_items"]) == (400, 500, 50)
    assert (info["visual_dim"], info["text_dim"]) == (512, 384)
    assert info["visual_coverage"] == info["text_coverage"] == 0.95
    lengths = dataset.lengths(np.arange(400))
    assert 10 <= lengths.min() <= lengths.max() <= 39
    assert (dataset.cold_target > 0).mean() > 0.8
    features = load_file(demo_folder / "features.safetensors")
    missing = {kind: ~array.any(axis=1) for kind, array in features.items()}
    assert not (missing["visual"] & missing["text"]).any()


def test_another_seed_gives_another_demo() -> None:
    first, second = demo.demo_frames(0)[0], demo.demo_frames(1)[0]
    assert not first.equals(second)


def test_the_next_topic_comes_in_a_style_that_the_user_likes() -> None:
    """The last item tells the topic, the whole history the styles; neither tells the other."""
    interactions, _, _ = demo.demo_frames()
    style, topic, _ = demo._structure()
    follows, liked = [], []
    for _, history in interactions.groupby("user_id")["item_id"]:
        items = history.to_numpy() - 1
        follows.append(np.mean(np.diff(topic[items]) % demo.TOPICS == 1))
        shares = np.sort(np.bincount(style[items], minlength=demo.STYLES))
        liked.append(shares[-demo.LIKED :].sum() / len(items))
    assert 0.85 < np.mean(follows) < 0.95
    assert np.mean(liked) > 0.9


def test_pairs_are_too_many_to_be_counted() -> None:
    """Hardly any step of a history is one that came twice in all others."""
    interactions, _, _ = demo.demo_frames()
    item, user = interactions["item_id"].to_numpy(), interactions["user_id"].to_numpy()
    steps = (item[:-1] * 1000 + item[1:])[user[1:] == user[:-1]]
    counts = np.unique(steps, return_counts=True)[1]
    assert (counts > 2).sum() / len(counts) < 0.1


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
    style, topic, _ = demo._structure()
    for kind, shown, hidden in (("visual", style, topic), ("text", topic, style)):
        present = features[kind].any(axis=1)
        rows = features[kind][present].astype(np.float32)
        assert nearest_centre(rows, shown[present]) > 0.95
        assert nearest_centre(rows, hidden[present]) < 0.3
