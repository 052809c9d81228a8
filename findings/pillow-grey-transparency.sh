#!/usr/bin/env bash
# Pillow 13.0.0, PNG in grey with a transparent value (chunk tRNS), convert("RGBA"): at 1 and 8 bits the pixel of
# that value is transparent. At 2 and 4 bits pixels are scaled to 8 bits and the value is not, so no pixel has
# it; at 16 bits the value's low byte is compared with pixels that were clipped at 255, so nothing is transparent,
# or another pixel than the file says. Pictures laid over white by their alpha keep their background, silently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0
"$folder/env/bin/python" - <<'PYTHON'
import io
import struct
import zlib

from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png(depth, values, transparent):
    head = struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0)
    bits = "".join(format(value, f"0{depth}b") for value in values)
    bits += "0" * (-len(bits) % 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    parts = [(b"IHDR", head), (b"tRNS", struct.pack(">H", transparent))]
    parts += [(b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


for depth, values, transparent, seen in (
    (1, [0, 1], 1, [255, 0]),  # right
    (8, [0, 128, 255], 128, [255, 0, 255]),  # right
    (2, [0, 2, 3], 2, [255, 255, 255]),
    (4, [0, 8, 15], 8, [255, 255, 255]),
    (16, [0, 1000, 65535], 1000, [255, 255, 255]),
    (16, [0, 32768, 65535], 32768, [0, 255, 255]),  # another pixel than the file says
):
    image = Image.open(io.BytesIO(grey_png(depth, values, transparent)))
    alpha = list(image.convert("RGBA").getchannel("A").tobytes())
    print(f"{depth} bits, {transparent} of {values} is transparent: alpha {alpha}")
    assert alpha == seen, f"no longer so: {alpha}"
PYTHON
