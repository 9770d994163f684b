"""Kinds of pixels and of damage: eight bits without a loss, or unreadable with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ofq_core.data.origin import Unreadable, decoding, header_fault, quiet
from ofq_core.data.samples import converted
from ofq_core.errors import DataError

RAMP = np.linspace(0, 65535, 32 * 32).round().astype(np.int64).reshape(32, 32)
# 16 bits to 8: the nearest of 256 levels.
LEVELS = np.floor(RAMP / 257 + 0.5).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(pixels, colour):
    """A PNG of 16 bits: Pillow writes grey ones only. pixels (h, w, n)."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff12(pixels):
    """An uncompressed TIFF of 12 bits a pixel, which Pillow reads but cannot write."""
    height, width = pixels.shape
    low, high = pixels.reshape(-1, 2)[:, 0], pixels.reshape(-1, 2)[:, 1]
    packed = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], 1).astype(np.uint8)
    data = packed.tobytes()
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + bytes(4)


GREY16 = {
    "png": saved(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
    "tiff": saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),
    "tiff, big endian": saved(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "tiff, packed": saved(Image.fromarray(RAMP.astype(np.uint16)), "TIFF", compression="tiff_lzw"),
    "pgm": saved(Image.fromarray(RAMP.astype(np.uint16)), "PPM"),
    "pgm of 12 bits": b"P5 32 32 4095\n" + (RAMP // 16).astype(">u2").tobytes(),
    "tiff of 12 bits": tiff12(RAMP // 16),
    "jpeg 2000": saved(Image.fromarray(RAMP.astype(np.uint16)), "JPEG2000", irreversible=False),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", GREY16)
def test_sixteen_bits_are_scaled(name, mode):
    """All of them, for one channel and for three: Pillow's own conversion cuts off at 255."""
    with Image.open(io.BytesIO(GREY16[name])) as image:
        pixels = np.asarray(converted(image, mode))
    grey = pixels if mode == "L" else pixels[..., 0]
    # 12 bits have no level for each of 16.
    assert np.abs(grey.astype(int) - LEVELS).max() <= (1 if "12" in name else 0)
    assert (grey.min(), grey.max()) == (0, 255)
    assert mode == "L" or (pixels == grey[..., None]).all()


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_sixteen_bits(colour, channels):
    """Pillow reads them as eight: nothing is lost but the lower half."""
    content = png16(np.repeat(RAMP[..., None], channels, 2), colour)
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(converted(image, "RGB"))
    assert np.array_equal(pixels, np.repeat((RAMP >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_other_kinds_are_as_torchvision_has_them(kind, mode):
    colours = np.random.RandomState(0).randint(0, 256, (9, 7, 4), dtype=np.uint8)
    image = Image.fromarray(colours).convert("RGB" if kind in ("HSV", "YCbCr") else "RGBA")
    image = image.convert("P" if kind == "PA" else kind).convert(kind)
    with quiet():
        assert np.array_equal(np.asarray(converted(image, mode)), np.asarray(image.convert(mode)))


def test_small_numbers_of_32_bits_are_taken_as_they_are():
    pixels = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert np.array_equal(np.asarray(converted(Image.fromarray(pixels), "L")), pixels)


def tiff(pixels):
    return saved(Image.fromarray(pixels), "TIFF")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff((RAMP / 65535).astype(np.float32)), "pixels are floats"),
        (saved(Image.fromarray((RAMP / 9).astype(np.float32)), "PPM"), "pixels are floats"),
        (tiff(RAMP.astype(np.int32)), "whole numbers from 0 to 65535"),
        (tiff((RAMP - 5).astype(np.int32)), "whole numbers from -5 to 65530"),
        (GREY16["png"][: len(GREY16["png"]) // 2], "."),
        (GREY16["tiff"][: len(GREY16["tiff"]) // 2], "."),
    ],
)
def test_what_cannot_be_eight_bits_is_unreadable(content, reason):
    with pytest.raises(Unreadable, match=reason), decoding():
        converted(Image.open(io.BytesIO(content)), "RGB")


def test_floats_are_known_by_the_header():
    content = tiff(RAMP.astype(np.float32))
    assert "floats" in header_fault(lambda: Image.open(io.BytesIO(content)))
    assert header_fault(lambda: Image.open(io.BytesIO(GREY16["png"]))) == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Failed to\ndecode /x"), "Failed to decode /x"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (FileNotFoundError(2, "No such file or directory", "/x/y"), "No such file or directory"),
        (KeyError("\udce9"), "'\\udce9'"),
        (ValueError("long " * 99), ("long " * 20)),
    ],
)
def test_whatever_a_decoder_raises(error, reason):
    with pytest.raises(Unreadable) as raised, decoding():
        raise error
    assert str(raised.value) == reason


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), DataError("no package")])
def test_what_is_no_fault_of_the_image(error):
    with pytest.raises(type(error)), decoding():
        raise error
