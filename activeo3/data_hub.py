"""Data sets of the ``datasets`` library: ``--data hub:NAME``, a folder or an id of the Hugging Face hub.

    hub:my_set          a folder of save_to_disk, of parquet files, or of pictures with a metadata.jsonl
    hub:owner/name      a data set of the hub, in the configuration ``--data_options subset``

A row is a question, as in data_own.py, or a picture with lists of boxes and of their categories, which becomes a
question for each category. Which column holds what is known by its usual name, or said by ``--data_options``:
``data_columns=image=photo,query=caption,boxes=objects.bbox``. A name with a dot is a part of a column. No code of a
data set is run: the library refuses scripts since its version 4.
"""

import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from PIL import Image

from activeo3 import hub
from activeo3.data_io import (
    DataError,
    LeftOut,
    as_words,
    decode_picture,
    did_you_mean_path,
    needed,
    read_picture,
    shortened,
)
from activeo3.data_own import Item, Table, row_questions
from activeo3.data_set import SPELLINGS, Dataset, Source, listed, register

USUAL: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "picture", "photo", "file_name"),
    "query": ("query", "question", "phrase", "caption", "prompt"),
    "boxes": ("boxes", "bboxes", "bbox", "objects.boxes", "objects.bboxes", "objects.bbox"),
    "category": ("objects.category", "objects.categories", "objects.label", "objects.labels", "category", "labels"),
    "answer": ("answer",),
    "options": ("options", "choices"),
    "count": ("count",),
    "text": ("text", "ground_truth_text"),
    "id": (),
}
"""What a row may hold, and the columns that usually hold it, most common first."""


class Opened(NamedTuple):
    """One split: ``rows`` of the library, and the column of each part of a question."""

    path: Path
    rows: Any
    columns: Mapping[str, str]


@register("hub", {}, "the datasets library, see docs/own-data.md", any_split=True)
def open_hub(source: Source) -> Dataset[Item]:
    """The questions of a folder or of a data set of the hub, which is the data root."""
    opened = _opened(source)
    left_out = LeftOut()
    pictures, column = _pictures(opened), opened.columns["image"].partition(".")[0]

    def read(row: int, example_id: str) -> Image.Image:
        return _picture(opened.path, pictures[row][column], row, example_id)

    def name(row: int) -> str:
        """Rows that ask about one picture must stay together: its file, or what is in it."""
        stored = pictures[row][column]
        content = stored.get("bytes") if isinstance(stored, dict) else None
        return hashlib.sha256(content).hexdigest() if content else str(stored)

    return row_questions(source, Table(opened.path, read, names=name), _questions(opened, left_out), left_out)


# ---------------------------------------------------------------------- the library


def _library(source: Source) -> ModuleType:
    """The package. Raises DataError if it is not installed, or so old that it would run scripts."""
    try:
        import datasets
    except ImportError:
        raise DataError(f'{source.name} needs the package datasets: pip install "activeo3[hub]"') from None
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise DataError(f'{source.name} needs datasets 4 or newer, which runs no scripts: pip install "activeo3[hub]"')
    if os.environ.get("RANK", "0") != "0":  # one bar is enough
        datasets.disable_progress_bars()
    return datasets


def _opened(source: Source) -> Opened:
    """The split that is asked for. Raises DataError."""
    if not source.root:
        raise DataError("hub: name a folder or a data set of the hub behind it, as --data hub:owner/name")
    path, library = Path(source.root).expanduser(), _library(source)
    if not path.exists() and (near := did_you_mean_path(path)):
        raise DataError(f"{source.root}: there is no such folder, {near}")
    if not path.exists() and (why := hub.why_not(source.root, "dataset")):
        raise DataError(f"{source.root}: {why}")
    library.config.HF_HUB_OFFLINE = library.config.HF_HUB_OFFLINE or hub.is_offline()
    try:
        rows = _split_of(source, library, path)
    except DataError:
        raise
    except Exception as error:  # the library's own, pyarrow's, the network's
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{source.root}: the data set cannot be opened ({reason})") from None
    return Opened(path, rows, _columns(source, rows))


def _split_of(source: Source, library: ModuleType, path: Path) -> Any:
    """The rows of the split. Raises DataError if it has none, and whatever the library raises."""
    if (path / "state.json").is_file():  # of save_to_disk, without splits
        return _named(source, {"train": library.load_from_disk(str(path))})
    if (path / "dataset_dict.json").is_file():
        return _named(source, library.load_from_disk(str(path)))
    name = str(path) if path.exists() else source.root
    builder = library.load_dataset_builder(name, source.subset or None)
    splits = {str(split): str(split) for split in (builder.config.data_files or builder.info.splits or ())}
    return library.load_dataset(name, source.subset or None, split=_named(source, splits))


def _named(source: Source, splits: Mapping[str, Any]) -> Any:
    """The value of the split that is asked for, in any spelling. Raises DataError."""
    for spelled in SPELLINGS.get(source.split, (source.split,)):
        if spelled in splits:
            return splits[spelled]
    raise source.no_split(Path(str(source.root)), splits, f"split '{source.split}'")


# ---------------------------------------------------------------------- columns


def _columns(source: Source, rows: Any) -> dict[str, str]:
    """Part of a question -> its column, as --data_options columns names it or by its usual name. Raises DataError."""
    known = _paths(rows.features)
    columns = {part: next((name for name in usual if name in known), "") for part, usual in USUAL.items()}
    columns["image"] = next((name for name, kind in known.items() if type(kind).__name__ == "Image"), columns["image"])
    for word in filter(None, source.data_columns.split(",")):
        part, _, name = word.partition("=")
        if part not in USUAL or name not in known:
            wrong = f"column '{name}', it has {listed(known)}" if part in USUAL else f"part '{part}' of a question"
            raise DataError(f"{source.root}: --data_options data_columns={source.data_columns}: there is no {wrong}")
        columns[part] = name
    if not columns["image"] or not any(columns[part] for part in ("query", "category", "text")):
        lacking = "image" if not columns["image"] else "query, category or text"
        raise DataError(
            f"{source.root}: no column is known to hold its {lacking}, it has {listed(known)}: "
            f"name it, as --data_options data_columns={lacking.partition(',')[0]}=COLUMN"
        )
    return {part: name for part, name in columns.items() if name}


def _paths(features: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Every column, and every part of one as ``objects.bbox``, with its type; lists stand for what they hold."""
    found: dict[str, Any] = {}
    for name, kind in features.items():
        while hasattr(kind, "feature") or isinstance(kind, list):
            kind = kind[0] if isinstance(kind, list) else kind.feature
        found[before + name] = kind
        found |= _paths(kind, f"{before}{name}.") if isinstance(kind, dict) else {}
    return found


def _value(row: Mapping[str, Any], column: str) -> Any:
    """What a row holds in a column or a part of one; of a list of objects, the list of their parts."""
    value: Any = row
    for part in column.split("."):
        value = [one[part] for one in value] if isinstance(value, list) else (value or {}).get(part)
    return value


# ---------------------------------------------------------------------- rows


def _questions(opened: Opened, left_out: LeftOut) -> Iterator[tuple[str, int, Any]]:
    """(what a sentence calls it, row, content as in data_own.py) of every question; pictures are not read."""
    columns = dict(opened.columns)
    image = columns.pop("image").partition(".")[0]
    names = getattr(_paths(opened.rows.features).get(columns.get("category", "")), "names", None)
    for number, row in enumerate(opened.rows.remove_columns([image])):
        content = {part: _value(row, column) for part, column in columns.items()}
        if columns.get("boxes", "").rpartition(".")[2] == "bbox":
            content["bbox"] = content.pop("boxes")
        with left_out:
            for asked in _by_category(opened.path, f"row {number}", content, names):
                yield f"row {number}", number, asked


def _by_category(path: Path, what: str, content: dict[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """A row as it is, or one for each category of its boxes. Raises DataError."""
    categories = content.pop("category", None)
    if "query" in content or categories is None:
        return [content]
    key = "bbox" if "bbox" in content else "boxes"
    boxes = needed(path, what, content, key)
    if not isinstance(categories, list) or not isinstance(boxes, list) or len(boxes) != len(categories):
        raise DataError(f"{path}: {what} has {shortened(categories)} as categories, give one for each of its boxes")
    of_query: dict[str, list[Any]] = {}
    for category, box in zip(categories, boxes):
        of_query.setdefault(_word(path, what, category, names), []).append(box)
    return [content | {"query": query, key: of_one} for query, of_one in of_query.items()]


def _word(path: Path, what: str, category: Any, names: Sequence[str] | None) -> str:
    """The words for a category: its own, or those that the library has for its number. Raises DataError."""
    if isinstance(category, int) and names and 0 <= category < len(names):
        category = names[category]
    if not isinstance(category, str) or not category.strip():
        raise DataError(f"{path}: {what} has the category {shortened(category)}, which has no name")
    return as_words(category)


# ---------------------------------------------------------------------- pictures


def _pictures(opened: Opened) -> Any:
    """The column of pictures alone, as files or bytes that nothing has decoded."""
    import datasets

    name = opened.columns["image"].partition(".")[0]
    alone = opened.rows.select_columns([name])
    kind = alone.features[name]
    return alone.cast_column(name, datasets.Image(decode=False)) if isinstance(kind, datasets.Image) else alone


def _picture(path: Path, stored: Any, row: int, example_id: str) -> Image.Image:
    """The picture of a row. Raises DataError if it cannot be used, or lies outside of the data set and the hub's
    cache."""
    import datasets

    if isinstance(stored, dict) and stored.get("bytes"):
        return decode_picture(stored["bytes"], f"{path}, row {row}", example_id)
    name = stored.get("path") if isinstance(stored, dict) else stored
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}, row {row}: there is no picture of example {example_id}, add it", example_id)
    file = (path / name).resolve()
    if not any(file.is_relative_to(Path(home).resolve()) for home in (path, datasets.config.HF_CACHE_HOME)):
        raise DataError(f"{path}, row {row}: {shortened(name)} lies outside of the data set, correct it", example_id)
    return read_picture(file, None, example_id)
