"""How well the text of a page was read: edit distance for the reward, and the benchmark's other numbers.

The edit distance is rapidfuzz's: a page has thousands of characters, a reward is needed for every answer, and
its one wheel of 3 MB without dependencies takes a millisecond where rows of numpy take a quarter of a second.
BLEU, METEOR and the word sets are nltk's, as in the reference's evaluation; only benchmarks need them, so nltk
is an extra: ``pip install "activeo3[ocr]"``.

Deviations from Perception-R1's evaluation (PageOCR and Fox):
  1. Runs of white space count as one space for every number; the reference squeezes them for its reward only.
  2. METEOR goes without its stage of synonyms: WordNet is a download, and a synonym is a misreading.
  3. BLEU has as many orders, up to four, as the true text has words: with four, a single word that is right
     would score 0.
  4. Words are what stands between white space; there is no splitting of Chinese text into words.
"""

from typing import Any, Sequence

from rapidfuzz.distance import Levenshtein

from activeo3.files import DataError

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
    """Stands in for WordNet (deviation 2)."""

    def synsets(self, word: str) -> Sequence[Any]:
        return ()


def need_nltk(what: str) -> None:
    """Raise DataError if nltk is not there; ``what`` needs it."""
    try:
        import nltk  # noqa: F401
    except ImportError:
        raise DataError(f'{what} needs the package nltk for BLEU and METEOR: pip install "activeo3[ocr]"') from None


def page_metrics(read: str, truth: str) -> dict[str, float]:
    """COLUMNS of one page: edit distance of characters, set precision, recall and F1 of words, BLEU, METEOR.

    Raises DataError without nltk.
    """
    need_nltk("scoring a page")
    from nltk.metrics import scores
    from nltk.translate.bleu_score import sentence_bleu
    from nltk.translate.meteor_score import single_meteor_score

    said, wanted = squeezed(read).split(), squeezed(truth).split()
    # nltk says None where a share of nothing is asked for, and warns where BLEU has no common n-gram.
    sets = [f(set(wanted), set(said)) or 0.0 for f in (scores.precision, scores.recall, scores.f_measure)]
    orders = min(4, len(wanted)) or 1
    common = orders <= len(said) and bool(_grams(said, orders) & _grams(wanted, orders))
    bleu = sentence_bleu([wanted], said, weights=(1 / orders,) * orders) if common else 0.0
    meteor = single_meteor_score(wanted, said, wordnet=_NoSynonyms()) if said and wanted else 0.0
    if not said and not wanted:
        sets, bleu, meteor = [1.0] * 3, 1.0, 1.0
    return dict(zip(COLUMNS, map(float, (edit_distance(read, truth), *sets, bleu, meteor)), strict=True))


def _grams(words: Sequence[str], order: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(order))))
