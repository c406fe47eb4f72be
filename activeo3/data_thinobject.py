"""ThinObject-5K: pictures with the mask of one thin, intricate object each, for interactive segmentation.

The set of "Deep Interactive Thin Object Selection" (Liew et al., WACV 2021). Two layouts are read, the first that is
there:

    ThinObject5K/list/train.txt, images/, masks/                            the authors'
    thin_object_detection/ThinObject5K/images_train/, masks_train/          SAM-HQ's, which has train and test
"""

from pathlib import Path, PurePosixPath

import numpy as np

from activeo3.data_files import files_of
from activeo3.data_io import DataError, LeftOut, inside, read_grey, read_picture, read_text
from activeo3.data_set import Dataset, Source, register
from activeo3.geometry import as_boxes, mask_to_rle
from activeo3.types import Example

QUERY = "foreground object"
"""The set names no categories."""
HOMES = ("ThinObject5K", "thin_object_detection/ThinObject5K")
LISTS = tuple(f"{home}/list/{{split}}.txt" for home in HOMES)
FOLDERS = tuple(f"{home}/images_{{split}}/*.jpg" for home in reversed(HOMES))


@register(
    "thinobject5k",
    {"train": 4_748, "val": 500, "test": 500},
    "https://github.com/liewjunhao/thin-object-selection",
    answers="segment",
)
def open_thinobject5k(source: Source) -> Dataset:
    """The authors' list of a split, one file name a line, of an image or its mask; or all of SAM-HQ's folder of it."""
    found = files_of(source.folder(), (*LISTS, *FOLDERS), split=source.split)
    left_out = LeftOut()
    if found.pattern in FOLDERS:
        images, stems = found.path.parent, tuple(path.stem for path in found.paths)
        masks = images.with_name(f"masks_{source.split}")
    else:
        home, stems = found.path.parent.parent, _listed(found.path, left_out)
        images, masks = home / "images", home / "masks"

    def read(stem: str, index: int) -> Example:
        mask = read_mask(masks / f"{stem}.png", stem)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return Example(
            id=stem,
            image=read_picture(images / f"{stem}.jpg", mask.shape[::-1], stem),
            query=QUERY,
            boxes_px=as_boxes([(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]),
            image_id=index + 1,
            areas=np.array([float(mask.sum())]),
            masks=lambda: [mask_to_rle(mask)],
        )

    return source.dataset(stems, read, left_out, [images / f"{stem}.jpg" for stem in stems], found.path)


def _listed(path: Path, left_out: LeftOut) -> tuple[str, ...]:
    """The names in a list, without their endings; one that is named again is left out."""
    stems: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        with left_out:
            if line.strip():
                stem = PurePosixPath(inside(path, f"line {number}", line.strip())).stem
                if stems.setdefault(stem, number) != number:
                    raise DataError(
                        f"{path}: line {number} names '{stem}' again, as line {stems[stem]} does, remove one"
                    )
    return tuple(stems)


def read_mask(path: Path, example_id: str) -> np.ndarray:
    """A mask file as bool (H, W): True where it is brighter than half. Raises DataError."""
    what = f"{path}: the mask of example {example_id}"
    mask = read_grey(path, what, example_id) > 127
    if not mask.any():
        raise DataError(f"{what} is empty, correct it", example_id)
    return mask
