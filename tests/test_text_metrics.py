"""text_metrics.py: edit distance against the textbook's table, the benchmark's numbers against naive ones."""

import math
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3.data_io import DataError
from activeo3.text_metrics import COLUMNS, edit_distance, page_metrics, text_similarity

nltk = pytest.importorskip("nltk")
jieba = pytest.importorskip("jieba")


def textbook_distance(a: str, b: str) -> int:
    """Wagner and Fischer's table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            same = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(same, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


letters = st.text("ab cß漢\n", max_size=12)


@given(letters, letters)
def test_edit_distance_is_the_textbooks(read: str, truth: str) -> None:
    a, b = " ".join(read.split()), " ".join(truth.split())
    wanted = textbook_distance(a, b) / max(len(a), len(b), 1)
    assert edit_distance(read, truth) == pytest.approx(wanted)
    assert text_similarity(read, truth) == pytest.approx(max(0.0, 1 - wanted))  # the predecessor's formula


def test_white_space_does_not_count() -> None:
    assert edit_distance("a  b\n c ", "a b c") == 0.0
    assert text_similarity("", "") == 1.0 and text_similarity("", "a") == text_similarity("a", "") == 0.0


# ---------------------------------------------------------------------- the benchmark's numbers


def naive_bleu(said: list[str], wanted: list[str], orders: int) -> float:
    """Papineni et al.: clipped n-gram precision, geometric mean, brevity penalty."""
    precisions = []
    for n in range(1, orders + 1):
        grams = [tuple(said[k : k + n]) for k in range(len(said) - n + 1)]
        true = [tuple(wanted[k : k + n]) for k in range(len(wanted) - n + 1)]
        if not grams:
            return 0.0
        precisions.append(sum(min(grams.count(gram), true.count(gram)) for gram in set(grams)) / len(grams))
    if min(precisions) == 0:
        return 0.0
    penalty = 1.0 if len(said) > len(wanted) else math.exp(1 - len(wanted) / len(said))
    return penalty * math.exp(sum(map(math.log, precisions)) / orders)


words = st.lists(st.sampled_from(["the", "cat", "sat", "mat"]), max_size=9)


@given(words, words)
def test_words_and_bleu_are_the_naive_ones(said: list[str], wanted: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nltk warns where it returns 1e-150
        row = page_metrics(" ".join(said), "\n".join(wanted))
    assert tuple(row) == COLUMNS and all(0 <= value <= 1 for value in row.values())
    if not said and not wanted:
        assert (row["edit_distance"], row["F1"], row["BLEU"], row["METEOR"]) == (0, 1, 1, 1)
        return
    common = len(set(said) & set(wanted))
    precision = common / len(set(said)) if said else 0.0
    recall = common / len(set(wanted)) if wanted else 0.0
    assert (row["precision"], row["recall"]) == pytest.approx((precision, recall))
    assert row["F1"] == pytest.approx(2 * precision * recall / (precision + recall) if common else 0.0)
    assert row["BLEU"] == pytest.approx(naive_bleu(said, wanted, min(4, len(wanted)) or 1))


def test_meteor_by_hand() -> None:
    """Banerjee and Lavie: 10 P R / (R + 9 P), times 1 - 0.5 (chunks / matches)^3, in nltk's parameters."""
    assert page_metrics("one two three four", "one two three four")["METEOR"] == pytest.approx(1 - 0.5 / 4**3)
    swapped = page_metrics("three four one two", "one two three four")["METEOR"]  # two chunks of four words
    assert swapped == pytest.approx(1 - 0.5 * (2 / 4) ** 3)
    half = page_metrics("one two", "one two three four")["METEOR"]  # P = 1, R = 1/2, one chunk of two
    assert half == pytest.approx(10 * 0.5 / (0.5 + 9) * (1 - 0.5 * (1 / 2) ** 3))
    assert page_metrics("reading pages", "reads page")["METEOR"] > 0  # by their stems
    assert page_metrics("car", "automobile")["METEOR"] == 0  # a synonym is a misreading


def test_the_order_of_a_page_matters_to_bleu_and_not_to_sets() -> None:
    page, turned = "a b c d e f g h", "e f g h a b c d"
    row = page_metrics(turned, page)
    assert row["F1"] == 1.0 and 0 < row["BLEU"] < 1 and row["edit_distance"] > 0


CHINESE = "本文研究视觉语言模型如何学习看向哪里。\n实验表明，放大图片中的小物体可以提高准确率 12%。"
MISREAD = "本文研究视觉语言棋型如何学习看向哪里。 实验表明，放大图片的小物体可以提高准确率 1.2%。"


def by_foxs_script(read: str, truth: str) -> dict[str, float]:
    """Fox's eval_ocr_test.py, written again: the words of a Chinese text by jieba, sets by hand, texts as they are."""
    chinese = any("\u4e00" <= letter <= "\u9fa5" for letter in read + truth)
    said, wanted = (jieba.lcut(text) if chinese else text.split() for text in (read, truth))
    common = len(set(said) & set(wanted))
    precision, recall = common / len(set(said)), common / len(set(wanted))
    return {
        "edit_distance": textbook_distance(read, truth) / max(len(read), len(truth)),
        "precision": precision, "recall": recall, "F1": 2 * precision * recall / (precision + recall),
        "BLEU": nltk.translate.bleu([wanted], said),
    }  # fmt: skip


@pytest.mark.parametrize(
    "read, truth",
    [(MISREAD, CHINESE), (CHINESE, CHINESE), ("Section 1\n\nOn the  way we go on", "Section 1 On the way we go"),
     ("12% of the pictures 图片 are so small", "12% of the pictures are so small")],
    ids=["chinese", "equal", "english", "mixed"],
)  # fmt: skip
def test_a_page_scores_as_by_foxs_script(read: str, truth: str) -> None:
    row, wanted = page_metrics(read, truth), by_foxs_script(read, truth)
    assert {name: row[name] for name in wanted} == pytest.approx(wanted)
    assert 0 < row["METEOR"] <= 1


def test_the_words_of_a_chinese_page_are_not_its_lines() -> None:
    """Split at white space, this page would be three words, one of them right."""
    row = page_metrics(MISREAD, CHINESE)
    assert 0.6 < row["precision"] < 1 and 0.6 < row["recall"] < 1 and 0.3 < row["BLEU"] < 1 and 0.6 < row["METEOR"] < 1


def test_a_benchmark_counts_white_space_and_a_reward_does_not() -> None:
    assert page_metrics("a\nb", "a b")["edit_distance"] == pytest.approx(1 / 3) and edit_distance("a\nb", "a b") == 0
    nothing = page_metrics("", "a b")
    assert nothing == dict.fromkeys(COLUMNS, 0.0) | {"edit_distance": 1.0}


def test_without_jieba_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(DataError, match=r'needs the package jieba .*pip install "activeo3\[ocr\]"'):
        page_metrics("a", "a")


def test_without_nltk_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(DataError, match=r'needs the package nltk .*pip install "activeo3\[ocr\]"') as caught:
        page_metrics("a", "a")
    assert "\n" not in str(caught.value)
    assert text_similarity("a", "a") == 1.0  # the reward does without it
