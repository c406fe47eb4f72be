"""Questions whose answer is "none": about categories that LVIS found to be absent from a picture.

LVIS is federated: each picture was checked for some categories only. Those found have boxes; those known to be absent
are listed (``neg_category_ids``), and of some that were found not every instance has a box
(``not_exhaustive_category_ids``). What a model invents costs nothing as long as it is only asked for what is there. So a
share of the questions, ``--data_options absent``, is about absent categories: LVISEval counts what is found there as false, and so do we.

1. They are about pictures and categories that are asked about anyway. A category without any box has no AP, so inventing
   it would cost nothing.
2. They are drawn from a seed, one after the other: a larger share has all questions of a smaller one.
3. ACTIVE-O3 does not say whether it asks them. In training there are none by default.
"""

from dataclasses import replace
from typing import Sequence

import numpy as np

from activeo3.data_annotations import Index, Question
from activeo3.data_coco import BoxDataset
from activeo3.data_io import Dataset


def with_absent(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with so many questions about absent categories that they are ``share`` of all.

    There are fewer if the file does not know so many, and none if it is not federated.
    """
    if not share or not isinstance(dataset, BoxDataset) or not dataset.rules.federated:
        return dataset
    index = dataset.index
    candidates = absent_pairs(index)
    wanted = round(share / (1 - share) * len(index.questions))
    order = np.random.default_rng(seed).permutation(len(candidates))[:wanted]
    together = [*index.questions, *(_nothing(*candidates[k], index) for k in order)]
    together.sort(key=lambda question: (question.image_id, question.category_id))
    return replace(dataset, index=index._replace(questions=tuple(together)))


def absent_pairs(index: Index) -> Sequence[tuple[int, int]]:
    """(image id, category id) that are known to be absent, of pictures and categories that are asked about."""
    asked = {question.category_id for question in index.questions}
    there = {(question.image_id, question.category_id) for question in index.questions}
    pictures = sorted({image_id for image_id, _ in there})
    pairs = [
        (image_id, category_id)
        for image_id in pictures
        for category_id in sorted(index.pictures[image_id].absent & asked)
    ]
    return [pair for pair in pairs if pair not in there]


def _nothing(image_id: int, category_id: int, index: Index) -> Question:
    """A question without boxes."""
    none = np.zeros(0)
    return Question(image_id, category_id, index.names[category_id], np.zeros((0, 4)), none, none.astype(bool))
