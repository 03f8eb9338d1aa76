"""Opening image files in one way: for training, references and conditions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from livo.utils.files import check_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
MAX_PIXELS = 64_000_000  # more than any generator makes; a decompression bomb is larger
BACKGROUND = (255, 255, 255)  # what is seen through transparent pixels
_JUNK = {"thumbs.db", "desktop.ini", ".ds_store"}  # what file managers leave in every folder
logger = logging.getLogger(__name__)


class ImageError(ValueError):
    """A picture cannot be used. The message names the file and the remedy."""


def open_image(file: str | Path) -> Image.Image:
    """The picture as it is meant to be seen: upright as its EXIF data say, transparent parts on white (`BACKGROUND`), 8 bits, RGB.

    Palette, greyscale, CMYK and 16-bit pictures are converted.

    Args:
        file: An image file.

    Raises:
        ImageError: it is missing, truncated, animated, too large, of floats or 32-bit numbers without a known range, or no picture.
    """
    file = Path(file)
    try:
        check_file(file)
    except (OSError, ValueError) as error:
        raise ImageError(f"{error}; restore it or leave it out") from None
    if file.name.startswith("._"):
        raise ImageError(f"{file}: macOS's notes about a picture, not the picture; delete it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is below its limit
            with Image.open(file) as image:
                _refuse(image, file)
                if image.format == "PNG":  # whose decoder does not miss the end of a file that was cut
                    with Image.open(file) as whole:
                        whole.verify()
                return to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{file}: {_unknown(file)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{file}: more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except PermissionError:
        raise ImageError(f"{file}: no permission to read it") from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise ImageError(f"{file}: cannot be read as an image ({error}); restore or delete it") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, with transparent parts on `BACKGROUND`. RGB comes back as it is.

    Args:
        image: A picture of any mode.

    Raises:
        ValueError: it has floats or 32-bit numbers, whose range is not known.
    """
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert("RGB")


def image_files(folder: Path, least: int = 1) -> list[Path]:
    """The picture files below a folder, sorted; other files are left out.

    Args:
        folder: It is searched with its subfolders.
        least: How many pictures are needed.

    Raises:
        ImageError: there is no such folder, or there are fewer than `least` pictures.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder of pictures")
    files = sorted(file for file in folder.rglob("*") if is_image_file(file) and not file.is_dir())
    if len(files) < least:
        raise ImageError(f"{folder}: {len(files)} pictures there; at least {least} are needed")
    return files


def require_images(folder: Path, least: int = 1) -> None:
    """Decode all pictures below a folder, and name the files that are none in a warning: for before anything that takes long.

    Args:
        least: How many pictures are needed.

    Raises:
        ImageError: see `image_files`, or one cannot be read.
    """
    files = image_files(folder, least)
    if note := ignored(file for file in folder.rglob("*") if file.is_file() and not is_image_file(file)):
        logger.warning("%s: %s", folder, note)
    faults = [found.fault for found in check_images(files) if found.fault]
    if faults:
        raise ImageError(faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""))


def is_image_file(file: Path) -> bool:
    """Whether a file is a picture by its name; macOS's `._photo.jpg` is none.

    Args:
        file: A path.
    """
    return file.suffix.lower() in SUFFIXES and not file.name.startswith("._")


def ignored(files: Iterable[Path]) -> str:
    """One line that names files which are no pictures; "" where there are none.

    Args:
        files: Files that are no pictures.
    """
    names = sorted({file.name for file in files}, key=lambda name: (name.lower() not in _JUNK and name[:2] != "._", name))
    more = f" and {len(names) - 5} more names" if len(names) > 5 else ""
    return f"ignored, no pictures: {', '.join(names[:5])}{more}" if names else ""


class Checked(NamedTuple):
    """What decoding a picture found: its size, or what is wrong with it."""

    size: tuple[int, int]
    fault: str


def check_images(files: Sequence[Path]) -> Iterator[Checked]:
    """Decode every picture, in threads and with a bar, and say of each in order what was found.

    Args:
        files: Image files.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(_checked, files)
        yield from tqdm(found, "checking", len(files), unit="image", mininterval=2, leave=False)


def _checked(file: Path) -> Checked:
    try:
        return Checked(open_image(file).size, "")
    except ImageError as error:
        return Checked((0, 0), str(error))


def _refuse(image: Image.Image, file: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{file}: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; make it smaller")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a telephone's JPEG with a preview behind it
    if frames > 1:
        raise ImageError(f"{file}: {frames} frames or pages; save the one that is meant as a PNG")
    if image.mode in ("I", "F"):
        raise ImageError(f"{file}: mode {image.mode} has no known range; save it with 8 or 16 bits")


def _unknown(file: Path) -> str:
    """Why Pillow does not know a file."""
    with file.open("rb") as stream:
        start = stream.read(64)
    if not start:
        return "the file is empty; restore or delete it"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"heim", b"heis"):
        return "HEIC, as iPhones save it, cannot be read; save it as JPEG or PNG"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the picture; fetch it with git lfs pull"
    return "cannot be read as an image; restore or delete it"
