"""Pages with the text on them: your own to train on, and Fox's to evaluate on (arXiv 2405.14295).

A json file is a list of pages in the form that the reference and Fox use, or shorter:

    [{"image": "en_1.png", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "the text"}]},
     {"image": "a/2.png", "text": "the text"}]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, NamedTuple

from activeo3.data_io import DataError, LeftOut, Source, inside, needed, read_json, read_picture, shortened, within
from activeo3.data_layouts import files_of, folder_of
from activeo3.data_vqa import ONE_SPLIT
from activeo3.types import Example

FOX = {"focus_benchmark_test": "focus_benchmark_test", "jsons/ocr": "images/ocr", "eval/jsons/ocr": "eval/images/ocr"}
"""Where Fox's lists lie, and the folders of its pages: as it is published, and as Perception-R1 has it."""


class Page(NamedTuple):
    """A picture of a page and its text."""

    picture: Path
    text: str


@dataclass(frozen=True, eq=False)
class PageDataset:
    """Pages in the order of the file; an example's field ``text`` is what stands on it."""

    name: str
    split: str
    pages: tuple[Page, ...]
    dropped: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(page.picture for page in self.pages)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture is missing or cannot be read."""
        index = within(index, len(self))
        page = self.pages[index]
        example_id = f"{self.name}:{page.picture.stem}"
        image = read_picture(page.picture, None, example_id)
        return Example(example_id, image, "page", image_id=index + 1, text=page.text)


def open_pageocr(source: Source) -> PageDataset:
    """``pageocr/<split>.json`` with the pictures in ``pageocr/images``."""
    folder = source.folder("pageocr", "pageocr")
    return _open("pageocr", source.split, folder / f"{source.split}.json", folder / "images")


def open_fox_en(source: Source) -> PageDataset:
    """Fox's 112 English pages."""
    return _open_fox("fox_en", source, "en")


def open_fox_cn(source: Source) -> PageDataset:
    """Fox's Chinese pages."""
    return _open_fox("fox_cn", source, "cn")


def _open_fox(name: str, source: Source, language: str) -> PageDataset:
    source.one_of(name, ONE_SPLIT)
    root = source.folder(name, "")
    path = files_of(root, [f"{folder}/{{language}}_page_ocr.json" for folder in FOX], language=language).path
    return _open(
        name,
        "test",
        path,
        folder_of(root, [f"{folder}/{{language}}_pdf_png" for folder in FOX.values()], language=language),
    )


def _open(name: str, split: str, path: Path, images: Path) -> PageDataset:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: the file needs a list of pages, see data/README.md for their form")
    pages, left_out = [], LeftOut()
    for number, row in enumerate(rows):
        with left_out:
            pages.append(_page(path, f"page {number}", row, images))
    if not pages:
        raise left_out.nothing(f"{path}: the file holds no page, see data/README.md for their form")
    return PageDataset(name, split, tuple(pages), tuple(left_out))


def _page(path: Path, what: str, row: Mapping[str, Any], images: Path) -> Page:
    picture = needed(path, what, row, "image")
    if not isinstance(picture, str) or not picture:
        raise DataError(f"{path}: {what} has the image {shortened(picture)}, give a file name")
    text = row.get("text")
    if "text" not in row:
        turns = needed(path, what, row, "conversations")
        said = [turn.get("value") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
        text = said[1] if len(said) > 1 else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path}: {what} has no text, add it or remove the entry")
    return Page(images / inside(path, what, picture), text)
