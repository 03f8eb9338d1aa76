import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from livo.utils import images
from livo.utils.images import ImageError, check_images, ignored, open_image, require_images

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width, height, depth, kind, rows, extra=b""):
    """A PNG from raw bytes: Pillow writes neither every depth nor a lie about the size."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, orientation, suffix):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # only the upper left quarter is white
    undo = {1: [], 2: ["LR"], 3: ["180"], 4: ["TB"], 5: ["T"], 6: ["90"], 7: ["TV"], 8: ["270"]}[orientation]
    names = {"LR": "FLIP_LEFT_RIGHT", "TB": "FLIP_TOP_BOTTOM", "T": "TRANSPOSE", "TV": "TRANSVERSE"}
    stored = Image.fromarray(upright)
    for name in undo:
        stored = stored.transpose(getattr(Image.Transpose, names.get(name, f"ROTATE_{name}")))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    found = np.asarray(open_image(tmp_path / f"a{suffix}")).astype(int)
    assert found.shape == upright.shape and abs(found - upright).mean() < 3


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", 6), ("LA", 4), ("palette", 3), ("RGB with one transparent colour", 2), ("L with one", 0)]
)
def test_what_is_transparent_is_white_whatever_lies_below(tmp_path, mode, kind):
    """One row: an opaque pixel of grey 100 and a transparent one with hidden grey 50."""
    rows = {
        6: bytes([0, 100, 100, 100, 255, 50, 50, 50, 0]),
        4: bytes([0, 100, 255, 50, 0]),
        3: bytes([0, 0, 1]),
        2: bytes([0, 100, 100, 100, 50, 50, 50]),
        0: bytes([0, 100, 50]),
    }[kind]
    extra = {
        3: chunk(b"PLTE", bytes([100] * 3 + [50] * 3)) + chunk(b"tRNS", bytes([255, 0])),
        2: chunk(b"tRNS", struct.pack(">HHH", 50, 50, 50)),
        0: chunk(b"tRNS", struct.pack(">H", 50)),
    }.get(kind, b"")
    (tmp_path / "a.png").write_bytes(raw_png(2, 1, 8, kind, rows, extra))
    assert np.asarray(open_image(tmp_path / "a.png")).tolist() == [[[100] * 3, [255] * 3]], mode


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    (tmp_path / "a.png").write_bytes(raw_png(1, 1, 8, 6, bytes([0, 0, 0, 0, 128])))
    assert np.asarray(open_image(tmp_path / "a.png")).tolist() == [[[127] * 3]]


@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_sixteen_bits_become_eight_with_the_same_brightness(tmp_path, kind):
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    values = [0, 257 * 100, 65535]
    pixels = [[v] * bands if bands % 2 else [v] * (bands - 1) + [65535] for v in values]
    rows = b"\0" + b"".join(struct.pack(f">{bands}H", *pixel) for pixel in pixels)
    (tmp_path / "a.png").write_bytes(raw_png(3, 1, 16, kind, rows))
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_other_kinds_of_pixels_become_rgb(tmp_path, mode):
    picture = Image.fromarray(COLORS).convert(mode)
    picture.save(tmp_path / "a.tif")
    found = open_image(tmp_path / "a.tif")
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(picture.convert("RGB")))


def test_a_cmyk_jpeg_as_printers_save_it_keeps_its_brightness(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "black.jpg")
    assert np.asarray(open_image(tmp_path / "white.jpg")).min() > 250 and np.asarray(open_image(tmp_path / "black.jpg")).max() < 5


def jpeg(size=(64, 64)):
    stream = io.BytesIO()
    Image.effect_noise(size, 90).save(stream, "JPEG")
    return stream.getvalue()


def frames(kind, **options):
    stream = io.BytesIO()
    first, *others = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    first.save(stream, kind, save_all=True, append_images=others, **options)
    return stream.getvalue()


REFUSED = [
    ("cut.jpg", jpeg()[:2000], "cut.jpg: cannot be read as an image .*truncated"),
    ("cut.png", raw_png(8, 8, 8, 0, bytes(72))[:-20], "cut.png: cannot be read"),
    ("short.png", raw_png(8, 8, 8, 0, bytes(20)), "short.png: cannot be read"),
    ("empty.png", b"", "the file is empty"),
    ("text.png", b"this is no picture", "cannot be read as an image"),
    ("page.jpg", b"<!DOCTYPE html><html>", "cannot be read as an image"),
    ("lfs.png", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, as iPhones save it"),
    ("phone.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
    ("bomb.png", raw_png(30_000, 30_000, 1, 0, bytes(100)), "pixels.*make it smaller"),
    ("large.png", raw_png(8_001, 8_000, 1, 0, bytes(100)), "8001 x 8000 pixels, more than 64,000,000; make it smaller"),
    ("a.gif", frames("GIF"), "3 frames or pages"),
    ("a.webp", frames("WEBP"), "3 frames"),
    ("a.png", frames("PNG"), "3 frames"),
    ("a.tif", frames("TIFF"), "3 frames"),
    ("._photo.jpg", jpeg(), "macOS's notes"),
    ("text bomb.png", raw_png(1, 1, 8, 0, bytes(2), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))), "text bomb.png"),
]


@pytest.mark.parametrize(("name", "content", "words"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_cannot_be_shown_is_refused_by_name(tmp_path, name, content, words, recwarn):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=words):
        open_image(tmp_path / name)
    assert not [warning for warning in recwarn if "Bomb" in warning.category.__name__]


def test_numbers_without_a_known_range_are_refused(tmp_path):
    for dtype, mode in ((np.float32, "F"), (np.int32, "I")):
        Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match=f"a.tif: mode {mode} has no known range"):
            open_image(tmp_path / "a.tif")


def test_missing_files_folders_and_broken_links_are_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, words in (("absent.png", "no such file"), ("folder.png", "a folder"), ("link.png", "a broken link")):
        with pytest.raises(ImageError, match=f"{name}: {words}"):
            open_image(tmp_path / name)


def test_one_pixel_and_one_frame_are_pictures(tmp_path):
    Image.new("P", (1, 1), 3).save(tmp_path / "a.gif")
    assert open_image(tmp_path / "a.gif").size == (1, 1)
    two = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    two[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=two[1:])
    assert np.asarray(open_image(tmp_path / "phone.jpg"))[0, 0, 0] > 250


def test_a_folder_is_decoded_whole_and_its_other_files_are_named(tmp_path, caplog):
    for name in ("a.png", "b/c.JPG", "b/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(COLORS).save(tmp_path / name)
    for name in ("._a.png", "Thumbs.db", "b/.DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        require_images(tmp_path, 3)
    assert [r.message for r in caplog.records] == [f"{tmp_path}: ignored, no pictures: .DS_Store, ._a.png, Thumbs.db, notes.txt"]
    with pytest.raises(ImageError, match="3 pictures there; at least 4 are needed"):
        require_images(tmp_path, 4)
    (tmp_path / "b" / "d.webp").write_bytes((tmp_path / "b" / "d.webp").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"d.webp: cannot be read"):
        require_images(tmp_path, 3)
    assert [bool(found.fault) for found in check_images(images.image_files(tmp_path))] == [False, False, True]
    assert (
        ignored([tmp_path / f"{i}.txt" for i in range(9)])
        == "ignored, no pictures: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more names"
    )
