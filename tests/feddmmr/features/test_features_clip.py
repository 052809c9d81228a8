"""Families of CLIP models: a local file gets the settings of its tag, against pipelines by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from feddmmr.features.clip import load_image_encoder
from shared_model.errors import ConfigError, DataError

ARCHITECTURE = "ViT-S-32-alt"  # the smallest that open_clip has built in; it lists no weights of it
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
LIKE_SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
LIKE_SIGLIP |= {"resize_mode": "squash", "url": "", "hf_hub": "none/none"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = open_clip.create_model(ARCHITECTURE)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Twice as wide as high, so that squashing and cutting out the middle differ."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 60, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((120, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts weights of the small architecture into open_clip's list."""

    def put(**tags: dict[str, Any]) -> None:
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, tags)

    return put


def reference(
    weights: Path, seen: Image.Image, quick: bool, mean: Any = MEAN, std: Any = STD
) -> np.ndarray:
    """Encode a picture of 224 x 224 with every step by hand."""
    net = open_clip.create_model(ARCHITECTURE, force_quick_gelu=quick)
    open_clip.load_checkpoint(net, str(weights))
    pixels = (np.asarray(seen, dtype=np.float64) / 255 - mean) / std
    with torch.inference_mode():
        row = net.eval().encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0]
    return (row / row.norm()).numpy()


def squashed(picture: Image.Image) -> Image.Image:
    return picture.resize((224, 224), Image.Resampling.BICUBIC)


def cropped(picture: Image.Image) -> Image.Image:
    return picture.resize((448, 224), Image.Resampling.BICUBIC).crop((112, 0, 336, 224))


@pytest.mark.parametrize("quick", [False, True])
def test_a_local_file_gets_the_settings_of_its_tag(
    weights: Path, picture: Image.Image, listed: Callable[..., None], quick: bool
) -> None:
    listed(mine=LIKE_SIGLIP | {"quick_gelu": quick}, other={"url": "x"})
    said: list[str] = []
    encoder = load_image_encoder(ARCHITECTURE, str(weights), "mine", "cpu", said.append)
    found = encoder.encode(picture).astype(np.float32)
    assert said == []
    right = reference(weights, squashed(picture), quick, 0.5, 0.5)
    np.testing.assert_allclose(found, right, atol=2e-4)
    for wrong in (
        reference(weights, squashed(picture), not quick, 0.5, 0.5),
        reference(weights, squashed(picture), quick),
        reference(weights, cropped(picture), quick, 0.5, 0.5),
    ):
        assert np.abs(found - wrong).max() > 1e-3
    assert encoder.settings == {
        "clip_tag": "mine",
        "quick_gelu": quick,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def test_without_a_tag_it_is_said_what_is_assumed(weights: Path, picture: Image.Image) -> None:
    said: list[str] = []
    encoder = load_image_encoder(ARCHITECTURE, str(weights), "", "cpu", said.append)
    assert said == [
        f"{weights}: preprocessing and activation as OpenAI's CLIP are assumed (mean 0.481 0.458 "
        "0.408, bicubic, shortest, GELU); pass --clip-tag for another family"
    ]
    right = reference(weights, cropped(picture), False)
    np.testing.assert_allclose(encoder.encode(picture), right, atol=2e-4)
    assert encoder.settings["clip_tag"] == ""


def test_a_tag_on_the_hub_gets_its_activation_too(
    weights: Path,
    picture: Image.Image,
    listed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself open_clip only warns that the tag wants QuickGELU, and runs it with GELU."""
    listed(mine={"url": "x", "quick_gelu": True})
    for module in (open_clip, open_clip.factory, open_clip.pretrained):
        monkeypatch.setattr(module, "download_pretrained", lambda *_, **__: str(weights))
    encoder = load_image_encoder(ARCHITECTURE, "mine", "", "cpu", print)
    right = reference(weights, cropped(picture), True)
    np.testing.assert_allclose(encoder.encode(picture), right, atol=2e-4)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("ViT-B-16-SigLIP", r"one of webli;.*mean 0\.500 0\.500 0\.500, bicubic, squash, GELU"),
        ("RN50", "one of openai, .*QuickGELU"),
        ("MobileCLIP-S1", r"one of datacompdr;.*mean 0\.000"),
    ],
)
def test_an_architecture_of_another_family_needs_a_tag(
    tmp_path: Path, model: str, told: str
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"never read")
    with pytest.raises(ConfigError, match=rf"as OpenAI's CLIP.*a\.safetensors.*{told}"):
        load_image_encoder(model, str(tmp_path / "a.safetensors"), "", "cpu", print)


@pytest.mark.parametrize(
    ("model", "local", "tag", "message"),
    [
        ("ViT-B-32", True, "webli", "no such weights of ViT-B-32.*openai.*got --clip-tag webli"),
        (ARCHITECTURE, True, "openai", "expected no tag: it knows none"),
        ("ViT-B-32", False, "openai", "tells its settings by itself"),
        ("hf-hub:some/model", True, "", "no such model.*hf-hub:some/model"),
        ("ViT-B-33", True, "", "no such model.*ViT-B-33"),
    ],
)
def test_what_would_be_ignored_is_refused(
    tmp_path: Path, model: str, local: bool, tag: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "a.pt").write_bytes(b"never read")
    chosen = str(tmp_path / "a.pt") if local else "laion2b_s34b_b79k"
    with pytest.raises(ConfigError, match=message):
        load_image_encoder(model, chosen, tag, "cpu", print)


def test_a_tag_that_open_clip_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="knows no weights 'mine' for the model 'ViT-B-32'"):
        load_image_encoder("ViT-B-32", "mine", "", "cpu", print)


def test_a_strip_is_not_scaled_up_whole(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 8,000 x 1 pixels would become one of 1,792,000 x 224."""
    encoder = load_image_encoder(ARCHITECTURE, str(weights), "", "cpu", lambda _: None)
    noise = np.random.default_rng(0).integers(0, 256, (5, 400, 3)).astype(np.uint8)
    strip = Image.fromarray(noise)
    whole = strip.resize((17920, 224), Image.Resampling.BICUBIC).crop((8848, 0, 9072, 224))
    right = reference(weights, whole, False)
    assert encoder.encode(strip).astype(np.float32) @ right > 0.9999
    scaled: list[int] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *others: Any) -> Image.Image:
        scaled.append(size[0] * size[1])
        return resize(self, size, *others)

    monkeypatch.setattr(Image.Image, "resize", watched)
    encoder.encode(Image.new("RGB", (8000, 1)))
    assert scaled == [224 * 224 * 8]


def test_pictures_whose_rest_is_not_seen_are_told(
    weights: Path, tmp_path: Path, listed: Callable[..., None]
) -> None:
    paths = []
    for size in ((200, 100), (201, 100), (100, 201), (100, 100)):
        paths.append(tmp_path / f"{size}.png")
        Image.new("RGB", size).save(paths[-1])
    paths.append(tmp_path / "broken.png")
    paths[-1].write_bytes(b"")
    cropping = load_image_encoder(ARCHITECTURE, str(weights), "", "cpu", lambda _: None)
    assert [cropping.cut(path) for path in paths] == [False, True, True, False, False]
    assert cropping.limit == (
        "pictures are longer than 2 to 1: only the square in the middle is seen"
    )
    listed(mine=LIKE_SIGLIP)
    squashing = load_image_encoder(ARCHITECTURE, str(weights), "mine", "cpu", print)
    assert not any(squashing.cut(path) for path in paths)


@pytest.mark.slow
def test_threads_and_neighbours_change_no_bit(weights: Path, ml1m_folder: Path) -> None:
    encoder = load_image_encoder(ARCHITECTURE, str(weights), "", "cpu", lambda _: None)
    posters = [Image.open(path) for path in sorted((ml1m_folder / "posters").iterdir())[:6]]
    expected = [encoder.encode(poster).tobytes() for poster in posters]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = [encoder.encode(poster).tobytes() for poster in reversed(posters)]
            assert found[::-1] == expected
    finally:
        torch.set_num_threads(threads)
