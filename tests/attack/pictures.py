"""Damaged pictures: each is a picture or a DataError that names it, within a time and some memory, and no decoder
crashes.

    python -m tests.attack.pictures --trials 100000 --seed 0

Files of all formats that Pillow writes, of several pixel types, and some that it does not write, are damaged in seven
ways. The decoders run in processes of their own, so that one that crashes or hangs costs one trial, which is named.
"""

import argparse
import io
import os
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
from PIL import Image

from activeo3.data_images import FORMATS, limit_pixels
from activeo3.data_io import DataError, decode_picture

ROOT = Path(__file__).parents[2]
PIXELS = 2**22
"""The limit of pixels of a trial."""
SECONDS, BYTES = 20.0, 200e6
"""What one trial may take. QOI and plain PPM are decoded in Python, some seconds for so many pixels."""

Bytes = Callable[[np.random.Generator, bytes], bytes]


# ---------------------------------------------------------------------- whole files


def whole_files() -> list[tuple[str, bytes]]:
    """(name, content) of small files in every format; the name begins with Pillow's name of the format."""
    Image.init()
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    files = [
        (f"{kind} {mode}", content)
        for kind in sorted(Image.SAVE)
        for mode in MODES
        if (content := _saved(_of_mode(square, mode), kind))
    ]
    for kind, options in VARIANTS:
        content = _saved(square.convert("RGBA" if kind == "DDS" else "RGB"), kind, **options)
        files += [(f"{kind} {options}", content)] if content else []
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    files += [
        (f"{kind} frames", _saved(square, kind, save_all=True, append_images=frames))
        for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO")
    ]
    marks = [(kind, mark + square.tobytes()) for kind, mark in MARKS.items()]
    return files + [("SUN", sun(square)), ("PSD", psd(square)), *marks]


MARKS = {
    "GRIB": b"GRIB\0\0\0\1", "BUFR": b"BUFR", "HDF5": b"\x89HDF\r\n\x1a\n", "FITS": b"SIMPLE  =                    T" + b" " * 50, "XPM": b"/* XPM */\n",
    "XVTHUMB": b"P7 332\n", "CUR": b"\0\0\2\0\1\0\x10\x10", "DCX": struct.pack("<II", 987654321, 12), "FTEX": b"FTEX\0\0\0\0", "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "MPEG": b"\0\0\1\xb3\1\0\x10", "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(16), "PCD": bytes(2048) + b"PCD_", "MCIDAS": b"\0\0\0\0\0\0\0\4",
}  # fmt: skip
"""How files begin that Pillow knows and we refuse."""
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA", "LAB", "I", "F")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "webp", "zstd", "lzma")),
    *(("DDS", {"pixel_format": name}) for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5")),
    ("JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"}), ("WEBP", {"lossless": True}),
]  # fmt: skip


def _of_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16)
    return Image.frombytes("LAB", image.size, image.tobytes()) if mode == "LAB" else image.convert(mode)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file, or nothing if the format has no such pixels, or this Pillow no such compression."""
    stream = io.BytesIO()
    try:
        image.save(stream, kind, **options)
    except Exception:
        return b""
    return stream.getvalue()


def sun(image: Image.Image) -> bytes:
    """A Sun raster file, which Pillow reads and does not write."""
    pixels = np.asarray(image)[..., ::-1].tobytes()
    return struct.pack(">8I", 0x59A66A95, *image.size, 24, len(pixels), 1, 0, 0) + pixels


def psd(image: Image.Image) -> bytes:
    """A Photoshop file of one layer, likewise."""
    pixels = np.asarray(image).transpose(2, 0, 1).tobytes()
    return b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, *image.size[::-1], 8, 3) + b"\0" * 12 + b"\0\0" + pixels


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that a decoder makes very much of: pixels, a tile, texts, a colour profile, a picture inside of an
    icon."""
    zeros = deflated(2**26)
    size = struct.pack(">IIBBBBB", 40000, 40000, 8, 6, 0, 0, 0)
    end = png_chunk(b"IEND", b"")
    large = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + png_chunk(b"IDAT", zeros) + end
    small = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(8 * 25))) + end
    yield "PNG of 1.6 thousand million pixels", large
    yield "PNG with texts", small + png_chunk(b"zTXt", b"a\0\0" + zeros) * 100 + body
    yield "PNG with a million texts", small + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6))) * 100 + body
    yield "PNG with international texts", small + png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros) * 100 + body
    yield "PNG with a profile", small + png_chunk(b"iCCP", b"a\0\0" + zeros) + body
    yield "ICO around it", b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(large), 22) + large
    yield (
        "ICNS around it",
        b"icns" + struct.pack(">I", len(large) + 16) + b"ic07" + struct.pack(">I", len(large) + 8) + large,
    )
    yield "TIFF of one tile", tiff_of_one_tile(30000)
    yield "PPM", b"P6 40000 40000 255\n" + bytes(100)
    yield "QOI", b"qoif" + struct.pack(">IIBB", 40000, 40000, 3, 0) + b"\xfd" * 1000
    yield (
        "GIF",
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\2\0;",
    )
    yield (
        "GIF of a frame beyond its canvas",
        b"GIF89a"
        + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\2\0;",
    )


def deflated(zeros: int) -> bytes:
    """So many zeros, compressed without having them all."""
    packer = zlib.compressobj(9)
    return b"".join(
        [*(packer.compress(bytes(min(2**20, zeros - start))) for start in range(0, zeros, 2**20)), packer.flush()]
    )


def tiff_of_one_tile(side: int) -> bytes:
    """A grey picture of 16 x 16 pixels in one compressed tile of ``side`` x ``side``."""
    tile = deflated(side * side)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 200, 325: len(tile)}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (256, 257) or tag > 300 else 3, 1, value) for tag, value in tags.items()
    )
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4).ljust(200, b"\0") + tile


# ---------------------------------------------------------------------- damage


def damaged(files: list[tuple[str, bytes]], seed: int, trial: int) -> tuple[str, bytes]:
    """(what it is, content) of the file of one trial."""
    rng = np.random.default_rng([seed, trial])
    name, content = files[rng.integers(len(files))]
    ways = [cut, flipped, edited_beginning, resized, spliced, repeated, zeroed]
    chosen = [ways[number] for number in rng.integers(0, len(ways), rng.integers(1, 4))]
    other = files[rng.integers(len(files))][1]
    for way in chosen:
        content = spliced(rng, content, other) if way is spliced else way(rng, content)
    return f"{name}: {', '.join(way.__name__ for way in chosen)}", content


def _place(rng: np.random.Generator, content: bytes, most: int = 2**40) -> int:
    return int(rng.integers(0, max(1, min(len(content), most))))


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def flipped(rng: np.random.Generator, content: bytes, most: int = 2**40) -> bytes:
    """Up to 8 bits of the first ``most`` bytes are others."""
    edited = bytearray(content)
    for _ in range(rng.integers(1, 9) if edited else 0):
        edited[_place(rng, content, most)] ^= 1 << rng.integers(8)
    return bytes(edited)


def edited_beginning(rng: np.random.Generator, content: bytes) -> bytes:
    """Bits of the headers."""
    return flipped(rng, content, 64)


def resized(rng: np.random.Generator, content: bytes) -> bytes:
    """A number 16, which may be a side, is another one, in one of the four ways in which files write numbers."""
    order = ("<H", ">H", "<I", ">I")[rng.integers(4)]
    sides = [place for place in range(len(content)) if content.startswith(struct.pack(order, 16), place)]
    if not sides:
        return content
    place, new = sides[rng.integers(len(sides))], struct.pack(order, int(rng.choice([0, 1, 17, 2047, 30000, 65535])))
    return content[:place] + new + content[place + len(new) :]


def spliced(rng: np.random.Generator, content: bytes, other: bytes = b"") -> bytes:
    """A part of another file stands inside."""
    place, start = _place(rng, content), _place(rng, other)
    return (
        content[:place] + other[start : start + int(rng.integers(1, 200))] + content[place + int(rng.integers(0, 50)) :]
    )


def repeated(rng: np.random.Generator, content: bytes) -> bytes:
    """A part stands there several times."""
    start = _place(rng, content)
    part = content[start : start + int(rng.integers(1, 100))]
    return content[:start] + part * int(rng.integers(2, 50)) + content[start:]


def zeroed(rng: np.random.Generator, content: bytes) -> bytes:
    """A part is zeros, or ones."""
    start, size = _place(rng, content), int(rng.integers(1, 100))
    return content[:start] + (b"\0", b"\xff")[rng.integers(2)] * size + content[start + size :]


# ---------------------------------------------------------------------- trials


def fault(content: bytes, name: str = "a.jpg") -> str:
    """What is wrong with what came of a file; "" if nothing is."""
    began = time.process_time()  # by the clock, a busy machine would be a fault
    try:
        image = decode_picture(content, name, "7")
        wrong = "" if image.mode == "RGB" else f"a picture of mode {image.mode}"
    except DataError as error:
        named = error.example_id == "7" and str(error).startswith(
            f"{name}: the picture of example 7 cannot be read, replace it ("
        )
        wrong = "" if named and "\n" not in str(error) else f"the sentence {error}"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    took = time.process_time() - began
    return wrong or (f"{took:.0f} seconds" if took > SECONDS else "")


def memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(seed: int, first: int, last: int) -> None:
    """Trials ``first`` to ``last``, in this process: a line ``number fault`` before each, so that a crash is known by
    its number."""
    warnings.simplefilter("ignore")
    limit_pixels(PIXELS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, hard))
    files = whole_files()
    known = list(bombs()) if first == 0 else []
    for trial in range(first, last):
        name, content = known[trial] if trial < len(known) else damaged(files, seed, trial)
        print(trial, flush=True)
        before = memory()
        wrong = fault(content)
        if not wrong and memory() - before > BYTES:
            wrong = f"{(memory() - before) / 1e6:.0f} MB"
        if wrong:
            print(trial, name, wrong, flush=True)


def attack(trials: int, seed: int, block: int = 2000) -> list[str]:
    """All trials, in processes of ``block`` trials each. Returns the faults."""
    faults, done = [], 0
    while done < trials:
        last = min(trials, done + block)
        command = [sys.executable, "-m", "tests.attack.pictures", "--seed", str(seed), "--work", str(done), str(last)]
        try:
            ran = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=60 + block * 0.5, stdin=subprocess.DEVNULL
            )
            printed, ended = ran.stdout, ran.returncode
        except subprocess.TimeoutExpired as error:
            printed, ended = (error.stdout or b"").decode(), "it does not end"
        lines = printed.splitlines()
        faults += [line for line in lines if " " in line]
        done = last if ended == 0 else int((lines or [str(done)])[-1].split()[0]) + 1
        if ended != 0:
            faults.append(
                f"{done - 1} the process ended with {ended}: {ran.stderr.strip().splitlines()[-1:] if ended != 'it does not end' else ''}"
            )
        print(f"{done} of {trials}, {len(faults)} faults", file=sys.stderr, flush=True)
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", metavar="FILE", help="write the file of the trial --trials, to look at")
    options = parser.parse_args()
    if options.write:
        name, content = damaged(whole_files(), options.seed, options.trials)
        Path(options.write).write_bytes(content)
        return print(name)
    if options.work:
        return work(options.seed, *options.work)
    faults = attack(options.trials, options.seed)
    print(*faults, sep="\n")
    formats = {name.split()[0] for name, _ in whole_files()}
    print(
        f"{len(formats)} formats, {len(formats & set(FORMATS))} of them read; reproduce a trial N: --write FILE "
        f"--trials N --seed {options.seed}"
    )
    print(f"pictures {options.trials} {len(faults)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
