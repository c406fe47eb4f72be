"""Decodes picture files of any format and pixel type into 8-bit RGB, the right way up.

Pictures come from everywhere, so nothing about them is believed: whatever a decoder raises is one ``Unreadable``.
What is read:

    formats       FORMATS, the first frame where there are several. No PostScript and no metafile, which other programs
                  would draw; no format that Pillow only recognises
    orientation   of EXIF, whichever type it has there, or else of XMP. No other tag of EXIF is read
    10 to 16 bit  grey: shown at the smallest of DEPTHS that holds the file's own maximum, for cameras and scanners
                  write 12 bits into files of 16. A PGM file states its maximum, and is shown by that. Colours of 16
                  bits are shown by their upper 8, as Pillow reads them
    transparent   parts become white
    CMYK, LAB     by Pillow's formula and by LittleCMS
    refused       grey of floats or of more than 16 bits, whose range is not known; more pixels than limit_pixels()
                  allows, by the size that the file states, before anything is decoded, or an image or tile inside it

A picture takes up to 20 bytes of memory a pixel while it is read (JPEG 2000; 16 with transparency, 8 for most).
"""

import struct
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "ICO", "ICNS", "PSD", "QOI",
           "SGI", "SUN", "DDS", "BLP", "PCX", "TGA")  # fmt: skip
"""Pillow's names of the formats that are read. TGA files have no mark of their own, so that format is tried last."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that grey values of a file of 16 bits may really have."""

MOST_PIXELS = 100_000_000
"""The default of ``limit_pixels``. 8K has 33 million (HR-Bench), the largest pictures of MME-RealWorld 42 million."""

warnings.filterwarnings(
    "ignore", module=r"PIL\b"
)  # what Pillow finds odd about a file it reads all the same, or refuses

ORIENTATION = 0x0112
TILE = (0x0142, 0x0143)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Unreadable(Exception):
    """A picture cannot be decoded; the text says why, on one line."""


class Decoded(NamedTuple):
    """A picture as its file holds it, of any pixel type, and the EXIF ``orientation``, 1 to 8, that turns it
    upright."""

    stored: Image.Image
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of the picture after it is turned."""
        return self.stored.size[::-1] if self.orientation >= 5 else self.stored.size

    def rgb(self, upright: bool = True) -> Image.Image:
        """8-bit RGB, turned or as stored. Raises Unreadable."""
        try:
            image = _rgb(self.stored)
            return image.transpose(_TURNS[self.orientation]) if upright and self.orientation > 1 else image
        except Exception as error:
            raise Unreadable(_reason(error)) from None

    def grey(self) -> np.ndarray:
        """8-bit grey (H, W) as stored, transparency left out. Raises Unreadable."""
        try:
            return np.asarray(_eight_bits(self.stored).convert("L"))
        except Exception as error:
            raise Unreadable(_reason(error)) from None


def limit_pixels(most: int) -> None:
    """Let this process refuse all pictures of more than ``most`` pixels."""
    Image.MAX_IMAGE_PIXELS = most / 2  # Pillow refuses at twice this number: see its DecompressionBombError


limit_pixels(MOST_PIXELS)


def decode(source: Path | BinaryIO) -> Decoded:
    """Decodes a file, or one in memory. Raises Unreadable, and OSError if the file cannot be opened."""
    with source.open("rb") if isinstance(source, Path) else source as file:
        try:
            with Image.open(file, formats=_formats()) as image:
                _refuse_large_tiles(image)
                orientation = _number(_tag(image))
                image.getexif = (
                    Image.Exif
                )  # it says nothing: Pillow turns TIFF files while it loads them, or fails at other tags
                image.load()
                stored = image.copy()
        # Decoders of damaged files raise whatever they happen to meet: struct.error, KeyError, MemoryError, ...
        except Exception as error:
            raise Unreadable(_reason(error)) from None
    return Decoded(stored, orientation)


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) after the picture is turned upright, read from the head of the file. Raises as ``decode``."""
    with path.open("rb") as file:
        try:
            with Image.open(file, formats=_formats()) as image:
                return Decoded(image, _number(_tag(image))).upright_size
        except Exception as error:
            raise Unreadable(_reason(error)) from None


def _refuse_large_tiles(image: Image.Image) -> None:
    """Raise DecompressionBombError for a TIFF file of larger tiles than pictures may be: each is decoded as a whole."""
    width, length = (getattr(image, "tag_v2", {}).get(tag, 0) for tag in TILE)
    if width * length > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _formats() -> list[str]:
    """The formats of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _reason(error: Exception) -> str:
    """One line about what a decoder raised."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has more than the {2 * Image.MAX_IMAGE_PIXELS:,.0f} pixels that --data_options max_image_pixels allows"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is in none of the formats that are read, or damaged at its beginning"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _tag(image: Image.Image) -> Any:
    """The orientation as it stands in the file, 1 if there is none. A picture must be asked before it is loaded."""
    asked = (
        lambda: _scanned(image.info["exif"]),
        lambda: image.getexif()[ORIENTATION],
        lambda: image.tag_v2[ORIENTATION],
    )
    for ask in asked:
        with suppress(Exception):  # other programs write the strangest things into EXIF and XMP
            return ask()
    return 1


def _scanned(exif: bytes) -> int | bytes:
    """The orientation in a block of EXIF, found without reading any other entry, of which some may be damaged.

    Raises KeyError or struct.error if there is none.
    """
    block = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    (start,) = struct.unpack_from(f"{order}L", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHL4s", block, place)
        if tag == ORIENTATION:
            whole = {3: "H", 4: "L", 8: "h", 9: "l"}.get(kind)  # the types of whole numbers of several bytes
            return struct.unpack_from(order + whole, value)[0] if whole else value[:1]
    raise KeyError(ORIENTATION)


def _number(tag: Any) -> int:
    """An orientation of any type as a number, 1 if it is none.

    >>> [_number(tag) for tag in (6, "6", b"6", b"\\x06", (6, 6), 9, None, float("nan"))]
    [6, 6, 6, 6, 6, 1, 1, 1]
    """
    try:
        value = tag[0] if isinstance(tag, tuple) else tag
        number = value[0] if isinstance(value, bytes) and value < b"\x09" else int(value)
    except (TypeError, ValueError, ArithmeticError, IndexError):
        return 1
    return number if number in _TURNS else 1


# ---------------------------------------------------------------------------- pixel types


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; transparent parts become white. Raises ValueError for values of unknown range."""
    image = _eight_bits(image)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied by alpha, of which Pillow converts to one mode only
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture itself, or as 8-bit grey if it has grey values of more bits. Raises ValueError if their range is
    unknown."""
    if image.mode != "I" and not image.mode.startswith(("I;16", "F")):
        return image
    values = np.asarray(image)
    most = 0 if image.mode == "F" else int(values.max())
    if image.mode == "F" or values.min() < 0 or most >= 2 ** DEPTHS[-1]:
        raise ValueError(f"pixel format {image.mode} has no fixed range, convert to 8 or 16 bits")
    depth = next(depth for depth in DEPTHS if most < 2**depth)
    # Pillow's own conversion cuts off at 255 and would return a white picture.
    return Image.fromarray((values >> (depth - 8)).astype(np.uint8))
