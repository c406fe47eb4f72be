"""ThinObject-5K: pictures with the mask of one thin, intricate object each, for interactive segmentation.

The set of "Deep Interactive Thin Object Selection" (Liew et al., WACV 2021). Two layouts are read, the first that is there:

    ThinObject5K/list/train.txt, images/, masks/                            the authors'
    thin_object_detection/ThinObject5K/images_train/, masks_train/          SAM-HQ's, which has train and test
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from activeo3.data_io import DataError, LeftOut, Source, inside, read_grey, read_picture, read_text, within
from activeo3.data_layouts import files_of
from activeo3.geometry import mask_to_rle
from activeo3.types import Example

SPLITS = ("train", "val", "test")
QUERY = "foreground object"
"""The set names no categories."""
HOMES = ("ThinObject5K", "thin_object_detection/ThinObject5K")
LISTS = tuple(f"{home}/list/{{split}}.txt" for home in HOMES)
FOLDERS = tuple(f"{home}/images_{{split}}/*.jpg" for home in reversed(HOMES))


@dataclass(frozen=True)
class MaskDataset:
    """Folders of pictures (jpg) and masks (png), and the names of a split's pictures.

    Fields of an example: ``masks``, called for a list of the one mask as COCO run-length encoding, and ``areas``, its pixels.
    """

    name: str
    split: str
    images: Path
    masks: Path
    stems: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.images / f"{stem}.jpg" for stem in self.stems)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if picture or mask cannot be used, or the mask is empty."""
        index = within(index, len(self))
        stem = self.stems[index]
        mask = read_mask(self.masks / f"{stem}.png", stem)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        return Example(
            id=stem,
            image=read_picture(self.images / f"{stem}.jpg", mask.shape[::-1], stem),
            query=QUERY,
            boxes_px=np.array([box], dtype=np.float64),
            image_id=index + 1,
            areas=np.array([float(mask.sum())]),
            masks=lambda: [mask_to_rle(mask)],
        )


def open_thinobject5k(source: Source) -> MaskDataset:
    """The authors' list of a split, one file name a line, of a picture or its mask; or all of SAM-HQ's folder of it."""
    root = source.folder("thinobject5k", "")
    split = source.one_of("thinobject5k", SPLITS)
    found = files_of(root, (*LISTS, *FOLDERS), split=split)
    if found.pattern in FOLDERS:
        images = found.path.parent
        masks = images.with_name(f"masks_{split}")
        return MaskDataset("thinobject5k", split, images, masks, tuple(path.stem for path in found.paths))
    left_out = LeftOut()
    stems = _listed(found.path, left_out)
    if not stems:
        raise left_out.nothing(f"{found.path}: the list of split '{split}' is empty, write it again")
    home = found.path.parent.parent
    return MaskDataset("thinobject5k", split, home / "images", home / "masks", stems, tuple(left_out))


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
