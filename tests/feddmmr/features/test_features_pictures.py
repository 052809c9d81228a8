"""Pictures of every kind: what can be opened looks right, what cannot is one clear line."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feddmmr.features.pictures import aspect_ratio, find_pictures, middle, open_picture
from shared_model.errors import DataError


def pixel(path: Path) -> tuple[int, ...]:
    picture, _ = open_picture(path)
    assert picture.mode == "RGB"
    value = picture.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def huge_png(path: Path) -> Path:
    """A few bytes that claim 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    for value, expected in ((0, 0), (257 * 100, 100), (65535, 255), (300, 1)):
        Image.fromarray(np.full((4, 4), value, dtype=np.uint16)).save(tmp_path / "1.png")
        assert pixel(tmp_path / "1.png") == (expected,) * 3
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "1.tif")
    assert pixel(tmp_path / "1.tif") == (100, 100, 100)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "1.tif")
    assert pixel(tmp_path / "1.tif") == (255, 0, 0)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "1.jpg", quality=100)
    red, green, blue = pixel(tmp_path / "1.jpg")
    assert red > 230
    assert max(green, blue) < 25


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "1.png")
    assert pixel(tmp_path / "1.png") == (255, 255, 255)
    Image.new("LA", (4, 4), (10, 255)).save(tmp_path / "2.png")
    assert pixel(tmp_path / "2.png") == (10, 10, 10)


def test_of_an_animation_the_first_frame_is_used_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "1.gif") == (254, 0, 0) or pixel(tmp_path / "1.gif") == (255, 0, 0)
    _, remark = open_picture(tmp_path / "1.gif")
    assert "1.gif: animated, the first of 3 frames is used" in remark


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    lying = Image.new("RGB", (6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    lying.save(tmp_path / "1.jpg", exif=exif)
    assert open_picture(tmp_path / "1.jpg")[0].size == (3, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty picture file"),
        (b"this is no picture", "a broken picture.*no known picture format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a broken picture"),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        open_picture(tmp_path / "1.png")
    assert "1.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_cut_of_a_picture_is_an_error_or_a_picture(tmp_path: Path) -> None:
    Image.effect_noise((40, 40), 50).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for cut in range(0, len(whole) - 2, 97):
        (tmp_path / "1.jpg").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"1\.jpg"):
            open_picture(tmp_path / "1.jpg")


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a huge picture.*at most"):
        open_picture(huge_png(tmp_path / "1.png"))


def small_png(path: Path, depth: int, color_type: int, row: bytes, transparent: bytes) -> Path:
    """A PNG of one row of two pixels, with a transparent colour."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 2, 1, depth, color_type, 0, 0, 0)
    for kind, data in (
        (b"IHDR", header),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ):
        check = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + check
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("depth", "color_type", "row", "transparent", "expected"),
    [
        (16, 0, struct.pack(">HH", 25700, 51400), struct.pack(">H", 25700), (200,) * 3),
        (8, 0, bytes([100, 200]), struct.pack(">H", 100), (200,) * 3),
        (4, 0, bytes([0x5A]), struct.pack(">H", 5), (170,) * 3),  # 10 of 15
        (2, 0, bytes([0b01100000]), struct.pack(">H", 1), (170,) * 3),  # 2 of 3
        (1, 0, bytes([0b10000000]), struct.pack(">H", 1), (0,) * 3),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), struct.pack(">HHH", 1, 2, 3), (4, 5, 6)),
        (16, 2, struct.pack(">6H", 1000, 2000, 3000, 257, 514, 771),
         struct.pack(">3H", 1000, 2000, 3000), (1, 2, 3)),
    ],
)  # fmt: skip
def test_a_transparent_colour_of_any_depth_is_white(
    tmp_path: Path, depth: int, color_type: int, row: bytes, transparent: bytes, expected: object
) -> None:
    picture, _ = open_picture(small_png(tmp_path / "1.png", depth, color_type, row, transparent))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == expected


def test_floating_point_numbers_from_0_to_1_are_a_brightness(tmp_path: Path) -> None:
    for value, expected in ((0.0, 0), (0.2, 51), (1.0, 255)):
        Image.fromarray(np.full((4, 4), value, dtype=np.float32)).save(tmp_path / "1.tif")
        assert pixel(tmp_path / "1.tif") == (expected,) * 3


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.array([[-0.5, 3.0]], dtype=np.float32), r"expected 0 to 1 \(mode F\).*-0\.5 to 3\.0"),
        (np.array([[0.5, np.nan]], dtype=np.float32), r"expected 0 to 1.*nan to nan"),
        (np.array([[0, 70000]], dtype=np.int32), r"expected 0 to 65535 \(mode I\).*0 to 70000"),
    ],
)
def test_numbers_without_a_brightness_are_said_so(
    tmp_path: Path, numbers: np.ndarray, message: str
) -> None:
    Image.fromarray(numbers).save(tmp_path / "1.tif")
    with pytest.raises(DataError, match=f"without a defined brightness.*{message}") as error:
        open_picture(tmp_path / "1.tif")
    assert "broken" not in str(error.value)
    assert "1.tif" in str(error.value)


def test_of_a_strip_only_the_middle_is_kept() -> None:
    strip = Image.new("RGB", (8001, 1))
    strip.putpixel((4000, 0), (1, 2, 3))
    cut = middle(strip)
    assert cut.size == (8, 1)
    assert cut.getpixel((4, 0)) == (1, 2, 3)  # pixels 3,996 to 4,003
    assert middle(strip.rotate(90, expand=True)).size == (1, 8)
    for size in ((80, 10), (10, 80), (7, 7)):
        picture = Image.new("RGB", size)
        assert middle(picture) is picture


def test_the_aspect_ratio_is_read_from_the_header(tmp_path: Path) -> None:
    for size in ((60, 20), (20, 60)):
        Image.new("RGB", size).save(tmp_path / "1.png")
        assert aspect_ratio(tmp_path / "1.png") == 3
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match="a broken picture"):
        aspect_ratio(tmp_path / "1.png")


def test_pictures_are_found_by_item_id(tmp_path: Path) -> None:
    for name in ("7.jpg", "b.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found, others = find_pictures(tmp_path, ["7", "b", "8"])
    assert found == {"7": tmp_path / "7.jpg", "b": tmp_path / "b.PNG"}
    assert others == [tmp_path / "notes.txt"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["7.jpg", "9.jpg"], "unknown item id.*9.jpg"),
        (["7.jpg", "7.png"], "an item has two pictures.*7.jpg and 7.png"),
        (["readme.txt"], "no pictures"),
    ],
)
def test_faults_of_the_folder(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        find_pictures(tmp_path, ["7", "8"])
    with pytest.raises(DataError, match="does not exist"):
        find_pictures(tmp_path / "nowhere", ["7"])
