"""`feddmmr features encode` with a stand-in for the encoders, to cut it off anywhere.

Over 300 lines on purpose: the shop that every case needs is made once, here.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from feddmmr import cli
from feddmmr.features import encode
from feddmmr.features.clip import load_image_encoder
from feddmmr.features.encoders import Encoder, load_text_encoder, unit_row
from shared_model.errors import ConfigError, DataError
from tests.support.encoders import ARCHITECTURE, encoded
from tests.support.paths import ROOT


class StandIn:
    """An encoder whose vectors tell the content."""

    def __init__(
        self, fail_at: int = 0, fault: BaseException | None = None, settings: str = ""
    ) -> None:
        self.calls, self.fail_at, self.fault = 0, fail_at, fault
        self.encoder = Encoder(
            name="stand-in", dim=4, sha256="0" * 64, versions={}, encode=self.encode,
            cut=lambda one: one == "item number 9", limit="are cut", settings={"one": settings},
        )  # fmt: skip

    def encode(self, one: Any) -> np.ndarray:
        self.calls += 1
        if self.fault is not None and self.calls == self.fail_at:
            raise self.fault
        told = one if isinstance(one, str) else one.tobytes().hex()
        digest = hashlib.sha256(told.encode()).digest()[:4]
        return unit_row(np.array([list(digest)], dtype=np.float32) + 1)


# After how many calls a chunk of three of the shop's 10 pictures and 19 texts, 18 of them
# different, is finished.
ENDS = [0, 3, 6, 9, 10, 12, 15, 18, 21, 24, 27, 28]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    """Puts a stand-in into the place of both encoders."""

    def put(**faults: Any) -> StandIn:
        stand_in = StandIn(**faults)
        for name in ("load_image_encoder", "load_text_encoder"):
            monkeypatch.setattr(encode, name, lambda *_: stand_in.encoder)
        monkeypatch.setattr(encode, "CHUNK", 3)
        return stand_in

    return put


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """items.csv of 20 items, two texts equal and one missing, and pictures of the even ones."""
    texts = [f"item number {item // 2 if item < 4 else item}" for item in range(1, 21)]
    texts[6] = " "
    items = pd.DataFrame({"item_id": range(1, 21), "text": texts})
    items.to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "pictures").mkdir()
    for item in range(2, 21, 2):
        color = (item * 12, 255 - item * 12, 0)
        Image.new("RGB", (9, 9), color).save(tmp_path / "pictures" / f"{item}.png")
    return tmp_path


def leftovers(shop: Path) -> list[str]:
    return sorted(path.name for path in shop.iterdir() if "out" in path.name)


def test_rows_follow_the_catalogue_and_missing_ones_are_zero(
    shop: Path, use: Callable[..., StandIn]
) -> None:
    use()
    encoded(shop)
    found = load_file(shop / "out.safetensors")
    assert {kind: (array.dtype.str, array.shape) for kind, array in found.items()} == {
        "visual": ("<f2", (20, 4)),
        "text": ("<f2", (20, 4)),
    }
    assert [i + 1 for i in np.flatnonzero(found["visual"].any(axis=1))] == list(range(2, 21, 2))
    assert [i + 1 for i in np.flatnonzero(~found["text"].any(axis=1))] == [7]
    norms = np.linalg.norm(found["text"].astype(float), axis=1)
    np.testing.assert_allclose(norms[found["text"].any(axis=1)], 1, atol=1e-3)
    with safe_open(shop / "out.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["feddmmr"])
    assert facts["encoders"] == {"visual": "stand-in", "text": "stand-in"}
    assert facts["settings"] == {"visual": {"one": ""}, "text": {"one": ""}}
    assert facts["weights_sha256"] == {"visual": "0" * 64, "text": "0" * 64}
    assert leftovers(shop) == ["out.safetensors"]


@pytest.mark.parametrize("fail_at", [1, 3, 4, 10, 11, 12, 28])
def test_an_interrupted_run_ends_in_the_same_bytes(
    shop: Path, use: Callable[..., StandIn], fail_at: int
) -> None:
    whole = use()
    encoded(shop, "whole.safetensors")
    use(fail_at=fail_at, fault=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        encoded(shop)
    rest = use()
    said = encoded(shop)
    kept = max(end for end in ENDS if end < fail_at)
    assert (whole.calls, rest.calls) == (28, 28 - kept)
    assert kept == 0 or any("finished items taken from" in line for line in said)
    assert (shop / "out.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()
    assert leftovers(shop) == ["out.safetensors"]


def test_a_record_that_was_cut_off_is_done_again(shop: Path, use: Callable[..., StandIn]) -> None:
    use()
    encoded(shop, "whole.safetensors")
    for cut in (1, 39, 41, 200):
        use(fail_at=4, fault=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            encoded(shop, f"out{cut}")
        partial = shop / f"out{cut}.visual.partial"
        partial.write_bytes(partial.read_bytes()[:-cut])
        use()
        encoded(shop, f"out{cut}")
        assert (shop / f"out{cut}").read_bytes() == (shop / "whole.safetensors").read_bytes()


def test_kill_9_keeps_what_is_finished(shop: Path, use: Callable[..., StandIn]) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "sys.path.insert(0, 'tests/feddmmr/features')\n"
        "from test_features_encode import StandIn, encoded; from feddmmr.features import encode\n"
        "class Killed(StandIn):\n"
        "    def encode(self, one):\n"
        "        if self.calls == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().encode(one)\n"
        "killed, encode.CHUNK = Killed(), 3\n"
        "encode.load_image_encoder = encode.load_text_encoder = lambda *_: killed.encoder\n"
        "encoded(Path(sys.argv[1]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, shop], cwd=ROOT, check=False)
    assert result.returncode == -9
    rest = use()
    encoded(shop)
    assert rest.calls == 28 - 6
    encoded(shop, "whole.safetensors")
    assert (shop / "out.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()


def test_a_full_disk_keeps_what_is_finished(
    shop: Path, use: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, synced = use(), os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"the disk is full.*finished items are kept"):
        encoded(shop)
    monkeypatch.setattr(os, "fsync", synced)
    rest = use()
    encoded(shop)
    assert whole.calls == 9
    assert rest.calls == 28 - 9  # the third chunk was written, and is sound
    encoded(shop, "whole.safetensors")
    assert (shop / "out.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()


def test_a_disk_that_is_full_at_the_end(
    shop: Path, use: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    use()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match="the disk is full"):
            encoded(shop)
    assert leftovers(shop) == ["out.safetensors.text.partial", "out.safetensors.visual.partial"]
    rest = use()
    encoded(shop)
    assert rest.calls == 0


def test_a_partial_file_of_another_encoder_is_refused(
    shop: Path, use: Callable[..., StandIn]
) -> None:
    use(fail_at=5, fault=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        encoded(shop)
    use(settings="other")
    with pytest.raises(DataError, match="made with another encoder or other settings"):
        encoded(shop)


def test_rows_depend_on_the_item_alone(
    shop: Path, use: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    use()
    encoded(shop)
    items = pd.read_csv(shop / "items.csv")
    first = load_file(shop / "out.safetensors")
    for chunk, order in ((1, items.index), (7, items.index), (3, items.index[::-1])):
        monkeypatch.setattr(encode, "CHUNK", chunk)
        items.loc[order].to_csv(shop / "items.csv", index=False)
        encoded(shop, f"{chunk}.safetensors")
        again = load_file(shop / f"{chunk}.safetensors")
        for kind, array in first.items():
            np.testing.assert_array_equal(again[kind], array[order])


def test_equal_texts_are_encoded_once(shop: Path, use: Callable[..., StandIn]) -> None:
    pd.DataFrame({"item_id": range(1, 21), "text": "alike"}).to_csv(shop / "items.csv")
    stand_in = use()
    encoded(shop, images=None)
    assert stand_in.calls == 1
    found = load_file(shop / "out.safetensors")["text"]
    assert (found == found[0]).all()
    assert found.any()


def test_a_text_that_nobody_sees_is_missing(shop: Path, use: Callable[..., StandIn]) -> None:
    """A zero width space, joiner, soft hyphen, no-break and wide spaces, marks of direction."""
    texts = ["\u200b", "\u2060\u00ad ", "\u00a0\u3000", "\ufeff", "\u202e\u2029", "\x1f", "\u200ba"]
    items = pd.DataFrame({"item_id": range(1, 8), "text": texts})
    items.to_csv(shop / "items.csv", index=False)
    use()
    encoded(shop, images=None)
    found = load_file(shop / "out.safetensors")["text"].any(axis=1)
    assert found.tolist() == [False] * 6 + [True]


def test_what_is_cut_is_counted(shop: Path, use: Callable[..., StandIn]) -> None:
    use()
    assert [line for line in encoded(shop) if line.endswith("cut")] == ["1 of 19 are cut"]


def test_bad_pictures_are_said_and_the_others_finished(
    shop: Path, use: Callable[..., StandIn]
) -> None:
    pictures = shop / "pictures"
    (pictures / "4.png").write_bytes(b"")
    (pictures / "6.png").write_bytes((pictures / "6.png").read_bytes()[:-35])
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(pictures / "1.gif", save_all=True, append_images=frames[1:])
    use()
    said = encoded(shop)
    lines = "\n".join(said)
    assert "warning: an empty picture file" in lines
    assert "warning: a broken picture" in lines
    assert "6.png" in lines
    assert "first of 2 frames" in lines
    assert "visual: 2 of 11 could not be used; their rows are zero" in lines
    visual = load_file(shop / "out.safetensors")["visual"]
    assert [i + 1 for i in np.flatnonzero(visual.any(axis=1))] == [1, 2, *range(8, 21, 2)]


def test_bad_pictures_are_said_again_after_an_interruption(
    shop: Path, use: Callable[..., StandIn]
) -> None:
    (shop / "pictures" / "2.png").write_bytes(b"")
    use(fail_at=5, fault=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        encoded(shop)
    use()
    assert any("2.png" in line and line.startswith("warning") for line in encoded(shop))


def test_faults_stop_before_any_work(shop: Path, use: Callable[..., StandIn]) -> None:
    stand_in = use()
    (shop / "out.safetensors").write_bytes(b"mine")
    with pytest.raises(DataError, match="the output exists already"):
        encoded(shop)
    assert (shop / "out.safetensors").read_bytes() == b"mine"
    with pytest.raises(DataError, match="no column with texts"):
        encoded(shop, "new", text_column="plot")
    with pytest.raises(ConfigError, match=r"no pictures to use it for.*--clip-tag openai"):
        encoded(shop, "new", images=None, clip_tag="openai")
    with pytest.raises(ConfigError, match=r"no texts to use it for.*--text-column plot"):
        encoded(shop, "new", texts=False, text_column="plot")
    with pytest.raises(DataError, match="nothing to encode"):
        encoded(shop, "new", images=None, texts=False)
    (shop / "pictures" / "99.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"unknown item id.*99\.png"):
        encoded(shop, "new")
    pd.DataFrame({"item_id": [1, 2, 1], "text": "a"}).to_csv(shop / "items.csv", index=False)
    with pytest.raises(DataError, match=r"an item that comes twice.*line 4"):
        encoded(shop, "new", images=None)
    assert stand_in.calls == 0
    assert not (shop / "new").exists()


def test_local_weights_that_are_missing_are_not_looked_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the weights do not exist"):
        load_image_encoder(ARCHITECTURE, str(tmp_path / "clip.pt"), "", "cpu", print)
    with pytest.raises(DataError, match="the weights do not exist"):
        load_text_encoder("./minilm", "cpu")


def test_without_a_network_a_hub_name_is_one_line(shop: Path) -> None:
    """A closed port stands for the hub: the same as no network, on any machine."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(shop / "empty")}
    command = [Path(sys.executable).with_name("feddmmr"), "features", "encode", "--device", "cpu"]
    command += ["--items", shop / "items.csv", "--output", shop / "out", "--images"]
    result = subprocess.run(
        [*command, shop / "pictures"],
        env=environment, capture_output=True, text=True, timeout=80, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    *before, last = result.stderr.strip().splitlines()
    assert before == [f"{shop / 'items.csv'}: texts from the column text"]
    assert last.startswith("error: the encoder cannot be loaded")
    assert "no network, and not in the local cache" in last
    assert "--image-weights FILE" in last


def test_help_loads_no_encoder() -> None:
    code = (
        "import sys; from feddmmr import cli; "
        "print([m for m in ('torch', 'open_clip', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
    assert cli.app.registered_groups[1].name == "features"
