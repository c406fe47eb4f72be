"""data_images.py: every orientation and pixel type by a second opinion, and files that no decoder was made for."""

import io
import os
import re
import struct
import subprocess
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pytest
from attack import pictures as attack
from PIL import EpsImagePlugin, Image

import evaluate
import train
from activeo3 import curriculum, data_images
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_images import FORMATS, MOST_PIXELS, ORIENTATION, Decoded, Unreadable, decode, limit_pixels
from activeo3.data_io import DataError, read_picture
from activeo3.eval_config import EvalConfig

# What EXIF defines: where the first row and the first column of the stored picture belong.
TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


def noise(width: int = 33, height: int = 24, bands: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seen(content: bytes) -> np.ndarray:
    """The picture (H, W, 3) upright."""
    return np.asarray(decode(io.BytesIO(content)).rgb())


# ---------------------------------------------------------------------- orientation


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF lzw", "TIFF xmp", "JPEG", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", TURNED)
def test_every_orientation_in_every_format_that_has_one(kind: str, orientation: int) -> None:
    stored = np.kron(noise(4, 3), np.ones((8, 8, 1), dtype=np.uint8))
    note = Image.Exif()
    note[ORIENTATION] = orientation
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    options: dict[str, Any] = {
        "TIFF": {"tiffinfo": {ORIENTATION: orientation}}, "TIFF lzw": {"tiffinfo": {ORIENTATION: orientation}, "compression": "tiff_lzw"},
        "TIFF xmp": {"tiffinfo": {700: xmp}}, "WEBP": {"exif": note, "lossless": True}, "JPEG": {"exif": note, "quality": 100, "subsampling": 0},
        "AVIF": {"exif": note, "quality": 100, "subsampling": "4:4:4"}, "MPO": {"exif": note, "quality": 100, "subsampling": 0},
    }.get(kind, {"exif": note})  # fmt: skip
    decoded = decode(io.BytesIO(saved(Image.fromarray(stored), kind.split()[0], **options)))
    near = 0 if kind.split()[0] in ("PNG", "WEBP", "TIFF") else 24  # the others lose a little
    for upright, wanted in ((True, TURNED[orientation](stored)), (False, stored)):
        picture = np.asarray(decoded.rgb(upright)).astype(int)
        assert picture.shape == wanted.shape and np.abs(picture - wanted).max() <= near
    assert decoded.upright_size == TURNED[orientation](stored).shape[1::-1] and decoded.orientation == orientation


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI4s", tag, kind, count, value)


def exif(*entries: bytes, extra: bytes = b"") -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + extra


SIX = entry(ORIENTATION, 3, 1, struct.pack("<I", 6))
ODD_TAGS = {
    "a resolution of another type": exif(SIX, entry(0x11A, 7, 4, b"72\0\0")),
    "a name that is a ratio": exif(SIX, entry(0x131, 5, 1, struct.pack("<I", 38)), extra=struct.pack("<II", 72, 1)),
    "a ratio of nothing": exif(SIX, entry(0x11A, 5, 1, struct.pack("<I", 38)), extra=struct.pack("<II", 0, 0)),
    "a maker behind the end": exif(entry(0x10F, 2, 99, struct.pack("<I", 60000)), SIX),
    "more than there is": exif(entry(0x10F, 2, 2**31, b"\0\0\0\0"), SIX),
    "a table that contains itself": exif(SIX, entry(0x8769, 4, 1, struct.pack("<I", 8))),
    "a table that is none": exif(SIX, entry(0x8769, 2, 4, b"abc\0"), entry(0x8825, 9, 1, b"\xff\xff\xff\xff")),
    "an unknown type": exif(entry(0x10F, 77, 1, b"\0\0\0\0"), SIX),
    "six as a long number": exif(entry(ORIENTATION, 4, 1, struct.pack("<I", 6))),
    "six as a byte": exif(entry(ORIENTATION, 1, 1, b"\x06\0\0\0")),
    "six as a text": exif(entry(ORIENTATION, 2, 2, b"6\0\0\0")),
    "big-endian": b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", ORIENTATION, 3, 1, 6, 0) + b"\0" * 4,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", ODD_TAGS.values(), ids=ODD_TAGS)
def test_odd_tags_turn_a_photo_all_the_same(kind: str, block: bytes) -> None:
    stored = noise()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = seen(saved(Image.fromarray(stored), kind, exif=block, **options))
    wanted = TURNED[6](stored)
    assert picture.shape == wanted.shape and np.abs(picture.astype(int) - wanted).max() <= (16 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"nonsense" * 9, exif(), exif(entry(ORIENTATION, 3, 1, struct.pack("<I", 9))), exif(entry(ORIENTATION, 5, 1, b"\xff" * 4)),
              exif(entry(ORIENTATION, 2, 4, b"six\0")), exif(SIX)[:20]],
)  # fmt: skip
def test_a_photo_without_an_orientation_stays(block: bytes) -> None:
    assert (seen(saved(Image.fromarray(noise()), "PNG", exif=block)) == noise()).all()


def test_a_tiff_file_with_odd_tags_is_turned_once() -> None:
    """Pillow turns this format while it loads it, and gives up at a tag that it cannot read."""
    content = bytearray(saved(Image.fromarray(noise()), "TIFF", tiffinfo={ORIENTATION: 6}))
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    own = [bytes(content[start + 2 + 12 * k : start + 14 + 12 * k]) for k in range(count)]
    for odd in (
        entry(700, 3, 1, b"\x05\0\0\0"),
        entry(0x8769, 9, 1, b"\x80\xff\xff\xff"),
        entry(0x8825, 5, 1, b"\0\0\0\0"),
    ):
        rows = sorted([*own, odd], key=lambda row: struct.unpack_from("<H", row))
        changed = bytearray(content) + struct.pack("<H", len(rows)) + b"".join(rows) + b"\0\0\0\0"
        struct.pack_into("<I", changed, 4, len(content))
        assert (seen(bytes(changed)) == TURNED[6](noise())).all()


# ---------------------------------------------------------------------- pixel types


@pytest.mark.parametrize("bits, shift", [(8, 0), (9, 2), (10, 2), (11, 4), (12, 4), (13, 6), (14, 6), (15, 8), (16, 8)])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_grey_of_up_to_16_bits_is_shown_at_full_range(bits: int, shift: int, order: str) -> None:
    values = np.arange(33 * 24).reshape(24, 33) % (2**bits - 1)
    values[0, 0] = 2**bits - 1
    mode = {"<u2": "I;16", ">u2": "I;16B"}[order]
    image = Image.frombytes(mode, (33, 24), values.astype(order).tobytes())
    files = [saved(image, "TIFF")]
    if order == ">u2":
        files.append(b"P5 33 24 65535\n" + values.astype(order).tobytes())
    else:
        files += [saved(image, "PNG")]
    for content in files:
        assert (seen(content) == (values >> shift)[..., None]).all()


@pytest.mark.parametrize("most", [300, 1023, 4095, 65535])
def test_a_pgm_file_is_shown_by_the_maximum_that_it_states(most: int) -> None:
    values = np.random.default_rng(0).integers(0, most + 1, (24, 33))
    values[0, :3] = 0, most // 2, most
    plain = f"P2 33 24 {most}\n{' '.join(map(str, values.ravel()))}\n".encode()
    for content in (plain, f"P5 33 24 {most}\n".encode() + values.astype(">u2").tobytes()):
        assert np.abs(seen(content)[..., 0].astype(int) - 255 * values / most).max() <= 1


def test_values_of_unknown_range_are_refused() -> None:
    floats, long = Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70000)
    for content in (saved(floats, "TIFF"), saved(long, "TIFF"), saved(Image.new("I", (4, 4), -1), "TIFF")):
        with pytest.raises(Unreadable, match="has no fixed range, convert to 8 or 16 bits"):
            seen(content)


def test_transparent_parts_become_white_in_every_pixel_type() -> None:
    alpha = np.tile([0, 255], (4, 2)).astype(np.uint8)
    coloured = np.dstack([np.full((4, 4, 3), (10, 60, 200), dtype=np.uint8), alpha])
    wanted = np.where(alpha[..., None] == 0, 255, coloured[..., :3])
    picture = Image.fromarray(coloured)
    palette = picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    index = np.array([[1, 0, 1, 0]] * 4, dtype=np.uint8)
    palette = Image.fromarray(index).convert("P")
    palette.putpalette([10, 60, 200, 7, 7, 7])
    files = [
        saved(picture, "PNG"), saved(picture, "WEBP", lossless=True, exact=True), saved(picture, "TIFF"), saved(picture, "TGA"),
        saved(palette, "PNG", transparency=1), saved(palette, "PNG", transparency=bytes([255, 0])), saved(palette, "GIF", transparency=1),
    ]  # fmt: skip
    for content in files:
        assert (seen(content) == wanted).all()
    for mode in ("RGBa", "PA"):
        kept = (
            picture.convert(mode)
            if mode == "RGBa"
            else Image.merge("LA", [palette.convert("L"), Image.fromarray(alpha)])
        )
        assert np.asarray(Decoded(kept, 1).rgb())[0, 0].tolist() == [255, 255, 255]
    grey = Image.merge("LA", [Image.new("L", (4, 4), 50), Image.fromarray(alpha)])
    for image in (grey, grey.convert("La")):
        assert np.asarray(Decoded(image, 1).rgb())[0, :2].tolist() == [[255] * 3, [50] * 3]


def test_other_colour_spaces() -> None:
    def colour(mode: str, value: tuple[int, ...], kind: str) -> np.ndarray:
        return seen(saved(Image.frombytes(mode, (4, 4), bytes(value) * 16), kind))[0, 0].astype(int)

    assert np.abs(colour("CMYK", (0, 255, 255, 0), "TIFF") - [255, 0, 0]).max() <= 1
    assert np.abs(colour("LAB", (255, 0, 0), "TIFF") - [255, 255, 255]).max() <= 1
    assert (
        np.abs(colour("LAB", (138, 81, 70), "TIFF") - [255, 0, 0]).max() <= 6
    )  # sRGB's red is (54.3, 80.8, 69.9) under D50, here in whole numbers
    assert np.abs(colour("YCbCr", (76, 85, 255), "JPEG") - [254, 0, 0]).max() <= 4
    assert np.asarray(Decoded(Image.new("HSV", (2, 2), (85, 255, 255)), 1).rgb())[0, 0].tolist() == [0, 255, 0]
    assert colour("1", (255,), "PNG").tolist() == [255] * 3


# ---------------------------------------------------------------------- files that no decoder was made for


def of_every_kind() -> list[tuple[str, bytes]]:
    """A small file of every format that Pillow writes, in several pixel types."""
    files = []
    Image.init()
    square = Image.fromarray(noise(16, 16))
    for kind in sorted(Image.SAVE):
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"):
            image = (
                Image.fromarray(np.full((16, 16), 4000, dtype=np.uint16)) if mode == "I;16" else square.convert(mode)
            )
            try:
                files.append((f"{kind} {mode}", saved(image, kind)))
            except (OSError, ValueError, KeyError):  # this format has no such pixels
                pass
    files += [
        (f"TIFF {name}", saved(square, "TIFF", compression=name))
        for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    ]
    return files + [
        (f"DDS {name}", saved(square.convert("RGBA"), "DDS", pixel_format=name)) for name in ("DXT1", "DXT3", "DXT5")
    ]


@pytest.fixture(scope="module")
def files() -> list[tuple[str, bytes]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return of_every_kind()


def test_whole_files_of_the_formats_are_read(files: list[tuple[str, bytes]]) -> None:
    read = set()
    for name, content in files:
        kind = name.split()[0]
        try:
            assert seen(content).shape == (16, 16, 3) or kind in ("ICNS", "ICO")
            read.add(kind)
        except Unreadable as error:
            assert kind not in FORMATS and "none of the formats that are read" in str(error), (name, error)
    assert read >= set(FORMATS) - {"SUN", "PSD"}  # which Pillow does not write
    assert not read & {"EPS", "PDF", "WMF"}


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_pictures_or_unreadable_and_nothing_else(files: list[tuple[str, bytes]]) -> None:
    rng = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    for name, content in files:
        for attempt in range(6):
            damaged = bytearray(content[: rng.integers(0, len(content)) if attempt % 2 else len(content)])
            for place in (
                rng.integers(0, max(1, min(len(damaged), (64, 10**9)[attempt // 2 % 2])), 3) if damaged else ()
            ):
                damaged[place] = rng.integers(0, 256)
            try:
                decoded = decode(io.BytesIO(bytes(damaged)))
                picture = decoded.rgb()
                assert picture.mode == "RGB" and decoded.grey().shape == decoded.stored.size[::-1], name
                outcomes[True] += 1
            except Unreadable as error:
                assert str(error) and "\n" not in str(error)
                outcomes[False] += 1
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RecursionError("deep"),
        KeyError("x"),
        struct.error("short"),
        NotImplementedError(),
        ZeroDivisionError(),
    ],
)
def test_whatever_a_decoder_raises_is_that_pictures_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.new("RGB", (4, 4)), "PNG"))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(
        DataError, match=f"a.png: the picture of example 3 cannot be read, replace it .{type(error).__name__}"
    ) as caught:
        read_picture(path, None, "3")
    assert caught.value.example_id == "3"


def test_a_picture_of_a_thousand_million_pixels_is_refused() -> None:
    header = (
        b"\x89PNG\r\n\x1a\n"
        + b"\0\0\0\rIHDR"
        + struct.pack(">IIBBBBB", 32000, 32000, 8, 2, 0, 0, 0)
        + b"\xfa\x0a\x88\x50"
    )
    with pytest.raises(Unreadable):
        seen(header)
    bomb = b"P6 32000 32000 255\n" + b"\0" * 100
    with pytest.raises(
        Unreadable, match="^it has more than the 100,000,000 pixels that --data_options max_image_pixels allows$"
    ):
        seen(bomb)


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    yield limit_pixels
    limit_pixels(MOST_PIXELS)


def test_a_picture_of_as_many_pixels_as_are_allowed_is_read(limit: Callable[[int], None]) -> None:
    limit(16 * 15)
    assert seen(saved(Image.new("RGB", (16, 15)), "PNG")).shape == (15, 16, 3)
    for size in ((16, 16), (241, 1)):
        with pytest.raises(
            Unreadable, match="it has more than the 240 pixels that --data_options max_image_pixels allows"
        ):
            seen(saved(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("program", [train, evaluate, curriculum], ids=["train", "evaluate", "curriculum"])
def test_every_program_that_reads_pictures_has_the_limit(
    program: Any, limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr("activeo3.engine.start", stop)
    monkeypatch.setattr("activeo3.engine.join", stop)
    monkeypatch.setattr("activeo3.curriculum.writable_folder", stop)
    options = {"max_image_pixels": 2**21}
    with pytest.raises(InterruptedError):
        if program is curriculum:
            curriculum.main(["--curriculum", "order.json", "--data_options", f"max_image_pixels={2**21}"])
        elif program is train:
            train.main(TrainConfig(**options))
        else:
            evaluate.main(EvalConfig(checkpoint=("data/tiny",), output_dir="eval", **options))
    assert Image.MAX_IMAGE_PIXELS == 2**20
    with pytest.raises(ConfigError, match="--data_options max_image_pixels is 1000; it must be at least 1048576"):
        TrainConfig(max_image_pixels=1000)


def test_damaged_pictures_and_bombs_in_processes_of_their_own() -> None:
    """The long form is tests/attack/pictures.py; here a few hundred, of which the first are bombs."""
    assert attack.attack(400, seed=0) == []
    known = {name.split()[0] for name, _ in attack.whole_files()}
    assert known >= set(FORMATS) - {"SUN", "PSD"} | {"EPS", "PDF"}


def test_the_attack_notices_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    square = saved(Image.new("RGB", (4, 4)), "PNG")
    assert attack.fault(square) == ""
    for raised, said in (
        (KeyError("x"), "KeyError: 'x'"),
        (DataError("b.jpg: bad", "7"), "the sentence b.jpg: bad"),
        (SystemExit(3), "SystemExit: 3"),
    ):
        monkeypatch.setattr(attack, "decode_picture", lambda *_, raised=raised: (_ for _ in ()).throw(raised))
        assert attack.fault(square) == said


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program; Ghostscript would run it for whoever names a file a.jpg."""
    path, mark = tmp_path / "a.jpg", tmp_path / "it-ran"
    path.write_bytes(saved(Image.new("RGB", (4, 4)), "EPS"))
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(
        DataError, match="a.jpg: the picture cannot be read, replace it .it is in none of the formats that are read"
    ):
        read_picture(path)
    assert not mark.exists()
    with pytest.raises((OSError, subprocess.CalledProcessError)):
        Image.open(path).load()
    assert mark.exists()  # so it would have run


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # a read of it would wait for ever
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "null.png").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "null"):
        with pytest.raises(DataError, match=f"{name}.png: the picture of example 1 cannot be read, replace it"):
            read_picture(tmp_path / f"{name}.png", None, "1")
    with pytest.raises(DataError, match="c.png: the picture of example 1 is missing, add it"):
        read_picture(tmp_path / "c.png", None, "1")
    with pytest.raises(DataError, match="cannot be read, replace it .*File name too long"):
        read_picture(tmp_path / f"{'c' * 300}.png", None, "1")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    Image.new("RGB", (5, 4), "red").save(tmp_path / "b.png")
    assert read_picture(tmp_path / "link.png").getpixel((0, 0)) == (255, 0, 0)


def test_pillow_opens_files_in_one_room() -> None:
    calls = {
        path.stem: re.findall(r"with Image\.open\((.+)\) as", path.read_text())
        for path in Path(data_images.__file__).parent.glob("*.py")
    }
    drawn = [call for room, found in calls.items() if room != "data_images" for call in found]
    assert calls["data_images"] and all('formats=["JPEG"]' in call for call in drawn)  # pictures of our own
