"""How well the text of a page was read: edit distance for the reward, and the benchmark's other numbers.

The edit distance is rapidfuzz's: a page has thousands of characters, a reward is needed for every answer, and
its one wheel of 3 MB without dependencies takes a millisecond where rows of numpy take a quarter of a second.
BLEU, METEOR and the word sets are nltk's, and the words of a Chinese text jieba's, as in Fox's own script
(``eval_ocr_test.py``), which Perception-R1's evaluation repeats. Only benchmarks need the two packages, so they
are an extra: ``pip install "activeo3[ocr]"``.

A benchmark compares texts as they are. The reward, and DocVQA's likeness (task_zoom_qa.py), compare them ``squeezed``,
as Perception-R1's reward does: there a line break and a space are the same.

Deviations from Fox's script:
  1. METEOR goes without its stage of synonyms: WordNet is a download, and a synonym is a misreading.
  2. BLEU has as many orders, up to four, as the true text has words: with four, a single word that is right
     would score 0. No common n-gram is 0, not the 1e-155 that nltk makes of it.
  3. A page that was read as nothing scores 0 in every share and 1 in edit distance; there, the script fails.
"""

import logging
import re
from types import ModuleType
from typing import Any, Sequence

from rapidfuzz.distance import Levenshtein

from activeo3.data_io import DataError

COLUMNS = ("edit_distance", "precision", "recall", "F1", "BLEU", "METEOR")
"""The numbers of one page, each in 0-1."""


def squeezed(text: str) -> str:
    """The text with every run of white space as one space, and none around it."""
    return " ".join(text.split())


def edit_distance(read: str, truth: str) -> float:
    """Levenshtein distance over the longer text's length, 0 (equal) to 1; two empty texts are equal.

    >>> edit_distance("kitten", "sitting")
    0.42857142857142855
    """
    return Levenshtein.normalized_distance(squeezed(read), squeezed(truth))


def text_similarity(read: str, truth: str) -> float:
    """The reward of reading: 1 - edit distance, in [0, 1]."""
    return 1.0 - edit_distance(read, truth)


class _NoSynonyms:
    """Stands in for WordNet (deviation 1)."""

    def synsets(self, word: str) -> Sequence[Any]:
        return ()


def need_packages(what: str) -> ModuleType:
    """The package jieba. Raises DataError if it or nltk is not there; ``what`` needs them."""
    try:
        import jieba
        import nltk  # noqa: F401
    except ImportError as error:
        raise DataError(
            f'{what} needs the package {error.name} for words, BLEU and METEOR: pip install "activeo3[ocr]"'
        ) from None
    jieba.setLogLevel(logging.WARNING)  # else it prints where its dictionary is
    return jieba


_CHINESE = re.compile(r"[\u4e00-\u9fa5]")


def page_metrics(read: str, truth: str) -> dict[str, float]:
    """COLUMNS of one page: edit distance of characters, set precision, recall and F1 of words, BLEU, METEOR.

    If either text has a Chinese character, the words of both are those that jieba finds, white space among them;
    else words are what stands between white space. Raises DataError without nltk or jieba.
    """
    jieba = need_packages("scoring a page")
    from nltk.metrics import scores
    from nltk.translate.bleu_score import sentence_bleu
    from nltk.translate.meteor_score import single_meteor_score

    words, true = (jieba.lcut(text) if _CHINESE.search(read + truth) else text.split() for text in (read, truth))
    # nltk returns None for a share of nothing, and warns where BLEU has no common n-gram.
    sets = [f(set(true), set(words)) or 0.0 for f in (scores.precision, scores.recall, scores.f_measure)]
    orders = min(4, len(true)) or 1
    common = orders <= len(words) and bool(_grams(words, orders) & _grams(true, orders))
    bleu = sentence_bleu([true], words, weights=(1 / orders,) * orders) if common else 0.0
    meteor = single_meteor_score(true, words, wordnet=_NoSynonyms()) if words and true else 0.0
    if not words and not true:
        sets, bleu, meteor = [1.0] * 3, 1.0, 1.0
    distance = Levenshtein.normalized_distance(read, truth)
    return dict(zip(COLUMNS, map(float, (distance, *sets, bleu, meteor)), strict=True))


def _grams(words: Sequence[str], order: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(order))))
