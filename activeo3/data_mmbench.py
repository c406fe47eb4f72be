"""MMBench and CCBench in every file in which they have been published (arXiv 2307.06281): choices among lettered
options.

    mmbench           dev, English, version 1.1        mmbench_v10           version 1.0
    mmbench_cn        the same in Chinese              mmbench_cn_v10
    mmbench_test      test, without answers            mmbench_test_v10
    mmbench_test_cn                                    mmbench_test_cn_v10
    ccbench           Chinese culture

A file holds a question once for each rotation of its options. The ``index`` of a copy is that of the question plus a
million, two millions, and so on. Copies share a picture: VLMEvalKit's files have it once, and its index in the other
rows; the ``legacy`` ones and the hub's tables repeat it. Rows may be in any order, and copies may be missing. Here the
rows of a question follow each other, so that ``--limit`` takes whole questions.

A question of a test file has no answer but all ``columns`` of its row but the picture, for the file that is submitted
(eval_vqa.py).

Deviation from VLMEvalKit, which reads the files with pandas: an option "None" or "NA" is an option here, and an empty
cell there.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Mapping, Sequence

from activeo3.data_files import missing
from activeo3.data_io import LeftOut, shortened
from activeo3.data_set import ONE_SPLIT, Dataset, Source, register
from activeo3.data_vqa import Asked, lettered, questions, questions_of
from activeo3.types import VQA

ORIGIN = "https://github.com/open-compass/MMBench"
COPY = 1_000_000
"""What separates the index of a question and of its copies."""
FOLDERS = ("MMBench", "mmbench", "mmbench_cn")
FILES: dict[str, tuple[str, ...]] = {
    "v11": ("{folder}/MMBench_{PART}_{language}_V11.tsv", "{folder}/MMBench_{PART}_{language}_V11_legacy.tsv"),
    "v10": (
        "{folder}/MMBench_{PART}_{language}.tsv", "{folder}/MMBench_{PART}_{language}_legacy.tsv",  # the authors'
        "{folder}/mmbench_{part}{cn}_20[0-9][0-9][0-9][0-9][0-9][0-9].tsv",  # theirs of 2023
        # the hub's: lmms-lab/MMBench, MMBench_EN, ...
        "MMBench/{hub}/{part}-*.parquet", "MMBench_{language}/data/{part}-*.parquet",
    ),
    "cc": ("{folder}/CCBench.tsv", "{folder}/CCBench_legacy.tsv", "MMBench/cc/test-*.parquet"),
}  # fmt: skip
"""Files by version, the best first; the first that is there is read."""
NAMES: dict[str, tuple[str, str, str]] = {
    **{
        f"mmbench{'_test' * (part == 'test')}{'_cn' * (language == 'CN')}{'_v10' * (version == 'v10')}": (
            part,
            language,
            version,
        )
        for version in ("v11", "v10")
        for part in ("dev", "test")
        for language in ("EN", "CN")
    },
    "ccbench": ("dev", "CN", "cc"),
}
"""Part, language and version of every set."""
ROWS = {
    "mmbench": 4_876,
    "mmbench_v10": 4_329,
    "mmbench_cn_v10": 4_329,
    "mmbench_test_v10": 6_666,
    "mmbench_test_cn_v10": 6_666,
}
"""Rows of the files, where they are known."""


def open_mmbench(source: Source) -> Dataset:
    """One of NAMES, the rows of a question together. Raises DataError."""
    paths, left_out = _files(source.name, source.folder()), LeftOut()
    asked = questions_of(paths, _question, left_out)
    unknown = [one for one in asked if not one.vqa.answers]
    if 0 < len(unknown) < len(asked):  # a row of a dev file without its answer; a test file has none at all
        left_out += [
            f"{one.picture[0].path}: row {one.picture[1]} has no answer, download the file again" for one in unknown
        ]
        asked = [one for one in asked if one.vqa.answers]
    return questions(source, _side_by_side(_with_rotations(asked)), left_out, paths[0])


for _name in NAMES:
    register(_name, {"test": ROWS.get(_name, 0)}, ORIGIN, answers="words", aliases=ONE_SPLIT)(open_mmbench)


def _files(name: str, root: Path) -> list[Path]:
    """The files of a set, of the first pattern that fits any. Raises DataError if none does."""
    part, language, version = NAMES[name]
    words = {
        "part": part,
        "PART": part.upper(),
        "language": language,
        "hub": language.lower(),
        "cn": "_cn" * (language == "CN"),
    }
    patterns = [file.format(folder=folder, **words) for file in FILES[version] for folder in FOLDERS]
    paths = next((found for pattern in patterns if (found := sorted(root.glob(pattern)))), [])
    if not paths:
        raise missing(root, [file.format(folder=FOLDERS[0], **words) for file in FILES[version]])
    return paths


def _question(row: Mapping[str, str]) -> VQA:
    """The question of a row. Raises ValueError or KeyError if it is no question with lettered options."""
    # The hub's tables were written by pandas: what is empty is the text "nan".
    row = {column: "" if text == "nan" else text for column, text in row.items()}
    if not row["index"].isdigit():
        raise ValueError(f"has the index {shortened(row['index'])}, no whole number")
    group = row.get("g_index") or str(int(row["index"]) % COPY)
    ability = row.get("l2-category") or row.get("L2-category", "")
    vqa = replace(lettered(row), hint=row.get("hint", ""), group=group, ability=ability)
    return vqa if vqa.answers else replace(vqa, columns=row)


def _index(one: Asked) -> str:
    """The index of a question's row."""
    table, row = one.picture
    return table.rows[row]["index"]


def _side_by_side(asked: Sequence[Asked]) -> list[Asked]:
    """Rows with those of one question together, the first one first; questions as they come in the file."""
    places: dict[str, int] = {}
    for one in asked:
        places.setdefault(one.vqa.group, len(places))
    return sorted(asked, key=lambda one: (places[one.vqa.group], int(_index(one))))


def _with_rotations(asked: Sequence[Asked]) -> list[Asked]:
    """The questions with ``rotations``."""
    of_group = Counter(one.vqa.group for one in asked)
    unturned = {one.vqa.group for one in asked if one.vqa.group == _index(one)}
    counts = {group: of_group[group] if group in unturned else 0 for group in of_group}
    return [one._replace(vqa=replace(one.vqa, rotations=counts[one.vqa.group])) for one in asked]
